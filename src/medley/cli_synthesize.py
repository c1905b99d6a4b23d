"""The commands that write training data: `medley synthesize negatives`, `queries` and `tasks`. Thin shells.

Rows are read, sent and written one by one, to a temporary file that is renamed at the end; counts go to standard
output, what was asked and paid to standard error.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from medley.cli_llm import (
    BudgetTokens,
    Concurrency,
    LlmExtra,
    LlmLocal,
    LlmModel,
    LlmUrl,
    llm_settings,
    open_llm,
    required_llm,
)
from medley.cli_options import Force, Out, PairsFile, Seed
from medley.errors import InputError

if TYPE_CHECKING:
    from medley.llm import ChatModel
    from medley.synthesize import Tally

app = typer.Typer(no_args_is_help=True, help="Write training data: negatives, queries, or whole tasks.")

Consistency = Annotated[
    str | None,
    typer.Option(
        help="Keep a pair only if `bm25`, or a model, finds its passage for its query; default: keep all."
    ),
]
TopK = Annotated[int, typer.Option("--top-k", help="With --consistency: among so many passages.")]
Kinds = Annotated[
    str | None, typer.Option(help="NAME=WEIGHT,...: which kinds, and how often each; default: all of them.")
]
Styles = Annotated[str | None, typer.Option(help="NAME=WEIGHT,...: styles of queries; default: all of them.")]
Instruction = Annotated[str, typer.Option(help="The instruction written into the rows.")]


@app.command()
def negatives(
    pairs: PairsFile,
    out: Out,
    corpus: Annotated[
        str | None,
        typer.Option(
            help="Without a language model: a collection that siblings and sentences are taken from; default: the "
            "pairs' own positives."
        ),
    ] = None,
    llm_url: LlmUrl = None,
    llm_model: LlmModel = None,
    llm_local: LlmLocal = None,
    llm_extra: LlmExtra = None,
    kinds: Kinds = None,
    kinds_file: Annotated[
        Path | None, typer.Option(help="A file of kinds instead of the bundled one.")
    ] = None,
    prompt: Annotated[Path | None, typer.Option(help="A prompt file instead of the bundled one.")] = None,
    per_query: Annotated[int, typer.Option(help="How many negatives to ask for, for each pair.")] = 1,
    concurrency: Concurrency = 8,
    budget_tokens: BudgetTokens = None,
    seed: Seed = 13,
    force: Force = False,
) -> None:
    """Write hard negatives for pairs. By a language model, or by perturbing positives where none is named."""
    from medley.claim import claimed

    llm = llm_settings(llm_url, llm_model, llm_local, llm_extra, concurrency, budget_tokens)
    if llm is None:
        if kinds or kinds_file or prompt:
            raise InputError(
                "--kinds, --kinds-file and --prompt are for a language model; give --llm-url and --llm-model, "
                "or leave them out."
            )
        with claimed(out, force=force, inputs=(pairs, corpus)):
            _perturb(pairs, out, corpus, per_query, seed, force=force)
        return
    from medley.pairs import iter_pairs
    from medley.positives import PositiveKeys
    from medley.synthesize import GenerationSettings, Tally, generate_negatives

    settings = GenerationSettings(
        per_query=per_query, kinds=weights(kinds, "--kinds"), kinds_file=kinds_file, prompt=prompt
    )
    with claimed(out, force=force, inputs=(pairs, kinds_file, prompt)):
        known = PositiveKeys(iter_pairs(pairs))  # every row is checked before anything is paid for
        chat = open_llm(llm, out)
        outcomes = generate_negatives(
            known.cleaned(iter_pairs(pairs)),
            chat,
            settings,
            llm=llm,
            seed=seed,
            total=known.pairs,
            positives=known,
        )
        _write(out, Tally(outcomes), chat, force=force)


def _perturb(pairs: Path, out: Path, corpus: str | None, per_query: int, seed: int, *, force: bool) -> None:
    from medley.collections import Passage, load_corpus
    from medley.pairs import read_pairs, write_pairs
    from medley.positives import PositiveKeys
    from medley.progress import say
    from medley.synthesize.perturb import PerturbationSettings, perturb_negatives

    read = read_pairs(pairs)
    rows = list(PositiveKeys(read).cleaned(read))
    if not corpus:
        say(
            f"no corpus is given: what is put in place of an answer comes from the {len(rows)} positives of the pairs."
        )
    passages = (
        load_corpus(corpus) if corpus else [Passage(str(i), row.positive) for i, row in enumerate(rows)]
    )
    generated = perturb_negatives(rows, passages, PerturbationSettings(per_query=per_query), seed=seed)
    write_pairs(out, generated.pairs, force=force)
    print(json.dumps(dict(generated.counts)))


@app.command()
def queries(
    corpus: Annotated[str, typer.Option(help="A collection whose passages get queries.")],
    out: Out,
    llm_url: LlmUrl = None,
    llm_model: LlmModel = None,
    llm_local: LlmLocal = None,
    llm_extra: LlmExtra = None,
    per_passage: Annotated[int, typer.Option(help="How many queries to ask for, for each passage.")] = 1,
    passages: Annotated[
        int | None, typer.Option(help="So many passages, drawn at random; default: all.")
    ] = None,
    styles: Styles = None,
    prompt: Annotated[Path | None, typer.Option(help="A prompt file instead of the bundled one.")] = None,
    instruction: Instruction = "",
    consistency: Consistency = None,
    top_k: TopK = 20,
    concurrency: Concurrency = 8,
    budget_tokens: BudgetTokens = None,
    seed: Seed = 13,
    force: Force = False,
) -> None:
    """Write queries for the passages of a corpus. No query comes twice (BMRetriever's instance level)."""
    from medley.any_model import open_model
    from medley.claim import claimed
    from medley.collections import load_corpus
    from medley.synthesize import ConsistencySettings, QuerySettings, Tally, pairs_from_corpus

    llm = required_llm(
        llm_settings(llm_url, llm_model, llm_local, llm_extra, concurrency, budget_tokens), "writing queries"
    )
    settings = QuerySettings(
        per_passage=per_passage,
        passages=passages,
        styles=weights(styles, "--styles"),
        prompt=prompt,
        consistency=ConsistencySettings(retriever=consistency, top_k=top_k) if consistency else None,
    )
    with claimed(out, force=force, inputs=(corpus, prompt, consistency)):
        chat = open_llm(llm, out)
        outcomes = pairs_from_corpus(
            load_corpus(corpus),
            chat,
            settings,
            llm=llm,
            seed=seed,
            instruction=instruction,
            retriever=open_model(consistency) if consistency not in (None, "bm25") else None,
        )
        _write(out, Tally(outcomes), chat, force=force)


@app.command()
def tasks(
    out: Out,
    tasks: Annotated[int, typer.Option(help="How many tasks to invent.")] = 20,
    per_task: Annotated[
        int, typer.Option(help="How many examples (query, positive, negative) to write for each task.")
    ] = 10,
    field: Annotated[
        str, typer.Option(help="The field that the tasks are from, such as `biomedicine`.")
    ] = "any",
    kinds: Kinds = None,
    styles: Styles = None,
    llm_url: LlmUrl = None,
    llm_model: LlmModel = None,
    llm_local: LlmLocal = None,
    llm_extra: LlmExtra = None,
    consistency: Consistency = None,
    top_k: TopK = 20,
    concurrency: Concurrency = 8,
    budget_tokens: BudgetTokens = None,
    seed: Seed = 13,
    force: Force = False,
) -> None:
    """Invent retrieval tasks, with texts for each. Query, positive and hard negative (BMRetriever's task level)."""
    from medley.any_model import open_model
    from medley.claim import claimed
    from medley.synthesize import (
        ConsistencySettings,
        Tally,
        TaskSettings,
        consistent_examples,
        generate_for_tasks,
        invent_tasks,
    )

    llm = required_llm(
        llm_settings(llm_url, llm_model, llm_local, llm_extra, concurrency, budget_tokens), "inventing tasks"
    )
    settings = TaskSettings(
        tasks=tasks,
        per_task=per_task,
        field=field,
        kinds=weights(kinds, "--kinds"),
        styles=weights(styles, "--styles"),
    )
    with claimed(out, force=force, inputs=(consistency,)):
        chat = open_llm(llm, out)
        retriever = open_model(consistency) if consistency not in (None, "bm25") else None
        invented = invent_tasks(chat, settings, llm=llm, seed=seed)
        outcomes = generate_for_tasks(invented, chat, settings, llm=llm, seed=seed)
        if consistency:
            limit = ConsistencySettings(retriever=consistency, top_k=top_k)
            outcomes = consistent_examples(outcomes, limit, retriever=retriever)
        _write(out, Tally(outcomes), chat, force=force)


def _write(out: Path, tally: Tally, chat: ChatModel, *, force: bool) -> None:
    """Write the pairs as they come; print the counts, and on standard error what was asked and paid."""
    from medley.pairs import write_pairs
    from medley.progress import say

    write_pairs(out, tally, force=force)
    say(f"{chat.name}: {chat.ledger.sentence()}")
    print(json.dumps(tally.counts))


def weights(text: str | None, option: str) -> dict[str, float] | None:
    """`NAME=WEIGHT,...` as weights; a name alone has weight 1; None for no text.

    Raises InputError naming the option and the part that cannot be read.
    """
    return dict(_weights(text, option)) if text else None


def _weights(text: str, option: str) -> Iterator[tuple[str, float]]:
    for part in text.split(","):
        name, equals, weight = (piece.strip() for piece in part.partition("="))
        try:
            value = float(weight) if equals else 1.0
        except ValueError:
            value = -1.0
        if not name or not 0 <= value < float("inf"):
            raise InputError(
                f"{option} {text}: {part.strip()!r} is not NAME or NAME=WEIGHT; write, for example, a=2,b=1."
            )
        yield name, value
