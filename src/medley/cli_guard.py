"""The commands that look after pairs: `medley guard` and `medley review`. Thin shells, like those of cli.py."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

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
from medley.cli_options import AdapterBase, Force, Out, PairsFile, Seed
from medley.errors import InputError

if TYPE_CHECKING:
    from medley.pairs import TrainingPair


def guard(
    pairs: PairsFile,
    out: Out,
    retriever: Annotated[
        str,
        typer.Option(
            help="`bm25`, a model or adapter folder, a hub id, or `none`: only duplicates and the judge."
        ),
    ] = "bm25",
    base: AdapterBase = None,
    margin: Annotated[
        float | None,
        typer.Option(help="Limit on the score, as a share of the positive's; 0.95 if no limit is given."),
    ] = None,
    closeness: Annotated[
        float | None,
        typer.Option(help="Limit on the score for query and positive together; 0.8 if no limit is given."),
    ] = None,
    similarity: Annotated[float | None, typer.Option(help="Limit on the similarity to a positive.")] = None,
    near_duplicate: Annotated[
        float, typer.Option(help="Overlap with a positive at which a negative counts as its duplicate.")
    ] = 0.9,
    collection: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SPEC:SPLIT", help="A collection (SPEC:SPLIT) whose judgements count too; repeatable."
        ),
    ] = None,
    judge: Annotated[
        str | None, typer.Option(help="Ask a language model about `all`, `suspected` or `left` negatives.")
    ] = None,
    judge_prompt: Annotated[
        Path | None, typer.Option(help="A prompt file instead of the bundled one.")
    ] = None,
    llm_url: LlmUrl = None,
    llm_model: LlmModel = None,
    llm_local: LlmLocal = None,
    llm_extra: LlmExtra = None,
    concurrency: Concurrency = 8,
    budget_tokens: BudgetTokens = None,
    seed: Seed = 13,
    force: Force = False,
) -> None:
    """Drop negatives that are answers after all.

    These are duplicates of a positive, texts too close to one, and what a judge calls an answer.
    """
    from medley.any_model import open_model
    from medley.claim import claimed
    from medley.collections import load_collection
    from medley.guard.decide import guard_negatives
    from medley.guard.settings import GuardSettings
    from medley.pairs import pairs_from_collection, read_pairs, write_pairs

    llm = llm_settings(llm_url, llm_model, llm_local, llm_extra, concurrency, budget_tokens)
    if judge is None and llm is not None:
        raise InputError(
            "a language model is named, but no --judge; say what it judges: all, suspected or left."
        )
    limits = {"margin": margin, "closeness": closeness, "similarity": similarity}
    values: dict[str, Any] = {
        **({} if set(limits.values()) == {None} else limits),
        "retriever": None if retriever == "none" else retriever,
        "near_duplicate": near_duplicate,
        "judge": {"asked": judge, "prompt": judge_prompt} if judge else None,
    }
    settings = GuardSettings.model_validate(values)
    with claimed(out, force=force, inputs=(pairs, retriever, judge_prompt, *(collection or ()))):
        rows = read_pairs(pairs)
        judged = [
            row
            for spec in collection or ()
            for row in pairs_from_collection(load_collection(spec, default_split="train"))
        ]
        guarded = guard_negatives(
            rows,
            settings,
            seed=seed,
            retriever=open_model(retriever, base=base) if retriever not in ("bm25", "none") else None,
            chat=open_llm(required_llm(llm, "the judge"), out) if judge else None,
            concurrency=concurrency,
            judged=judged,
        )
        write_pairs(out, [*guarded.pairs, *guarded.promoted], force=force)
    print(json.dumps(guarded.counts))


def review(
    pairs: PairsFile,
    out: Annotated[
        Path, typer.Option("--out", help="The sheet as a page; with --read, the pairs file to write.")
    ],
    csv: Annotated[Path | None, typer.Option("--csv", help="The sheet as a table too.")] = None,
    read: Annotated[
        list[Path] | None,
        typer.Option(
            "--read",
            metavar="SHEET",
            help="A sheet that came back, with verdicts (CSV); repeatable, one a reviewer.",
        ),
    ] = None,
    settled: Annotated[
        Path | None,
        typer.Option("--settled", help="With --read: a sheet whose verdicts stand above all others."),
    ] = None,
    disputes: Annotated[
        Path | None,
        typer.Option(
            "--disputes",
            help="With --read: the sheet of what reviewers disagree on; default: OUT.disputes.csv.",
        ),
    ] = None,
    rows: Annotated[int, typer.Option(help="Negatives drawn for the sheet.")] = 50,
    seed: Seed = 13,
    force: Force = False,
) -> None:
    """Let a domain expert check negatives.

    Writes a sheet (page and CSV), or reads sheets back and applies their verdicts. What several reviewers disagree
    on is not applied; it goes to a sheet of its own.
    """
    from medley.claim import claimed
    from medley.pairs import read_pairs
    from medley.review.sheet import draw_items
    from medley.review.table import write_sheet

    given = read_pairs(pairs)
    if read or settled is not None:
        if csv is not None:
            raise InputError("--csv writes a sheet and --read takes one back; give one of the two.")
        if disputes is None:
            disputes = out.with_name(f"{out.name}.disputes.csv")
            if settled is not None and disputes.absolute() == settled.absolute():
                disputes = out.with_name(f"{out.name}.disputes-left.csv")
        inputs = (pairs, *(read or ()), settled)
        with claimed(out, force=force, inputs=inputs), claimed(disputes, force=force, inputs=inputs):
            counts = _apply_sheets(given, read or (), settled, out, disputes, force=force)
        print(json.dumps(counts))
        return
    if disputes is not None:
        raise InputError(
            "--disputes: names the sheet of what reviewers disagree on; give their sheets with --read."
        )
    from medley.files import write_text
    from medley.review.page import render_sheet

    if out.suffix.lower() not in (".html", ".htm"):
        raise InputError(
            f"--out {out}: the sheet is a page, so its name must end in .html; --csv names the table."
        )
    with claimed(out, force=force, inputs=(pairs,)), claimed(csv, force=force, inputs=(pairs,)):
        items = draw_items(given, count=rows, seed=seed)
        write_text(out, render_sheet(items, name=pairs.name, total=len(given)), force=force)
        if csv is not None:
            write_sheet(csv, items, force=force)
    print(json.dumps({"rows": len(items), "page": str(out), "table": None if csv is None else str(csv)}))


def _apply_sheets(
    pairs: Sequence[TrainingPair],
    sheets: Sequence[Path],
    settled: Path | None,
    out: Path,
    disputes: Path,
    *,
    force: bool,
) -> dict[str, Any]:
    """Write the pairs after the verdicts of all sheets, and the sheet of disputes if there are any; give the counts."""
    from medley.pairs import write_pairs
    from medley.progress import say
    from medley.review.agreement import combine
    from medley.review.decisions import apply_verdicts
    from medley.review.sheet import find_item
    from medley.review.table import read_sheet, write_sheet

    names = {path: path.stem for path in sheets}
    if len(set(names.values())) < len(sheets):
        names = {path: str(path) for path in sheets}
    combined = combine(
        [read_sheet(path, name) for path, name in names.items()],
        read_sheet(settled, settled.stem) if settled else (),
    )
    items = [find_item(pairs, item_id, own[0].where) for item_id, own in combined.disputed.items()]
    reviewed = apply_verdicts(pairs, combined.decisions)
    write_pairs(out, reviewed.pairs, force=force)
    counts = reviewed.counts | combined.counts
    if not items:
        return counts
    write_sheet(disputes, items, said=combined.disputed, force=force)
    say(
        f"reviewers disagree on {len(items):,} items, which stay as they are: decide in {disputes}, then --settled."
    )
    return counts | {"disputes": str(disputes)}
