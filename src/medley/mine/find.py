"""The ranking of candidates for each query, and what the query's positives score beside them.

In: queries a batch at a time. Out: `Found`. Two finders: BM25 over the pool, and vectors of the pool (a retriever
encodes them, or they are known). Both are exact: equal scores by ascending passage id.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from medley.mine.pool import Pool
from medley.search import (
    Bm25Index,
    Nearest,
    PassageOrder,
    Similarity,
    Vectors,
    comparable,
    encode_corpus,
    nearest,
    similarity_of,
)

if TYPE_CHECKING:
    from medley.encoder import Retriever

Query = tuple[str, str]
"""Text and instruction."""


@dataclass(frozen=True)
class Found:
    """The best candidates of some queries, and for each query the scores of its positives, in the order asked for."""

    nearest: Nearest
    positives: list[np.ndarray]


class Finder(Protocol):
    """Ranks candidates for queries."""

    def __call__(self, queries: Sequence[Query], positives: Sequence[Sequence[int]], depth: int) -> Found:
        """The `depth` best candidates of each query; and the scores of the pool's positions in `positives`."""
        ...


def find_by_bm25(pool: Pool) -> Finder:
    """Index the pool, extra positives included: they are scored in the same index."""
    index = Bm25Index(pool.everything())

    def find(queries: Sequence[Query], positives: Sequence[Sequence[int]], depth: int) -> Found:
        texts = [text for text, _ in queries]
        scores = [
            index.scores(text, np.array(positions, dtype=np.int64))
            for text, positions in zip(texts, positives, strict=True)
        ]
        return Found(index.nearest(texts, depth, among_first=pool.candidates), scores)

    return find


def find_by_model(pool: Pool, retriever: Retriever, store: Path | None) -> Finder:
    """Encode the pool; `store` keeps the candidates' vectors, so that a killed encoding goes on where it was."""
    from medley.encoder import encode_queries_under

    return find_by_vectors(
        pool,
        encode_corpus(retriever, pool.corpus, store=store, label="passages to mine"),
        np.asarray(encode_corpus(retriever, pool.extra, label="positives outside the corpus")),
        partial(encode_queries_under, retriever),
        similarity_of(retriever),
    )


def find_by_vectors(
    pool: Pool,
    candidates_DH: Vectors,
    extra_EH: np.ndarray,
    encode: Callable[[Sequence[Query]], np.ndarray],
    similarity: Similarity,
) -> Finder:
    """Search vectors that are known already, of the candidates and of the extra positives."""
    order = PassageOrder(pool.ids)

    def vectors_at(positions: np.ndarray) -> np.ndarray:
        vectors = np.empty((len(positions), extra_EH.shape[1]), dtype=np.float32)
        inside = positions < pool.candidates
        vectors[inside] = candidates_DH[positions[inside]]
        vectors[~inside] = extra_EH[positions[~inside] - pool.candidates]
        return comparable(vectors, similarity)

    def find(queries: Sequence[Query], positives: Sequence[Sequence[int]], depth: int) -> Found:
        queries_QH = comparable(encode(queries), similarity)
        counts = [len(positions) for positions in positives]
        positives_PH = vectors_at(np.array([p for positions in positives for p in positions], dtype=np.int64))
        scores_P = np.einsum("ph,ph->p", positives_PH, np.repeat(queries_QH, counts, axis=0))
        return Found(
            nearest(queries_QH, candidates_DH, order, depth, similarity=similarity),
            np.split(scores_P, np.cumsum(counts)[:-1]),
        )

    return find
