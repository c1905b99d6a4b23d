"""Scores: rankings held against judgements, by the library and functions that MTEB itself scores with.

In: collections and a retriever (or BM25). Out: for each collection its means and every query's own scores, in the
form of results.json. The means are over queries with at least one relevant passage.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medley.collections import Collection
from medley.errors import CollectionError
from medley.search import Ranking, Rankings, rank_with_bm25, rank_with_retriever

if TYPE_CHECKING:
    from medley.encoder import Retriever

DEPTH = 100
"""Ranks that are scored. MTEB ranks 1,000; measures at 10 and 100 are the same for both."""
TOP = 3
METRICS = {
    "ndcg_at_10": "ndcg_cut_10",
    "recall_at_10": "recall_10",
    "recall_at_100": "recall_100",
    "map": "map_cut_100",
}
"""Our name of a measure, and trec_eval's. Further: mrr_at_10 and judged_at_10."""


@dataclass(frozen=True)
class TaskScores:
    """Scores of one model on one split of one collection, all between 0 and 1.

    `means` and each value of `per_query` hold ndcg_at_10, recall_at_10, recall_at_100, mrr_at_10, map (average
    precision over the first 100: MTEB's map_at_100) and judged_at_10 (share of the first ten that anyone judged:
    where it is low, the other figures say little).
    """

    split: str
    means: Mapping[str, float]
    per_query: Mapping[str, Mapping[str, float]]
    top: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Ids of the TOP passages ranked first for each query, to look at what went wrong."""
    dangling: int = 0
    """Judgements that were left out, since their query or passage is not there."""

    @property
    def ndcg_at_10(self) -> float:
        """The field's headline measure."""
        return self.means["ndcg_at_10"]

    def as_json(self) -> dict[str, Any]:
        """A task of results.json."""
        per_query = {query_id: dict(scores) for query_id, scores in self.per_query.items()}
        left_out = {"dangling_judgements": self.dangling} if self.dangling else {}
        return {"split": self.split, **self.means, "queries": len(per_query), **left_out, "per_query": per_query,
                "top": {query_id: list(ids) for query_id, ids in self.top.items()}}  # fmt: skip


def score_rankings(collection: Collection, rankings: Rankings) -> TaskScores:
    """Score rankings of a collection's queries; a query without a ranking, or with an empty one, scores 0.

    trec_eval sorts by score and breaks ties by descending id; it is given ranks for scores, so that exactly the
    order of the ranking is scored.
    """
    import pytrec_eval

    judged = {
        query_id: dict(scores)
        for query_id, scores in collection.judgements.items()
        if any(grade > 0 for grade in scores.values())
    }
    if not judged:
        raise CollectionError(
            f"{collection.name}:{collection.split}: no query has a relevant passage; add judgements."
        )
    cut = {query_id: list(rankings.get(query_id, ()))[:DEPTH] for query_id in judged}
    evaluator = pytrec_eval.RelevanceEvaluator(judged, {"ndcg_cut.10", "recall.10,100", "map_cut.100"})
    scored = evaluator.evaluate({query_id: _by_rank(ranking) for query_id, ranking in cut.items() if ranking})
    per_query = {
        query_id: {
            **{ours: float(scored.get(query_id, {}).get(theirs, 0.0)) for ours, theirs in METRICS.items()},
            "mrr_at_10": _reciprocal_rank(cut[query_id][:10], grades),
            "judged_at_10": _judged_share(cut[query_id][:10], grades),
        }
        for query_id, grades in judged.items()
    }
    names = next(iter(per_query.values()))
    means = {name: sum(scores[name] for scores in per_query.values()) / len(per_query) for name in names}
    top = {query_id: [passage_id for passage_id, _ in ranking[:TOP]] for query_id, ranking in cut.items()}
    return TaskScores(collection.split, means, per_query, top, collection.dangling)


def _by_rank(ranking: Ranking) -> dict[str, float]:
    return {passage_id: float(len(ranking) - rank) for rank, (passage_id, _) in enumerate(ranking)}


def _reciprocal_rank(ranking: Ranking, grades: Mapping[str, int]) -> float:
    for rank, (passage_id, _) in enumerate(ranking, start=1):
        if grades.get(passage_id, 0) > 0:
            return 1.0 / rank
    return 0.0


def _judged_share(ranking: Ranking, grades: Mapping[str, int]) -> float:
    return sum(passage_id in grades for passage_id, _ in ranking) / len(ranking) if ranking else 0.0


def evaluate_retriever(
    retriever: Retriever,
    collections: Sequence[Collection],
    *,
    instructions: Mapping[str, str] | None = None,
    store: Path | None = None,
) -> dict[str, TaskScores]:
    """Score a retriever on collections; the result is keyed by collection name (with split, if two share a name).

    `instructions` replaces the retriever's own for collections named there; `store` is a folder that keeps
    passage vectors from call to call.
    """
    instructions = instructions or {}
    return {
        name: score_rankings(
            collection,
            rank_with_retriever(
                retriever, collection, DEPTH, instruction=instructions.get(collection.name), store=store
            ),
        )
        for name, collection in by_name(collections).items()
    }


def evaluate_bm25(collections: Sequence[Collection]) -> dict[str, TaskScores]:
    """Score BM25 on collections."""
    return {
        name: score_rankings(collection, rank_with_bm25(collection, DEPTH))
        for name, collection in by_name(collections).items()
    }


def by_name(collections: Sequence[Collection]) -> dict[str, Collection]:
    """Collections under their names; under `name:split` where a name comes twice.

    Raises CollectionError when the same collection and split come twice.
    """
    names = [collection.name for collection in collections]
    named: dict[str, Collection] = {}
    for collection in collections:
        key = (
            collection.name if names.count(collection.name) == 1 else f"{collection.name}:{collection.split}"
        )
        if key in named:
            raise CollectionError(f"{key}: given twice; name each collection and split once.")
        named[key] = collection
    return named
