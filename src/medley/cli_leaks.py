"""`medley leaks`: training texts that recur in dev or test collections, one a line, or explained with both texts."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from medley.progress import printable

if TYPE_CHECKING:
    from medley.collections import Collection
    from medley.leaks.explain import Finding
    from medley.leaks.find import Leak
    from medley.pairs import StreamedPairs, TrainingPair

COUNTED = 10_000
"""Rows between two signs of progress."""


def leaks(
    pairs: Annotated[
        Path, typer.Option("--pairs", help="A pairs file: JSON Lines, Parquet, CSV or a saved data set.")
    ],
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
        bool, typer.Option("--judged-only", help="Look only at passages that someone judged.")
    ] = False,
    explain: Annotated[
        bool,
        typer.Option(
            "--explain",
            help="Say what the findings mean, with the texts side by side, instead of listing them.",
        ),
    ] = False,
) -> None:
    """List training texts that recur in dev or test collections. Exits with 1 if a query does."""
    from medley.leaks.against import load_against
    from medley.leaks.find import hold_out, iter_leaks
    from medley.pairs import StreamedPairs
    from medley.progress import progress

    opened = [load_against(spec) for spec in against]
    collections = [each.collection for each in opened]
    held_out = [
        hold_out(
            each.collection,
            passages="judged" if judged_only else "all",
            threshold=threshold,
            splits=each.splits,
        )
        for each in opened
    ]
    rows = StreamedPairs(pairs)
    found = []
    queries = 0
    with progress("rows held against the collections", None) as advance:
        for leak in iter_leaks(_counted(rows, advance), held_out):
            queries += leak.field == "query"
            if explain:
                found.append(leak)
            elif as_json:
                print(json.dumps(leak.as_json()))
            else:
                where = f"{leak.against}:{leak.split} {leak.id}"
                print(printable(f"row {leak.row} {leak.field}: {leak.kind} {leak.similarity:.2f} {where}"))
    if explain:
        _explain(found, collections, rows, as_json)
    if queries:
        raise typer.Exit(1)


def _explain(
    found: Sequence[Leak], collections: Sequence[Collection], rows: StreamedPairs, as_json: bool
) -> None:
    from medley.leaks.explain import explain_leaks

    findings = [
        finding
        for collection in collections
        for finding in explain_leaks([f for f in found if f.against == collection.name], collection)
    ]
    if as_json:
        print(json.dumps([finding.as_json() for finding in findings]))
    elif not findings:
        from medley.progress import say

        say("no training text recurs")
    for finding in () if as_json else findings:
        _print(finding)


def _counted(rows: Iterable[TrainingPair], advance: Callable[[int], None]) -> Iterator[TrainingPair]:
    for number, row in enumerate(rows, start=1):
        if number % COUNTED == 0:
            advance(COUNTED)
        yield row


def _print(finding: Finding) -> None:
    print(printable(f"{finding.sentence} Texts there: {finding.texts:,}; exact copies: {finding.exact:,}."))
    for example in finding.examples:
        leak = example.leak
        print(printable(f"  row {leak.row}, {leak.kind} {leak.similarity:.2f}: {example.training}"))
        print(printable(f"  {finding.against}:{leak.split} {leak.id}: {example.held_out}\n"))
