"""`medley leaks`: training texts that recur in dev or test collections, one a line, or explained with both texts."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from medley.leaks.explain import Finding
    from medley.pairs import TrainingPair

COUNTED = 10_000
"""Rows between two signs of progress."""


def leaks(
    pairs: Annotated[Path, typer.Option("--pairs", help="A pairs file: JSON Lines, .gz or Parquet.")],
    against: Annotated[
        list[str],
        typer.Option(
            metavar="COLLECTION",
            help="Collection folder (all its splits, or one with :SPLIT) or MTEB task; repeatable.",
        ),
    ],
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
    threshold: Annotated[float, typer.Option(help="Similarity from which texts are near duplicates.")] = 0.85,
    judged_only: Annotated[
        bool, typer.Option("--judged-only", help="Of a corpus only passages that someone judged.")
    ] = False,
    explain: Annotated[
        bool,
        typer.Option("--explain", help="What the findings mean, with pairs of texts, instead of a list."),
    ] = False,
) -> None:
    """List training texts that recur in dev or test collections."""
    from medley.leaks.against import load_against
    from medley.leaks.find import hold_out, iter_leaks
    from medley.pairs import StreamedPairs
    from medley.progress import progress, say

    collections = [load_against(spec) for spec in against]
    held_out = [
        hold_out(collection, passages="judged" if judged_only else "all", threshold=threshold)
        for collection in collections
    ]
    rows = StreamedPairs(pairs)
    found = []
    with progress("rows held against the collections", None) as advance:
        for leak in iter_leaks(_counted(rows, advance), held_out):
            if explain:
                found.append(leak)
            elif as_json:
                print(json.dumps(leak.as_json()))
            else:
                where = f"{leak.against} {leak.id}"
                print(f"row {leak.row} {leak.field}: {leak.kind} {leak.similarity:.2f} {where}")
    if not explain:
        return
    from medley.leaks.explain import explain_leaks

    concerned = {leak.row for leak in found}
    kept = {row: pair for row, pair in enumerate(rows) if row in concerned} if concerned else {}
    findings = [
        finding
        for collection in collections
        for finding in explain_leaks([f for f in found if f.against == collection.name], collection, kept)
    ]
    if as_json:
        print(json.dumps([finding.as_json() for finding in findings]))
    elif not findings:
        say("no training text recurs")
    for finding in () if as_json else findings:
        _print(finding)


def _counted(rows: Iterable[TrainingPair], advance: Callable[[int], None]) -> Iterator[TrainingPair]:
    for number, row in enumerate(rows, start=1):
        if number % COUNTED == 0:
            advance(COUNTED)
        yield row


def _print(finding: Finding) -> None:
    print(f"{finding.sentence} {finding.texts:,} texts there, {finding.exact:,} exact copies.")
    for example in finding.examples:
        leak = example.leak
        print(f"  row {leak.row}, {leak.kind} {leak.similarity:.2f}: {example.training}")
        print(f"  {finding.against} {leak.id}: {example.held_out}\n")
