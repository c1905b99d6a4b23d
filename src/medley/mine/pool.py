"""What is searched: the candidates and, scored but never taken, the positives that are not among them.

In: pairs and passages, each read once or twice from the start. Kept in memory for each passage: its id and two
fingerprints; for each pair: two fingerprints; and the texts of the positives that no passage holds. Texts are
compared by fingerprints of their normal forms (64 bits: a million texts agree by chance with probability below 1e-7).
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache

import numpy as np

from medley.collections import Passage
from medley.errors import PairsError
from medley.overlap import normal_form, shingles
from medley.pairs import TrainingPair

EMPTY = 0
"""The fingerprint of a text without a word."""
TEXTS_KEPT = 10_000
"""Passages whose texts are remembered: the same ones are found for many queries."""


def digest(text: str) -> int:
    """64 bits of a text's normal form."""
    normal = normal_form(text)
    return _bits(normal) if normal else EMPTY


def _bits(text: str) -> int:
    return int.from_bytes(
        hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little"
    )


class Pool:
    """Positions 0 to `candidates` - 1 are the passages that may become negatives; extra positives come after."""

    def __init__(self, pairs: Iterable[TrainingPair], passages: Sequence[Passage] | None) -> None:
        """Raises PairsError when there are no pairs."""
        own_positives = self._read_pairs(pairs, keep_texts=passages is None)
        self._passages: Sequence[Passage] = (
            [Passage(f"{key:016x}", text) for key, text in own_positives.items()]
            if passages is None
            else passages
        )
        self.candidates = len(self._passages)
        self.ids: list[str] = []
        self._read_passages(set(self._row_positives))
        self._extra = self._positives_outside(pairs)
        self.passage = lru_cache(maxsize=TEXTS_KEPT)(self._passage)
        self.positive_shingles = lru_cache(maxsize=TEXTS_KEPT)(self._positive_shingles)

    def _read_pairs(self, pairs: Iterable[TrainingPair], *, keep_texts: bool) -> dict[int, str]:
        queries, positives = array("Q"), array("Q")
        texts: dict[int, str] = {}
        for pair in pairs:
            key = digest(pair.positive)
            queries.append(digest(pair.query) or _bits(pair.query))
            positives.append(key)
            if keep_texts:  # of texts with one normal form the smallest, whatever the order of the rows
                texts[key] = min(texts.get(key, pair.positive), pair.positive)
        if not queries:
            raise PairsError("there are no pairs to mine negatives for; give at least one.")
        self._row_queries = np.frombuffer(queries, dtype=np.uint64)
        self._row_positives = positives
        self._rows_by_query = np.argsort(self._row_queries, kind="stable")
        self._sorted_queries = self._row_queries[self._rows_by_query]
        return texts

    def _read_passages(self, wanted: set[int]) -> None:
        self._digests = np.empty((self.candidates, 2), dtype=np.uint64)
        self._position_of: dict[int, int] = {}
        for position, passage in enumerate(self._passages):
            self.ids.append(passage.id)
            whole = digest(passage.full_text)
            text = digest(passage.text) if passage.title else whole
            self._digests[position] = whole, text
            for key in (whole, text):
                if key in wanted:
                    self._position_of.setdefault(key, position)

    def _positives_outside(self, pairs: Iterable[TrainingPair]) -> list[str]:
        missing = set(self._row_positives) - self._position_of.keys()
        texts: dict[int, str] = {}
        for pair in pairs if missing else ():
            key = digest(pair.positive)
            if key in missing:
                texts[key] = min(texts.get(key, pair.positive), pair.positive)
        for offset, key in enumerate(sorted(texts)):
            self._position_of[key] = self.candidates + offset
        return [texts[key] for key in sorted(texts)]

    @property
    def rows(self) -> int:
        """The number of pairs."""
        return len(self._row_positives)

    @property
    def queries(self) -> int:
        """The number of distinct queries; case and punctuation aside."""
        return int(np.count_nonzero(np.diff(self._sorted_queries))) + 1

    @property
    def corpus(self) -> Sequence[Passage]:
        """The candidates, in order."""
        return self._passages

    @property
    def extra(self) -> list[Passage]:
        """The positives that no candidate holds."""
        return [Passage(f"positive {offset}", text) for offset, text in enumerate(self._extra)]

    def everything(self) -> Iterator[Passage]:
        """Candidates, then extra positives."""
        yield from self._passages
        yield from self.extra

    def digests(self, positions: np.ndarray) -> list[list[int]]:
        """Fingerprints of candidates, with their titles and without."""
        found: list[list[int]] = self._digests[positions].tolist()
        return found

    def query_of(self, row: int) -> int:
        """The fingerprint of a pair's query."""
        return int(self._row_queries[row])

    def positive_of(self, row: int) -> int:
        """The fingerprint of a pair's positive."""
        return self._row_positives[row]

    def positives_of(self, rows: Sequence[int]) -> list[dict[int, int]]:
        """For each of these pairs the positives of all pairs with its query: fingerprint and position."""
        keys = self._row_queries[np.array(rows, dtype=np.int64)]
        starts = np.searchsorted(self._sorted_queries, keys, side="left").tolist()
        stops = np.searchsorted(self._sorted_queries, keys, side="right").tolist()
        found = []
        for start, stop in zip(starts, stops, strict=True):
            positives = {self._row_positives[row] for row in self._rows_by_query[start:stop].tolist()}
            found.append({key: self._position_of[key] for key in sorted(positives)})
        return found

    def _passage(self, position: int) -> Passage:
        if position < self.candidates:
            return self._passages[position]
        return Passage(f"positive {position - self.candidates}", self._extra[position - self.candidates])

    def _positive_shingles(self, key: int) -> frozenset[str]:
        """The shingles of the positive with this fingerprint: of the passage there, with or without its title."""
        passage = self.passage(self._position_of[key])
        return shingles(normal_form(passage.full_text if digest(passage.full_text) == key else passage.text))
