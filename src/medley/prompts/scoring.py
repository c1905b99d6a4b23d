"""The one scorer of instructions: nDCG of every dev query under every candidate.

In: a retriever and dev sets. Out: scores (C, Q). Passages are encoded once, in shards whose name is the fingerprint of
model and texts; a candidate costs only its queries, and the candidates of one call share batches and, where attention
is causal, the computation of their prefix (prefix.py). Nothing is computed twice: scores are kept by instruction.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from medley.collections import Passage
from medley.encoder import Retriever
from medley.errors import InputError
from medley.prefix import encode_under
from medley.search import comparable, similarity_of
from medley.search.shards import encode_corpus

Grade = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""(similarities (R, D) to all passages, rows of the queries (R,)) -> each query's score (R,)."""
CHUNK_BYTES = 256 << 20
"""Query vectors in memory at once."""


@dataclass(frozen=True)
class DevSet:
    """Queries and passages of a dev collection. `relevant` has for each query the columns of its relevant passages,
    the best first; passages are in the order of their ids.
    """

    name: str
    query_ids: tuple[str, ...]
    queries: tuple[str, ...]
    passages: tuple[Passage, ...]
    relevant: tuple[tuple[int, ...], ...]
    grade: Grade


@dataclass(frozen=True)
class DevQuery:
    """One query among all: its dev set, its place there."""

    dev: DevSet
    row: int

    @property
    def text(self) -> str:
        """The query."""
        return self.dev.queries[self.row]

    @property
    def id(self) -> str:
        """Its id."""
        return self.dev.query_ids[self.row]


class Scorer:
    """Scores instructions on dev sets; the queries of all sets stand in one line, Q in number.

    `store` is a folder that keeps passage vectors from one call to the next. Raises InputError without dev queries.
    """

    def __init__(self, retriever: Retriever, sets: Sequence[DevSet], *, store: Path | None = None) -> None:
        self.queries = [DevQuery(dev, row) for dev in sets for row in range(len(dev.queries))]
        if not self.queries:
            raise InputError("the dev collections hold no query with a relevant passage; name others.")
        self.encoded = 0
        self._retriever = retriever
        self._similarity = similarity_of(retriever)
        self._sets = tuple(sets)
        self._passages_DH = [
            comparable(np.asarray(encode_corpus(retriever, dev.passages, store=store)), self._similarity)
            for dev in sets
        ]
        self._known: dict[str, np.ndarray] = {}

    @property
    def every_row(self) -> np.ndarray:
        """The places of all queries."""
        return np.arange(len(self.queries))

    def scores(self, instructions: Sequence[str], rows: np.ndarray | None = None) -> np.ndarray:
        """nDCG@10 of queries under instructions: float64 of shape (C, R). `rows` default to all queries."""
        rows = self.every_row if rows is None else np.asarray(rows)
        wanted = list(dict.fromkeys(instructions))
        for instruction in wanted:
            self._known.setdefault(instruction, np.full(len(self.queries), np.nan))
        missing = [text for text in wanted if np.isnan(self._known[text][rows]).any()]
        dimension = self._passages_DH[0].shape[1]
        at_once = max(1, CHUNK_BYTES // (4 * dimension * max(1, len(rows))))
        for start in range(0, len(missing), at_once):
            self._fill(missing[start : start + at_once], rows)
        return np.stack([self._known[text][rows] for text in instructions])

    def weights(self, rows: np.ndarray) -> np.ndarray:
        """What each query counts in a mean, so that collections weigh the same: (R,), summing to 1."""
        names = [self.queries[row].dev.name for row in rows]
        sets = set(names)
        return np.array([1 / (len(sets) * names.count(name)) for name in names]) if names else np.zeros(0)

    def means(self, instructions: Sequence[str], rows: np.ndarray | None = None) -> np.ndarray:
        """The mean score of each instruction, collections weighing the same: (C,)."""
        rows = self.every_row if rows is None else np.asarray(rows)
        return self.scores(instructions, rows) @ self.weights(rows)

    def similarities(self, instruction: str, row: int) -> np.ndarray:
        """How near each passage of its dev set is to a query: (D,)."""
        query = self.queries[row]
        queries_QH = encode_under(self._retriever, [query.text], [instruction])[0]
        return self._passages(query.dev) @ comparable(queries_QH, self._similarity)[0]

    def _passages(self, dev: DevSet) -> np.ndarray:
        return self._passages_DH[self._sets.index(dev)]

    def _fill(self, instructions: Sequence[str], rows: np.ndarray) -> None:
        """Encode and grade what is not known yet, set by set."""
        start = 0
        for dev, passages_DH in zip(self._sets, self._passages_DH, strict=True):
            own = rows[(rows >= start) & (rows < start + len(dev.queries))]
            new = own[[any(np.isnan(self._known[text][row]) for text in instructions) for row in own]]
            local = new - start
            if len(new):
                texts = [dev.queries[row] for row in local]
                queries_CQH = encode_under(self._retriever, texts, instructions)
                self.encoded += len(texts) * len(instructions)
                for instruction, queries_QH in zip(instructions, queries_CQH, strict=True):
                    similarities_QD = comparable(queries_QH, self._similarity) @ passages_DH.T
                    self._known[instruction][new] = dev.grade(similarities_QD, local)
            start += len(dev.queries)
