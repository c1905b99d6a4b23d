"""Leaks: training texts that recur in a collection the result is chosen or tested on.

In: training pairs (any number: they are streamed) and collections. Out: one `Leak` for each training query that is
(nearly) a query there, and for each positive or negative that is (nearly) one of its passages; index.py says what
nearly the same is.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, groupby, islice
from operator import itemgetter
from typing import Any, Literal

from medley.collections import Collection
from medley.errors import InputError
from medley.leaks.against import ONE_SPLIT, Splits, query_wordings
from medley.leaks.index import HeldOut, Match, batches
from medley.leaks.words import hash_texts
from medley.pairs import TrainingPair, numbered

THRESHOLD = 0.85
ROWS_AT_ONCE = 5_000
Field = Literal["query", "positive", "negative"]
Passages = Literal["none", "judged", "all"]
"""Which passages of a collection are held against positives and negatives."""


@dataclasses.dataclass(frozen=True)
class Leak:
    """A text of training row `row` (from 0) that is the query or passage `id` of collection `against`.

    A row of a file is one row, however many positives it has. `split` is that of the query, or of the queries that the
    passage is judged for (several with commas); of a passage that nobody judged, all that were looked at.
    """

    row: int
    field: Field
    against: str
    id: str
    kind: Literal["exact", "near"]
    split: str
    similarity: float
    text: str = dataclasses.field(default="", compare=False, repr=False)
    """The training text; it is in no JSON."""

    def as_json(self) -> dict[str, Any]:
        """One line of `medley leaks --json`."""
        entry = dataclasses.asdict(self)
        del entry["text"]
        return entry


@dataclasses.dataclass(frozen=True)
class HeldOutCollection:
    """A collection's texts, arranged to be searched."""

    name: str
    split: str
    queries: HeldOut
    passages: HeldOut
    splits: Splits = ONE_SPLIT

    def split_of(self, field: Field, text_id: str) -> str:
        """The split of a query, or of the queries that a passage is judged for."""
        known = self.splits.queries if field == "query" else self.splits.passages
        return known.get(text_id, self.split)


def hold_out(
    collection: Collection,
    *,
    passages: Passages = "judged",
    threshold: float = THRESHOLD,
    splits: Splits = ONE_SPLIT,
) -> HeldOutCollection:
    """Arrange a collection's queries and passages for searching. A passage matches with its title or without.

    Raises InputError for a threshold that is no similarity.
    """
    if not 0 < threshold <= 1:
        raise InputError(
            f"a similarity threshold of {threshold} is not above 0 and at most 1; use {THRESHOLD}."
        )
    return HeldOutCollection(
        collection.name,
        collection.split,
        HeldOut(query_wordings(collection), threshold),
        HeldOut(_passage_texts(collection, passages), threshold),
        splits,
    )


def find_leaks(
    pairs: Iterable[TrainingPair],
    collection: Collection,
    *,
    threshold: float = THRESHOLD,
    passages: Passages = "judged",
) -> list[Leak]:
    """Every leak of the pairs into one collection, by row and field, most similar first."""
    return list(iter_leaks(pairs, [hold_out(collection, passages=passages, threshold=threshold)]))


def iter_leaks(pairs: Iterable[TrainingPair], held_out: Sequence[HeldOutCollection]) -> Iterator[Leak]:
    """The leaks into several collections, row by row: of each row by collection, field and similarity."""
    rows = (
        (row, _fields(pair for _, pair in own)) for row, own in groupby(numbered(pairs), key=itemgetter(0))
    )
    while chunk := list(islice(rows, ROWS_AT_ONCE)):
        texts = list(chain.from_iterable(fields for _, fields in chunk))
        queries = matches((text for name, text in texts if name == "query"), [h.queries for h in held_out])
        passages = matches((text for name, text in texts if name != "query"), [h.passages for h in held_out])
        for row, fields in chunk:
            for number, held in enumerate(held_out):
                for name, text in fields:
                    known = (queries if name == "query" else passages)[number]
                    for match in known.get(text, ()):
                        split = held.split_of(name, match.id)
                        yield Leak(row, name, held.name, match.id, match.kind, split, match.similarity, text)


def matches(texts: Iterable[str], held_out: Sequence[HeldOut]) -> list[dict[str, list[Match]]]:
    """For each set of held-out texts, what the texts match there; those that match nothing are left out."""
    found: list[dict[str, list[Match]]] = [{} for _ in held_out]
    wanted = [held for held in held_out if len(held)]
    for batch in batches(list(dict.fromkeys(texts))) if wanted else ():
        hashed = hash_texts(batch)
        for held, matched in zip(held_out, found, strict=True):
            if len(held):
                matched.update((batch[position], hits) for position, hits in held.matches(hashed).items())
    return found


def blocking(leaks: Iterable[Leak]) -> list[Leak]:
    """The leaks that make a test worthless: training queries that equal, or nearly equal, one of its queries.

    Shared passages alone do not: a model may be trained on the very corpus it will search, and the training and
    test splits of one collection share theirs by design. What must not recur is the question whose answer is
    being tested.
    """
    return [leak for leak in leaks if leak.field == "query"]


def _fields(pairs: Iterable[TrainingPair]) -> list[tuple[Field, str]]:
    """The texts of a row, whose pairs differ in the positive only, each once."""
    fields: dict[Field, dict[str, None]] = {"query": {}, "positive": {}, "negative": {}}
    for pair in pairs:
        fields["query"][pair.query] = fields["positive"][pair.positive] = None
        fields["negative"].update(dict.fromkeys(pair.negatives))
    return [(name, text) for name, texts in fields.items() for text in texts]


def _passage_texts(collection: Collection, wanted: Passages) -> Iterator[tuple[str, str]]:
    if wanted == "none":
        return
    judged = {passage_id for grades in collection.judgements.values() for passage_id in grades}
    for passage in collection.corpus:
        if wanted == "all" or passage.id in judged:
            yield passage.id, passage.full_text
            if passage.title and passage.text:
                yield passage.id, passage.text
