"""Rankings of a collection's corpus for its queries: by a retriever, by vectors that are known, or by BM25."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from medley.collections import Collection
from medley.progress import say
from medley.search.blocks import Similarity, Vectors
from medley.search.bm25 import Bm25Index
from medley.search.compressed import nearest_compressed
from medley.search.dense import exact_top_k, nearest
from medley.search.embedder import Embedder, embedder_of, passage_vectors, query_vectors
from medley.search.order import PassageOrder, Ranking
from medley.search.shards import corpus_ids

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
    vectors by text (see store.py).
    """
    return rank_with_embedder(
        embedder_of(retriever),
        collection,
        k,
        instruction=instruction,
        vectors_DH=passage_vectors,
        store=store,
    )


def rank_with_embedder(
    embedder: Embedder,
    collection: Collection,
    k: int,
    *,
    instruction: str | None = None,
    vectors_DH: Vectors | None = None,
    compression: str | None = None,
    store: Path | None = None,
) -> dict[str, Ranking]:
    """Rank a collection's corpus for each of its queries, exhaustively or through small vectors (compressed.py)."""
    if vectors_DH is None:
        vectors_DH = passage_vectors(embedder, collection, store)
    queries_QH = query_vectors(embedder, collection, instruction, store)
    order = PassageOrder(corpus_ids(collection.corpus))
    wanted = k + collection.leaves_out_own
    if compression is None:
        found = nearest(queries_QH, vectors_DH, order, wanted, similarity=embedder.similarity)
    else:
        found = nearest_compressed(
            queries_QH, vectors_DH, order, wanted, compression, similarity=embedder.similarity
        )
    rankings = [order.ranking(*row) for row in zip(found.positions_QK, found.scores_QK, strict=True)]
    return _counted(collection, dict(zip(collection.queries, rankings, strict=True)), k)


def rank_with_bm25(collection: Collection, k: int) -> dict[str, Ranking]:
    """Rank a collection's corpus for each of its queries by BM25; says for how many it finds nothing at all."""
    index = Bm25Index(collection.corpus)
    rankings = index.search(list(collection.queries.values()), k + collection.leaves_out_own)
    if unmatched := sum(not ranking for ranking in rankings):
        say(
            f"BM25 finds nothing for {unmatched:,} of {len(rankings):,} queries of {collection.name}:"
            f"{collection.split}: no passage shares a word with them, and they score 0."
        )
    return _counted(collection, dict(zip(collection.queries, rankings, strict=True)), k)


def _counted(collection: Collection, rankings: dict[str, Ranking], k: int) -> dict[str, Ranking]:
    """Rankings without each query's own passage, where the collection leaves it out."""
    if not collection.leaves_out_own:
        return rankings
    return {
        query: [entry for entry in ranking if entry[0] != query][:k] for query, ranking in rankings.items()
    }
