"""Dev pools: the queries and passages on which merge candidates are scored, and the score, nDCG@10.

A pool holds a dev split's queries (a seeded sample where there are many), their judged passages and those
that BM25 or other rankers put high, up to a size; a small corpus is taken whole. It is fixed before the
search, so all candidates rank the same passages. Gains are linear and the discount log2(rank + 1), as in
trec_eval; ties go to the passage id that sorts first. Several pools make one score: their weighted mean, or the worst.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from medley.collections import Collection, Judgements, Passage
from medley.encoder import Retriever, encode_passages, encode_queries
from medley.fingerprint import fingerprint
from medley.noticed import hand_on, noticing
from medley.progress import say
from medley.search import Ranking, rank_with_bm25, similarity_of

CUTOFF = 10
Objective = Literal["mean", "worst"]
"""What several collections' scores make: their mean by weight, or the lowest of them."""


@dataclass(frozen=True)
class DevPool:
    """The queries and passages of one dev collection; `passages` are in the order of their ids.

    `weight` is its share of the mean, relative to the others'; `general` tells it from the domain's collections.
    """

    name: str
    query_ids: tuple[str, ...]
    queries: tuple[str, ...]
    passages: tuple[Passage, ...]
    judgements: Judgements
    instruction: str | None = None
    weight: float = 1.0
    general: bool = False

    @property
    def identity(self) -> str:
        """Content fingerprint."""
        texts = [[passage.id, passage.full_text] for passage in self.passages]
        judged = {query_id: dict(self.judgements[query_id]) for query_id in self.query_ids}
        return fingerprint([self.query_ids, self.queries, texts, judged, self.instruction])


@dataclass(frozen=True)
class PoolVectors:
    """A pool under one candidate: `queries` (Q, H) and `passages` (D, H), float32, of length 1 where cosine
    ranks."""

    queries: np.ndarray
    passages: np.ndarray


@dataclass(frozen=True)
class CandidateScore:
    """nDCG@10 of a candidate: over dev collections, each one's mean over queries, and (Q,) of each query.

    `shares` is what each collection counts in `score`, summing to one.
    """

    score: float
    scores: Mapping[str, float]
    per_query: Mapping[str, np.ndarray] = field(default_factory=dict, compare=False, repr=False)
    shares: Mapping[str, float] = field(default_factory=dict, compare=False, repr=False)


