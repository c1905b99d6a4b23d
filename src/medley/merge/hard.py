"""Which passages are hard for a dev pool: what BM25, the base and every expert rank high among a preselection.

Ranking a whole corpus by every expert would cost more than the search. So BM25 preselects: judged passages first,
then each query's next best, `wider` times as many as the pool will hold; the retrievers rank those only. `agreement`
says how well pooled nDCG stands for nDCG on the whole corpus.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from itertools import chain

import numpy as np

from medley.collections import Collection, in_memory
from medley.encoder import Retriever, encode_passages, encode_queries
from medley.merge.pool import DevPool, build_pool, score_vectors, unit
from medley.merge.pool import PoolVectors as Vectors
from medley.search import rank_by_vectors, rank_with_bm25, similarity_of

WIDER = 3
"""How many times more passages than the pool will hold BM25 preselects."""
DEPTH = 100
"""Ranks of each ranker that a pool may be filled with."""


def hard_pool(
    collection: Collection,
    retrievers: Iterable[Retriever],
    *,
    max_passages: int,
    max_queries: int,
    instruction: str | None = None,
    seed: int = 13,
    weight: float = 1.0,
    general: bool = False,
    wider: int = WIDER,
) -> DevPool:
    """A pool filled with what BM25 and each retriever in turn rank highest; encodes the preselection once each.

    `retrievers` may be one object that changes between the turns (the base with one expert after another); without
    any the pool is BM25's (pool.build_pool).
    """
    build = partial(
        build_pool,
        max_queries=max_queries,
        instruction=instruction,
        seed=seed,
        weight=weight,
        general=general,
    )
    turns = iter(retrievers)
    first = next(turns, None) if len(collection.corpus) > max_passages else None
    if first is None:
        return build(collection, max_passages=max_passages)
    preselected = build(collection, max_passages=wider * max_passages)
    ids = [passage.id for passage in preselected.passages]
    within = in_memory(
        collection.name, collection.split, preselected.passages,
        dict(zip(preselected.query_ids, preselected.queries, strict=True)), preselected.judgements,
    )  # fmt: skip
    rankings = [rank_with_bm25(within, DEPTH)]
    for retriever in chain([first], turns):
        rankings.append(
            rank_by_vectors(
                preselected.query_ids,
                encode_queries(retriever, preselected.queries, instruction=instruction),
                ids,
                encode_passages(retriever, preselected.passages),
                DEPTH,
                similarity=similarity_of(retriever),
            )
        )
    return build(within, max_passages=max_passages, rankings=rankings)


def agreement(
    collection: Collection, pool: DevPool, retrievers: Iterable[Retriever]
) -> list[tuple[float, float]]:
    """For each retriever its nDCG@10 in the pool and on the whole corpus, for the pool's queries."""
    whole = DevPool(
        pool.name, pool.query_ids, pool.queries, tuple(sorted(collection.corpus, key=lambda p: p.id)),
        {query_id: collection.judgements[query_id] for query_id in pool.query_ids}, pool.instruction,
    )  # fmt: skip
    kept = {passage.id for passage in pool.passages}
    in_pool_D = np.array([passage.id in kept for passage in whole.passages])
    scores = []
    for retriever in retrievers:
        queries_QH = encode_queries(retriever, pool.queries, instruction=pool.instruction)
        passages_DH = encode_passages(retriever, whole.passages)
        if similarity_of(retriever) == "cosine":
            queries_QH, passages_DH = unit(queries_QH), unit(passages_DH)
        pooled = score_vectors([pool], [Vectors(queries_QH, passages_DH[in_pool_D])])
        scores.append((pooled.score, score_vectors([whole], [Vectors(queries_QH, passages_DH)]).score))
    return scores


def rank_correlation(a: Sequence[float] | np.ndarray, b: Sequence[float] | np.ndarray) -> float:
    """Spearman's: Pearson's correlation of the ranks, ties sharing their mean rank."""
    return float(np.corrcoef(_ranks(np.asarray(a)), _ranks(np.asarray(b)))[0, 1])


def _ranks(values_N: np.ndarray) -> np.ndarray:
    _, inverse_N, counts = np.unique(values_N, return_inverse=True, return_counts=True)
    last = counts.cumsum()
    return (last - (counts - 1) / 2)[inverse_N]
