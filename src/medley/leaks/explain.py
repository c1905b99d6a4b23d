"""What leaks mean: findings of the check put into classes, each with a number, a sentence and pairs of texts.

In: leaks into one collection. Out: `Finding`s, worst first. A shared
passage may be the answer to a test query, or one that nobody judged: then a test counts it as wrong wherever it is
found, which is an unlabelled positive of the collection as often as it is a mistake of the model.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from medley.collections import Collection
from medley.leaks.find import Leak

EXAMPLES = 5
"""Pairs of texts kept for each class."""
LONGEST = 240
"""Characters of a text that are shown."""
CLASSES: Mapping[str, str] = {
    "query": "with a query of {against}: the model has been shown the answer. Drop such rows.",
    "unlabelled": "with such a query and a positive that {against} does not judge relevant to it: one that the "
    "collection left unlabelled. A model that finds it there is marked down for being right.",
    "answer": "with a positive that answers a query of {against}, under another question. Harmless where the model is "
    "to serve this very corpus; else scores there are flattered.",
    "refuted": "with a positive that {against} judges not relevant to its queries: training draws it nearer to other "
    "questions.",
    "unjudged": "with a positive that stands in the corpus of {against} and was judged for none of its queries. It "
    "may be an answer that nobody labelled: where one is found, a test counts it as wrong.",
    "punished": "with a negative that answers a query of {against}: training pushes a right answer away, so scores "
    "there are too low.",
    "negative": "with another negative that stands in the corpus of {against}.",
}
"""Key of a class -> what it means, after `1 row` or `7 rows`."""


@dataclass(frozen=True)
class Example:
    """A training text and the held-out text that it repeats."""

    leak: Leak
    training: str
    held_out: str


@dataclass(frozen=True)
class Finding:
    """One class of leaks into one collection: training rows, held-out texts, and some of the pairs of texts."""

    kind: str
    against: str
    rows: int
    texts: int
    exact: int
    examples: tuple[Example, ...]

    @property
    def sentence(self) -> str:
        """Number and meaning in words."""
        return f"{self.rows:,} row{'s' * (self.rows != 1)} {CLASSES[self.kind].format(against=self.against)}"

    def as_json(self) -> dict[str, Any]:
        """For artefacts and the report."""
        examples = [{**asdict(e), "leak": e.leak.as_json()} for e in self.examples]
        return {**asdict(self), "examples": examples, "sentence": self.sentence}


def explain_leaks(leaks: Sequence[Leak], collection: Collection) -> list[Finding]:
    """Sort leaks into one collection by what they mean."""
    held_out = dict(_held_out_texts(leaks, collection))
    classes: dict[str, list[Leak]] = {key: [] for key in CLASSES}
    queries_of: dict[int, list[str]] = {}
    for leak in leaks:
        if leak.field == "query":
            queries_of.setdefault(leak.row, []).append(leak.id)
    judged = _best_grades(collection)
    for leak in leaks:
        for key in _classes(leak, queries_of.get(leak.row, ()), collection, judged):
            classes[key].append(leak)
    return [
        Finding(
            key,
            collection.name,
            rows=len({leak.row for leak in found}),
            texts=len({leak.id for leak in found}),
            exact=sum(leak.kind == "exact" for leak in found),
            examples=tuple(_examples(found, held_out)),
        )
        for key, found in classes.items()
        if found
    ]


def _best_grades(collection: Collection) -> dict[str, int]:
    """For each judged passage the best grade that any query gives it."""
    best: dict[str, int] = {}
    for grades in collection.judgements.values():
        for passage_id, grade in grades.items():
            best[passage_id] = max(best.get(passage_id, grade), grade)
    return best


def _classes(
    leak: Leak, queries: Sequence[str], collection: Collection, judged: Mapping[str, int]
) -> Iterator[str]:
    grade = judged.get(leak.id)
    if leak.field == "query":
        yield "query"
    elif leak.field == "negative":
        yield "punished" if grade is not None and grade > 0 else "negative"
    elif queries and not any(collection.judgements[query].get(leak.id, 0) > 0 for query in queries):
        yield "unlabelled"
    elif grade is None:
        yield "unjudged"
    else:
        yield "answer" if grade > 0 else "refuted"


def _held_out_texts(leaks: Sequence[Leak], collection: Collection) -> Iterator[tuple[tuple[str, str], str]]:
    wanted = {leak.id for leak in leaks if leak.field != "query"}
    for query_id, text in collection.queries.items():
        yield ("query", query_id), text
    for passage in collection.corpus if wanted else ():
        if passage.id in wanted:
            yield ("passage", passage.id), passage.full_text


def _examples(leaks: Sequence[Leak], held_out: Mapping[tuple[str, str], str]) -> Iterator[Example]:
    """One example of each held-out text, the least alike first: exact copies need no look."""
    distinct = {leak.id: leak for leak in sorted(leaks, key=lambda leak: (-leak.similarity, -leak.row))}
    chosen = sorted(distinct.values(), key=lambda leak: (leak.similarity, leak.row))[:EXAMPLES]
    for leak in chosen:
        theirs = held_out[("query" if leak.field == "query" else "passage", leak.id)]
        yield Example(leak, shown(leak.text), shown(theirs))


def shown(text: str, longest: int = LONGEST) -> str:
    """A text on one line, cut where it is long."""
    line = " ".join(text.split())
    return line if len(line) <= longest else f"{line[: longest - 1].rstrip()}…"