def build_pool(
    collection: Collection,
    *,
    max_passages: int = 2000,
    max_queries: int = 200,
    rankings: Sequence[Mapping[str, Ranking]] | None = None,
    instruction: str | None = None,
    seed: int = 13,
    weight: float = 1.0,
    general: bool = False,
) -> DevPool:
    """Choose a pool of a dev collection.

    `rankings` (by query id, best first) say which passages are hard; by default they are BM25's. Judged
    passages come first, then each query's next best of each ranking in turn until the pool is full. Queries
    without a relevant passage are left out, as no ranking of them scores.
    """
    judged_queries = pooled_queries(collection, max_queries, seed)
    if len(collection.corpus) <= max_passages:
        passages = list(collection.corpus)
    else:
        wanted = {passage_id for query_id in judged_queries for passage_id in collection.judgements[query_id]}
        if len(wanted) >= max_passages:
            say(
                f"{collection.name}:{collection.split}: {len(wanted)} judged passages fill a pool of {max_passages}; "
                "nothing else that is hard is in it, so it says little of the whole corpus; make pool_size larger."
            )
        if rankings is None:
            rankings = [rank_with_bm25(collection, max(CUTOFF, max_passages // len(judged_queries) + 1))]
        _fill(wanted, rankings, judged_queries, max_passages)
        passages = [passage for passage in collection.corpus if passage.id in wanted]
    kept = {passage.id for passage in passages}
    return DevPool(
        name=f"{collection.name}:{collection.split}",
        query_ids=tuple(judged_queries),
        queries=tuple(collection.queries[query_id] for query_id in judged_queries),
        passages=tuple(sorted(passages, key=lambda passage: passage.id)),
        judgements={
            query_id: {p: grade for p, grade in collection.judgements[query_id].items() if p in kept}
            for query_id in judged_queries
        },
        instruction=instruction,
        weight=weight,
        general=general,
    )


def pooled_queries(collection: Collection, max_queries: int, seed: int) -> list[str]:
    """The queries of a pool: those with a relevant passage, a seeded sample where there are many."""
    judged = sorted(query_id for query_id in collection.queries if collection.positives(query_id))
    if len(judged) <= max_queries:
        return judged
    chosen = np.random.default_rng(seed).choice(len(judged), max_queries, replace=False)
    return [judged[index] for index in sorted(chosen)]


def _fill(
    wanted: set[str], rankings: Sequence[Mapping[str, Ranking]], query_ids: Sequence[str], max_passages: int
) -> None:
    """Add ranked passages to the wanted ones, rank by rank, so that every query gets its hardest first."""
    lists = [[passage_id for passage_id, _ in ranking[q]] for q in query_ids for ranking in rankings]
    for rank in range(max((len(ranked) for ranked in lists), default=0)):
        for ranked in lists:
            if len(wanted) >= max_passages:
                return
            if rank < len(ranked):
                wanted.add(ranked[rank])


def embed_pool(retriever: Retriever, pool: DevPool) -> PoolVectors:
    """Encode a pool's queries and passages, normalised where the retriever ranks by cosine."""
    with noticing() as noticed:
        queries_QH = encode_queries(retriever, pool.queries, instruction=pool.instruction)
        passages_DH = encode_passages(retriever, pool.passages)
    hand_on(noticed, pool.name)  # a candidate after another encodes the same texts
    if similarity_of(retriever) == "cosine":
        return PoolVectors(unit(queries_QH), unit(passages_DH))
    return PoolVectors(queries_QH, passages_DH)


def unit(vectors_NH: np.ndarray) -> np.ndarray:
    """Vectors scaled to length 1; a zero vector stays zero."""
    lengths_N = np.linalg.norm(vectors_NH, axis=1, keepdims=True)
    return np.divide(vectors_NH, lengths_N, out=np.zeros_like(vectors_NH), where=lengths_N > 0)


def score_candidate(retriever: Retriever, pools: Sequence[DevPool]) -> CandidateScore:
    """Encode and score a retriever on every pool."""
    return score_vectors(pools, [embed_pool(retriever, pool) for pool in pools])


def score_vectors(
    pools: Sequence[DevPool], vectors: Sequence[PoolVectors], *, objective: Objective = "mean"
) -> CandidateScore:
    """Score already encoded pools, in the order of the pools."""
    per_query = {
        pool.name: ndcg_at_10(encoded.queries @ encoded.passages.T, judged_pairs(pool))
        for pool, encoded in zip(pools, vectors, strict=True)
    }
    return score_queries(pools, per_query, objective=objective)


def score_queries(
    pools: Sequence[DevPool], per_query: Mapping[str, np.ndarray], *, objective: Objective = "mean"
) -> CandidateScore:
    """The score that the queries' scores make; a collection without a query among them does not count."""
    counted = [pool for pool in pools if len(per_query[pool.name])]
    means_P = np.array([per_query[pool.name].mean() for pool in counted])
    score, shares_P = combine(means_P, np.array([pool.weight for pool in counted]), objective)
    names = [pool.name for pool in counted]
    return CandidateScore(
        float(score),
        dict(zip(names, means_P.tolist(), strict=True)),
        {name: per_query[name] for name in names},
        dict(zip(names, shares_P.tolist(), strict=True)),
    )


def combine(
    scores_XP: np.ndarray, weights_P: np.ndarray, objective: Objective
) -> tuple[np.ndarray, np.ndarray]:
    """One score from the collections' (along the last axis), and the share (X, P) that each one has in it."""
    if objective == "worst":
        shares_XP = np.eye(scores_XP.shape[-1])[scores_XP.argmin(axis=-1)]
    else:
        shares_XP = np.broadcast_to(weights_P / weights_P.sum(), scores_XP.shape)
    return (scores_XP * shares_XP).sum(axis=-1), shares_XP


def standard_error(a: CandidateScore, b: CandidateScore) -> float:
    """Standard error of the difference between two candidates' scores: queries paired, collections by a's shares."""
    variances = [
        share**2 * np.var(a.per_query[name] - b.per_query[name], ddof=1) / len(a.per_query[name])
        for name, share in a.shares.items()
        if len(a.per_query[name]) > 1
    ]
    return float(np.sqrt(np.sum(variances)))


def split_queries(pools: Sequence[DevPool], share: float, seed: int) -> dict[str, np.ndarray]:
    """For each pool which queries (Q,) are held out from the search to confirm what it found: a seeded share.

    At least one query stays with the search; with a share of 0 none is held out.
    """
    held_out = {}
    for index, pool in enumerate(pools):
        count = len(pool.query_ids)
        order = np.random.default_rng([seed, index]).permutation(count)
        mask_Q = np.zeros(count, dtype=bool)
        mask_Q[order[: min(round(share * count), count - 1)]] = True
        held_out[pool.name] = mask_Q
    return held_out


@dataclass(frozen=True)
class JudgedPairs:
    """A pool's relevant pairs: row of the query, column of the passage, gain; `ideal` (Q,) is the best
    DCG@10."""

    rows: np.ndarray
    columns: np.ndarray
    gains: np.ndarray
    ideal: np.ndarray


def judged_pairs(pool: DevPool) -> JudgedPairs:
    """The relevant pairs of a pool as arrays."""
    column_of = {passage.id: column for column, passage in enumerate(pool.passages)}
    rows, columns, gains = [], [], []
    ideal_Q = np.zeros(len(pool.query_ids))
    for row, query_id in enumerate(pool.query_ids):
        relevant = {p: grade for p, grade in pool.judgements[query_id].items() if grade > 0}
        best = sorted(relevant.values(), reverse=True)[:CUTOFF]
        ideal_Q[row] = sum(grade / np.log2(rank + 2) for rank, grade in enumerate(best))
        for passage_id, grade in relevant.items():
            rows.append(row)
            columns.append(column_of[passage_id])
            gains.append(grade)
    return JudgedPairs(
        np.array(rows, dtype=int), np.array(columns, dtype=int), np.array(gains, float), ideal_Q
    )


def ndcg_at_10(scores_QD: np.ndarray, judged: JudgedPairs) -> np.ndarray:
    """nDCG@10 of each query (Q,), from similarities whose columns are in the order of the passages' ids.

    Only relevant passages need a rank: how many score higher, or equally with an earlier id. Queries without
    a relevant passage score 0.
    """
    dcg_Q = np.zeros(len(scores_QD))
    for start in range(0, len(judged.rows), 1024):
        part = slice(start, start + 1024)
        rows, columns = judged.rows[part], judged.columns[part]
        scores_PD = scores_QD[rows]
        own_P1 = scores_PD[np.arange(len(rows)), columns][:, None]
        before_P = (scores_PD > own_P1).sum(axis=1)
        before_P += ((scores_PD == own_P1) & (np.arange(scores_QD.shape[1]) < columns[:, None])).sum(axis=1)
        counted = before_P < CUTOFF
        np.add.at(dcg_Q, rows[counted], judged.gains[part][counted] / np.log2(before_P[counted] + 2))
    return np.divide(dcg_Q, judged.ideal, out=np.zeros_like(dcg_Q), where=judged.ideal > 0)
