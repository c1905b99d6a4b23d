"""Rankings of a collection's corpus for its queries: by a retriever, by vectors that are known, or by BM25."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from medley.collections import Collection
from medley.search.blocks import Similarity, Vectors
from medley.search.bm25 import Bm25Index
from medley.search.dense import exact_top_k, similarity_of
from medley.search.order import Ranking
from medley.search.shards import corpus_ids, encode_corpus

if TYPE_CHECKING:
    from medley.encoder import Retriever


def rank_by_vectors(
    query_ids: Sequence[str],
    queries_QH: np.ndarray,
    passage_ids: Sequence[str],
    passages_DH: Vectors,
    k: int,
    *,
    similarity: Similarity = "dot",
) -> dict[str, Ranking]:
    """Rankings of queries whose vectors, like the passages', are known already; see `exact_top_k`."""
    rankings = exact_top_k(queries_QH, passages_DH, passage_ids, k, similarity=similarity)
    return dict(zip(query_ids, rankings, strict=True))


def rank_with_retriever(
    retriever: Retriever,
    collection: Collection,
    k: int,
    *,
    instruction: str | None = None,
    passage_vectors: Vectors | None = None,
    store: Path | None = None,
) -> dict[str, Ranking]:
    """Rank a collection's corpus for each of its queries; `instruction` replaces the retriever's own.

    `passage_vectors` (D, H) in the order of the corpus spare encoding it again; `store` is a folder that keeps
    them from run to run (see `encode_corpus`).
    """
    from medley.encoder import encode_queries

    if passage_vectors is None:
        passage_vectors = encode_corpus(retriever, collection.corpus, store=store, label=collection.name)
    queries_QH = encode_queries(retriever, list(collection.queries.values()), instruction=instruction)
    return rank_by_vectors(
        list(collection.queries), queries_QH, corpus_ids(collection.corpus), passage_vectors, k,
        similarity=similarity_of(retriever),
    )  # fmt: skip


def rank_with_bm25(collection: Collection, k: int) -> dict[str, Ranking]:
    """Rank a collection's corpus for each of its queries by BM25."""
    rankings = Bm25Index(collection.corpus).search(list(collection.queries.values()), k)
    return dict(zip(collection.queries, rankings, strict=True))
