"""`medley tune-prompt`: choose the retrieval instruction of a finished model on dev, and prove the choice."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from medley.cli_llm import BudgetTokens, Concurrency, LlmExtra, LlmLocal, LlmModel, LlmUrl, llm_settings
from medley.cli_options import AdapterBase, Force, Json, Seed
from medley.errors import InputError

if TYPE_CHECKING:
    from medley.prompts.choose import Choice


def tune_prompt(
    model: Annotated[str, typer.Argument(help="A model or expert folder that Medley wrote.")],
    collection: Annotated[
        list[str], typer.Option(metavar="SPEC:SPLIT", help="A dev collection; repeatable.")
    ],
    out: Annotated[Path, typer.Option("--out", help="Where the choice and all candidates go (JSON).")],
    base: AdapterBase = None,
    method: Annotated[str, typer.Option(help="library, edit, generic, gepa, or none.")] = "library",
    instruction: Annotated[
        str | None, typer.Option(help="The instruction to beat; default: the model's own.")
    ] = None,
    budget: Annotated[str, typer.Option(help="How much gepa tries: light, medium or heavy.")] = "light",
    count: Annotated[int, typer.Option(help="How many instructions generic tries.")] = 20,
    library: Annotated[
        Path | None, typer.Option(help="Your own list of instructions instead of the bundled one.")
    ] = None,
    queries: Annotated[int, typer.Option(help="Dev queries used, half of them to confirm.")] = 600,
    passages: Annotated[
        int, typer.Option(help="How many passages are ranked; of a larger corpus, the hardest.")
    ] = 10_000,
    alpha: Annotated[float, typer.Option(help="The p-value below which the instruction is changed.")] = 0.05,
    model_out: Annotated[
        Path | None, typer.Option(help="Also write the model with the chosen instruction here.")
    ] = None,
    vectors: Annotated[
        Path | None, typer.Option(help="Keep passage vectors here, for the next time.")
    ] = None,
    llm_url: LlmUrl = None,
    llm_model: LlmModel = None,
    llm_local: LlmLocal = None,
    llm_extra: LlmExtra = None,
    concurrency: Concurrency = 8,
    budget_tokens: BudgetTokens = None,
    seed: Seed = 13,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Choose the retrieval instruction of a model on dev. Prints the instruction."""
    from medley.any_model import open_model
    from medley.claim import claimed
    from medley.errors import ModelError
    from medley.model_name import is_adapter
    from medley.pipeline.prompting import (
        dev_pools,
        export_with_instruction,
        open_prompt_chat,
        tune,
        write_choice,
    )
    from medley.progress import printable, say
    from medley.prompts.library import DEFAULT
    from medley.prompts.settings import PromptSettings

    settings = PromptSettings.model_validate(
        {"method": method, "budget": budget, "count": count, "library": library, "alpha": alpha}
    )
    llm = llm_settings(llm_url, llm_model, llm_local, llm_extra, concurrency, budget_tokens)
    if method == "gepa" and llm is None:
        raise InputError(
            "--method gepa needs a language model to reflect; give --llm-url and --llm-model, or use --method edit."
        )
    if model_out is not None and is_adapter(model):
        raise InputError(
            f"--model-out: {model} is an adapter, which has no prompts to write; merge it first."
        )
    inputs = (model, library, *collection)
    with (
        claimed(out, force=force, inputs=inputs),
        claimed(model_out, force=force, folder=True, inputs=inputs),
    ):
        pools = dev_pools(collection, queries=queries, passages=passages, seed=seed)
        retriever = open_model(model, base=base)
        if retriever.template is None:
            raise ModelError(f"{model}: was not made by Medley, so its instruction cannot be changed.")
        seed_instruction = instruction if instruction is not None else retriever.instruction or DEFAULT
        chat = open_prompt_chat(llm, settings, out.with_name(f"{out.name}.llm-cache.jsonl"))
        choice = tune(retriever, pools, settings, seed_instruction, seed=seed, chat=chat, store=vectors)
        write_choice(choice, collection, out, force=force)
        if model_out is not None:
            export_with_instruction(model, choice.instruction, model_out, dev=choice.chosen_on)
    say(summary(choice))
    print(json.dumps(choice.as_json()) if as_json else printable(choice.instruction))


def summary(choice: Choice) -> str:
    """What was tried and what came out, in a few lines."""
    proof, found = choice.proof, choice.found
    lines = []
    if found is not None:
        lines.append(
            f"{len(found.candidates)} candidates, {len(found.rejected)} rejected unseen; {found.ended}."
        )
    if proof is not None and proof.seed is not None:
        lines.append(f"On {proof.queries} queries that were not used to choose (nDCG@10):")
        rows = [
            ("best candidate", proof.best),
            ("seed instruction", proof.seed),
            ("none", proof.no_instruction),
        ]
        lines += [f"  {name:18} {value:.4f}" for name, value in rows if value is not None]
        if proof.random_mean is not None:
            lines.append(
                f"  {proof.random_count} random ones  {proof.random_mean:.4f}, spread {proof.random_spread or 0:.4f}, "
                f"{proof.random_low:.4f} to {proof.random_high:.4f}"
            )
        if proof.versus_seed is not None:
            test = proof.versus_seed
            lines.append(
                f"  best minus seed    {test['difference']:+.4f} "
                f"({test['ci_low']:+.4f} to {test['ci_high']:+.4f}), p = {test['p_value']:.4f}"
            )
    if proof is not None:
        kept = "" if choice.changes else "; the seed instruction stays"
        lines.append(f"{proof.verdict}{kept}.")
    return "\n".join(lines)
