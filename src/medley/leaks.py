"""Leaks: training texts that recur in a collection the result is chosen or tested on.

In: training pairs and a collection. Out: one `Leak` for each training query that is (nearly) a query of the split,
and for each positive or negative that is (nearly) one of its judged passages. Two texts are exactly the same if
their normal forms are (case, punctuation and white space aside), and nearly the same if the Jaccard similarity of
their word shingles reaches the threshold. The search is exact: no near duplicate is missed.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any, Literal

from medley.collections import Collection
from medley.errors import InputError
from medley.overlap import jaccard, normal_form, runs_of_words, shingles
from medley.pairs import TrainingPair

THRESHOLD = 0.8
Field = Literal["query", "positive", "negative"]


@dataclass(frozen=True)
class Leak:
    """A text of training row `row` (from 0) that is the query or passage `id` of collection `against`."""

    row: int
    field: Field
    against: str
    id: str
    kind: Literal["exact", "near"]
    similarity: float

    def as_json(self) -> dict[str, Any]:
        """One line of `medley leaks --json`."""
        return asdict(self)


def find_leaks(
    pairs: Sequence[TrainingPair],
    collection: Collection,
    *,
    threshold: float = THRESHOLD,
    whole_corpus: bool = False,
) -> list[Leak]:
    """Every leak of the pairs into a collection's split, by row and field, most similar first.

    Positives and negatives are held against the passages that the split judges or, with `whole_corpus`, against
    all of them. A passage matches with its title or without.
    """
    if not 0 < threshold <= 1:
        raise InputError(
            f"a similarity threshold of {threshold} is not above 0 and at most 1; use {THRESHOLD}."
        )
    queries = _Texts(collection.queries.items(), threshold)
    passages = _Texts(_passage_texts(collection, whole_corpus), threshold)
    return [
        Leak(row, field, collection.name, found, "exact" if exact else "near", similarity)
        for row, pair in enumerate(pairs)
        for field, text in _fields(pair)
        for found, exact, similarity in (queries if field == "query" else passages).matches(text)
    ]


def blocking(leaks: Iterable[Leak]) -> list[Leak]:
    """The leaks that make a test worthless: training queries that equal, or nearly equal, one of its queries.

    Shared passages alone do not: a model may be trained on the very corpus it will search, and the training and
    test splits of one collection share theirs by design. What must not recur is the question whose answer is
    being tested.
    """
    return [leak for leak in leaks if leak.field == "query"]


def _fields(pair: TrainingPair) -> Iterator[tuple[Field, str]]:
    yield "query", pair.query
    yield "positive", pair.positive
    for negative in pair.negatives:
        yield "negative", negative


def _passage_texts(collection: Collection, whole_corpus: bool) -> Iterator[tuple[str, str]]:
    judged = {passage_id for grades in collection.judgements.values() for passage_id in grades}
    for passage in collection.corpus:
        if whole_corpus or passage.id in judged:
            yield passage.id, passage.full_text
            if passage.title and passage.text:
                yield passage.id, passage.text


class _Texts:
    """Texts by id, searchable for exact and near duplicates.

    Near ones are found by prefix filtering (Chaudhuri, Ganti and Kaushik 2006): when two sets' Jaccard similarity
    is at least t, their ceil((1 - t) n) + 1 or so rarest elements have one in common, so only these are indexed.
    """

    def __init__(self, texts: Iterable[tuple[str, str]], threshold: float) -> None:
        self._threshold = threshold
        self._ids: dict[str, dict[str, None]] = defaultdict(dict)
        for text_id, text in texts:
            if normal := normal_form(text):
                self._ids[normal][text_id] = None
        self._normals = list(self._ids)
        self._sets = [shingles(normal) for normal in self._normals]
        self._frequency = Counter(shingle for elements in self._sets for shingle in elements)
        self._postings: dict[str, list[int]] = defaultdict(list)
        for position, elements in enumerate(self._sets):
            for shingle in self._prefix(elements):
                self._postings[shingle].append(position)
        self._matches = lru_cache(maxsize=100_000)(self._find)

    def matches(self, text: str) -> list[tuple[str, bool, float]]:
        """Id, whether exact, and similarity of each text that equals this one or nearly does; most similar first."""
        return self._matches(normal_form(text))

    def _find(self, normal: str) -> list[tuple[str, bool, float]]:
        best = {text_id: (True, 1.0) for text_id in self._ids.get(normal, ())}
        own = self._shingles(normal)
        candidates = {
            position for shingle in self._prefix(own) for position in self._postings.get(shingle, ())
        }
        for position in candidates:
            similarity = jaccard(own, self._sets[position])
            if similarity >= self._threshold:
                for text_id in self._ids[self._normals[position]]:
                    best[text_id] = max(best.get(text_id, (False, 0.0)), (False, similarity))
        return [
            (text_id, *found)
            for text_id, found in sorted(best.items(), key=lambda item: (-item[1][1], item[0]))
        ]

    def _shingles(self, normal: str) -> frozenset[str]:
        """A text's shingles, or none as soon as too many occur in no text here for a match; spares most of the work."""
        own: set[str] = set()
        allowed = (1 - self._threshold) * max(2, normal.count(" ") - 1) + 1e-9
        strangers = 0
        for shingle in runs_of_words(normal):
            if shingle not in own:
                own.add(shingle)
                strangers += shingle not in self._frequency
                if strangers > allowed:
                    return frozenset()
        return frozenset(own)

    def _prefix(self, elements: frozenset[str]) -> list[str]:
        rarest_first = sorted(elements, key=lambda shingle: (self._frequency[shingle], shingle))
        return rarest_first[: len(elements) - math.ceil(self._threshold * len(elements) - 1e-9) + 1]
