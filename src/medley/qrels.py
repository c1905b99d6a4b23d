"""Relevance judgements of one split, in the layouts that people have.

In: BEIR's table (`query-id corpus-id score`), TREC's four columns (query, iteration, passage, score), or a table whose
first line names its columns in one of the usual ways, in any order; between tabs or spaces. Out: for each query id the
grade of each judged passage. Judgements of a query or passage that is not there (BEIR's own ArguAna has such) are left
out, counted and told.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from pathlib import Path

from medley.errors import CollectionError
from medley.progress import say
from medley.text_file import read_lines

HEADER = ("query-id", "corpus-id", "score")
"""The first line that Medley writes, which is BEIR's."""
Judgements = Mapping[str, Mapping[str, int]]
"""For each query id, the graded relevance of each judged passage id; 0 is judged and not relevant."""
Columns = tuple[int, int, int, int]
"""Where query, passage and score stand in a line, and how many columns it has."""
_NAMES = (
    {"query-id", "query", "qid", "q-id", "queryid", "topic", "topic-id"},
    {
        "corpus-id",
        "corpusid",
        "docid",
        "doc-id",
        "did",
        "pid",
        "passage-id",
        "passageid",
        "document-id",
        "docno",
    },
    {"score", "relevance", "rel", "label", "grade", "relevancy", "judgement", "judgment"},
)
"""What query, passage and score are called in first lines; with underscores or capitals too."""
_WHOLE = re.compile(r"([-+]?[0-9]{1,9})(?:\.0*)?")


def read_qrels(
    path: Path, *, known_queries: AbstractSet[str], known_passages: AbstractSet[str]
) -> tuple[dict[str, dict[str, int]], int]:
    """The judgements of a file, and how many were left out since their query or passage is not there.

    Raises CollectionError with file:line for a grade that is no whole number (1.0 is one) and for two grades of one
    passage that differ; with the file where no judgement is left, or none is above 0.
    """
    judgements: dict[str, dict[str, int]] = {}
    columns: Columns | None = None
    dangling, first = 0, ""
    for line_number, line in read_lines(path, CollectionError):
        where = f"{path}:{line_number}"
        fields = _fields(line)
        if not fields:
            continue
        if columns is None:
            named = _named(fields, where)
            columns = named or _unnamed(fields, where)
            if named:
                continue
        query, passage, score, width = columns
        if len(fields) != width:
            raise CollectionError(
                f"{where}: {len(fields)} columns where the first line has {width}; separate them by tabs."
            )
        query_id, passage_id = fields[query], fields[passage]
        grade = _grade(fields[score], where)
        if query_id not in known_queries:
            dangling, first = (
                dangling + 1,
                first or f"{where}: query id {query_id[:80]!r} is not in queries.jsonl",
            )
        elif passage_id not in known_passages:
            dangling += 1
            first = first or f"{where}: passage id {passage_id[:80]!r} is in no line of corpus.jsonl"
        elif judgements.setdefault(query_id, {}).setdefault(passage_id, grade) != grade:
            raise CollectionError(
                f"{where}: {query_id!r} judges {passage_id!r} a second time, and differently; keep one line."
            )
    if dangling and not judgements:
        raise CollectionError(
            f"{first}, and so it is with every judgement; do the judgements belong to this collection?"
        )
    if not any(grade > 0 for scores in judgements.values() for grade in scores.values()):
        raise CollectionError(f"{path}: no judgement above 0; a split needs at least one relevant passage.")
    if dangling:
        say(f"{first}; {_counted(dangling)} left out")
    return judgements, dangling


def _counted(number: int) -> str:
    return "this judgement is" if number == 1 else f"{number:,} such judgements are"


def _fields(line: str) -> list[str]:
    """The columns of a line: between tabs where there are any, between spaces otherwise."""
    line = line.rstrip("\r\n")
    return line.split("\t") if "\t" in line else line.split()


def _named(fields: Sequence[str], where: str) -> Columns | None:
    """The places of the columns where a first line names them; None where it is a judgement."""
    names = [field.strip().lower().replace("_", "-") for field in fields]
    places = [[place for place, name in enumerate(names) if name in known] for known in _NAMES]
    if sum(map(bool, places)) < 2:  # one alone may be an id
        return None
    if [len(found) for found in places] != [1, 1, 1]:
        raise CollectionError(
            f"{where}: the columns {', '.join(fields)} do not name query, passage and score once each; "
            f"write {', '.join(HEADER)} with tabs."
        )
    (query,), (passage,), (score,) = places
    return query, passage, score, len(fields)


def _unnamed(fields: Sequence[str], where: str) -> Columns:
    if len(fields) == 3:
        return 0, 1, 2, 3
    if len(fields) == 4:  # TREC: the second is an iteration that nobody reads
        return 0, 2, 3, 4
    raise CollectionError(
        f"{where}: {len(fields)} column{'s' if len(fields) != 1 else ''}; write {', '.join(HEADER)} with tabs."
    )


def _grade(score: str, where: str) -> int:
    whole = _WHOLE.fullmatch(score.strip())
    if whole is None:
        raise CollectionError(f"{where}: score {score[:40]!r} is not a whole number; use 0, 1, 2, ...")
    return int(whole[1])
