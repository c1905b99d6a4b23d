"""What the prompts stage may not know of, put together for it: dev pools and their nDCG, paired tests, a chat model.

For a run (models.py), for `medley tune-prompt`, and for Python: `tune` chooses the instruction of a retriever.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from medley.files import write_json
from medley.leaks.chosen import ChosenOn, as_extra, chosen_on, read_chosen
from medley.markdown import literal
from medley.pipeline.inputs import Inputs
from medley.prompts.choose import Chat, Choice, choose
from medley.prompts.library import DEFAULT
from medley.prompts.scoring import DevSet, Scorer
from medley.prompts.settings import PromptSettings
from medley.recipe import Expert, Recipe

if TYPE_CHECKING:
    from medley.encoder import Retriever
    from medley.llm import LlmSettings
    from medley.merge.pool import DevPool

PROMPT_CODE = (
    "pipeline/models.py",
    "pipeline/prompting.py",
    "prompts",
    "prefix.py",
    "merge/pool.py",
    "search",
    "llm",
)
"""What finds and proves instructions."""


def tune(
    retriever: Retriever,
    pools: Sequence[DevPool],
    settings: PromptSettings,
    seed_instruction: str,
    *,
    seed: int,
    chat: Chat | None = None,
    store: Path | None = None,
) -> Choice:
    """Choose the instruction of a retriever on dev pools; `store` is a folder that keeps passage vectors.

    Raises InputError where the method needs a language model and there is none.
    """
    scorer = Scorer(retriever, [dev_set(pool) for pool in pools], store=store)
    choice = choose(settings, seed_instruction, scorer, test=paired_test(seed), seed=seed, chat=chat)
    dev = tuple(chosen_on(pool.name, "instruction", pool.queries) for pool in pools)
    return replace(choice, chosen_on=dev)


def dev_pools(specs: Sequence[str], *, queries: int, passages: int, seed: int) -> list[DevPool]:
    """Open dev collections; of large ones a seeded sample of queries, and the passages hardest for them."""
    from medley.leaks.dev import open_dev
    from medley.merge.pool import build_pool

    return [
        build_pool(open_dev(spec), max_passages=passages, max_queries=queries, seed=seed) for spec in specs
    ]


def dev_set(pool: DevPool) -> DevSet:
    """A dev pool as instructions are scored on it."""
    from medley.merge.pool import JudgedPairs, judged_pairs, ndcg_at_10

    judged = judged_pairs(pool)

    def grade(similarities_RD: np.ndarray, rows_R: np.ndarray) -> np.ndarray:
        place_of_Q = np.full(len(pool.queries), -1)
        place_of_Q[rows_R] = np.arange(len(rows_R))
        places = place_of_Q[judged.rows]
        own = places >= 0
        part = JudgedPairs(places[own], judged.columns[own], judged.gains[own], judged.ideal[rows_R])
        return ndcg_at_10(similarities_RD, part)

    relevant: list[list[tuple[float, int]]] = [[] for _ in pool.queries]
    for row, column, gain in zip(judged.rows, judged.columns, judged.gains, strict=True):
        relevant[row].append((-gain, int(column)))
    return DevSet(
        pool.name,
        pool.query_ids,
        pool.queries,
        pool.passages,
        tuple(tuple(column for _, column in sorted(found)) for found in relevant),
        grade,
    )


def paired_test(seed: int) -> Any:
    """The paired randomisation test, as plain data."""
    from medley.statistics.compare import compare

    return lambda a, b: compare(a, b, seed=seed).as_json()


def prompt_settings(
    recipe: Recipe, inputs: Inputs, method: str, dev: Sequence[str], llm: Mapping[str, object] | None
) -> dict[str, object]:
    """All that decides how an instruction is found, beside the base and the instruction to start from.

    `llm` is what of the language model decides its replies.
    """
    if method == "none":
        return {"method": method}
    used = {"gepa": {"budget", "queries", "alpha"}, "generic": {"count"}}.get(method, {"queries", "alpha"})
    library = recipe.prompts.library
    return {
        "method": method,
        **recipe.prompts.model_dump(mode="json", include=used),
        "library": inputs.file(str(library)) if library else None,
        "llm": llm if method in ("gepa", "generic") else None,
        "dev": inputs.collection_identities(dev),
    }


def seed_instruction_of(recipe: Recipe, expert: Expert) -> str:
    """What an expert's instruction has to beat: its first source's."""
    return recipe.sources[expert.sources[0]].instruction or DEFAULT


def open_prompt_chat(llm: LlmSettings | None, settings: PromptSettings, cache: Path) -> Chat | None:
    """The language model, where there is one and the method asks it; its replies are kept in the file `cache`."""
    from medley.llm import open_chat

    if llm is None or settings.method not in ("gepa", "generic"):
        return None
    return Chat(open_chat(llm, cache), llm)


def write_choice(choice: Choice, dev: Sequence[str], path: Path, *, force: bool = True) -> dict[str, Any]:
    """Write prompt.json, without `force` never over a file; give a summary for the manifest."""
    write_json(path, {**choice.as_json(), "dev": list(dev)}, force=force)
    proof = choice.proof
    candidates = choice.found.candidates if choice.found else ()
    return {
        "instruction": choice.instruction,
        "candidates": len(candidates),
        "best": max((candidate.score for candidate in candidates if candidate.finished), default=None),
        "verdict": proof.verdict if proof else None,
        "p_value": proof.versus_seed["p_value"] if proof and proof.versus_seed else None,
        "ended": choice.found.ended if choice.found else "",
    }


def export_with_instruction(
    model: str, instruction: str, folder: Path, *, dev: Sequence[ChosenOn] = ()
) -> None:
    """Write a model folder again with another instruction in its prompts, through the export gate.

    `dev` is what the instruction was chosen on.

    Raises ModelError when the written folder does not encode as the model does under that instruction.
    """
    from medley.encoder import DESCRIPTION, describe, open_retriever
    from medley.files import read_json
    from medley.merge.export import Probe, encode_probe, export
    from medley.model_name import resolve_base

    probe = Probe()
    saved_in = next(open_retriever(model).model.parameters()).dtype
    exact = open_retriever(model, dtype="float32")
    exact.model.prompts["query"] = exact.query_prompt(instruction)
    retriever = replace(exact, instruction=instruction)
    scored = encode_probe(retriever, probe)
    retriever.model.to(saved_in)
    provenance = read_json(Path(resolve_base(model)) / DESCRIPTION)
    for key in describe(retriever):
        provenance.pop(key, None)
    card = f"# {literal(folder.name)}\n\n{literal(model)} under another instruction:\n\n> {literal(instruction)}\n"
    export(
        retriever,
        folder,
        card=card,
        scored=scored,
        base=None,
        probe=probe,
        extra={**provenance, "made_of": model, **as_extra([*read_chosen(Path(resolve_base(model))), *dev])},
    )
