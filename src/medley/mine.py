"""Mining: hard negatives for training pairs, taken from a corpus by BM25 or by a retriever.

In: pairs and the passages to look in (without: all positives of the pairs). Out: the same pairs in the same order,
each with up to `per_query` negatives more, and counts of what was dropped and why.
A candidate is kept only if its score is below `margin` times the positive's (NV-Retriever, arXiv 2407.15831):
what the retriever finds about as relevant as the positive is likely relevant. For BM25 the positive is scored in
the same index.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from medley.collections import Passage
from medley.errors import ModelError, PairsError
from medley.overlap import jaccard, normal_form, shingles
from medley.pairs import TrainingPair
from medley.progress import progress

if TYPE_CHECKING:
    from medley.encoder import Retriever
    from medley.search import Ranking

QUERIES_AT_ONCE = 512


class MiningSettings(BaseModel):
    """How hard negatives are mined (the recipe's `negatives: mined:`)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    retriever: str = Field("bm25", description="`bm25`, or a model folder or hub id")
    depth: int = Field(100, ge=1, description="ranks looked at for each query")
    per_query: int = Field(1, ge=1, description="negatives kept for each pair, where so many pass")
    skip_top: int = Field(0, ge=0, description="ranks left out at the top, where false negatives crowd")
    margin: float | None = Field(
        0.95,
        gt=0,
        le=1,
        description="keep candidates scoring below margin x the positive's score; null: keep all",
    )
    sampling: Literal["top", "random"] = Field("top", description="the best-ranked that pass, or any of them")
    near_duplicate: float = Field(
        0.9,
        gt=0,
        le=1,
        description="overlap (Jaccard of 3-word shingles) with a positive from which it is one",
    )


@dataclass(frozen=True)
class Mined:
    """Pairs with their mined negatives, in the order given, and JSON-like counts."""

    pairs: list[TrainingPair]
    counts: dict[str, Any]


@dataclass(frozen=True)
class _Candidate:
    """A passage found for a query: its normal forms with and without title, its rank from 1 and its score."""

    passage: Passage
    normals: tuple[str, str]
    rank: int
    score: float


@dataclass(frozen=True)
class _Known:
    """What is known to be relevant to one query."""

    normals: Set[str]
    shingles: Sequence[frozenset[str]]
    ids: Set[str]


def mine_negatives(
    pairs: Sequence[TrainingPair],
    passages: Sequence[Passage] | None,
    settings: MiningSettings,
    *,
    seed: int,
    retriever: Retriever | None = None,
    relevant: Mapping[str, Set[str]] | None = None,
) -> Mined:
    """Give each pair hard negatives from `passages`.

    A negative is never empty, the query itself, a positive of any pair with the same query, an exact or near
    duplicate of one, or a passage whose id `relevant` lists for the query's text. Pairs for which nothing is left
    stay as they are and are counted. Raises ModelError when the settings name a model and none is given.
    """
    if (retriever is None) != (settings.retriever == "bm25"):
        raise ModelError(
            f"mining by {settings.retriever!r} needs that retriever opened, and bm25 needs none."
        )
    if not pairs:
        raise PairsError("there are no pairs to mine negatives for; give at least one.")
    pool = _Pool(pairs, passages)
    known = _known_by_query(pairs, relevant or {})
    rows_by_query: dict[tuple[str, str], list[int]] = {}
    for row, pair in enumerate(pairs):
        rows_by_query.setdefault((pair.query, pair.instruction), []).append(row)
    mined = list(pairs)
    dropped: Counter[str] = Counter()
    queries = list(rows_by_query)
    found = (
        _by_bm25(pool, queries, settings)
        if retriever is None
        else _by_model(pool, queries, settings, retriever)
    )
    with progress(f"mining by {settings.retriever}", len(queries)) as advance:
        for query, (ranking, score_of) in zip(queries, found, strict=True):
            for row in rows_by_query[query]:
                candidates = pool.candidates(ranking, settings.skip_top)
                if settings.sampling == "random":
                    random.Random(f"{seed} {row}").shuffle(candidates)
                limit = _limit(score_of(pool.position_of(pairs[row].positive)), settings.margin)
                kept = _select(pairs[row], candidates, known[query[0]], limit, settings, dropped)
                mined[row] = _with_mined(pairs[row], kept, settings)
            advance(1)
    return Mined(mined, _counts(pairs, mined, queries, dropped))


def _limit(positive_score: float, margin: float | None) -> float:
    """The score that a negative stays below; for a negative cosine the margin goes downwards just the same."""
    if margin is None:
        return float("inf")
    return positive_score - (1 - margin) * abs(positive_score)


def _select(
    pair: TrainingPair,
    candidates: Sequence[_Candidate],
    known: _Known,
    limit: float,
    settings: MiningSettings,
    dropped: Counter[str],
) -> list[_Candidate]:
    """The first candidates that pass every rule; `dropped` counts the others by rule, up to the last one looked at."""
    kept: list[_Candidate] = []
    query = normal_form(pair.query)
    taken = {normal_form(text) for text in pair.negatives}
    for candidate in candidates:
        if len(kept) == settings.per_query:
            break
        rule = _broken_rule(candidate, query, known, limit, settings.near_duplicate)
        if rule is None and candidate.normals[0] in taken:
            rule = "already_a_negative"
        if rule is None:
            kept.append(candidate)
            taken.add(candidate.normals[0])
        else:
            dropped[rule] += 1
    return kept


def _broken_rule(
    candidate: _Candidate, query: str, known: _Known, limit: float, near_duplicate: float
) -> str | None:
    normal, normal_text = candidate.normals
    if not normal:
        return "empty"
    if candidate.passage.id in known.ids:
        return "judged_relevant"
    if normal in known.normals or normal_text in known.normals:
        return "positive_of_the_query"
    if normal == query:
        return "the_query_itself"
    if candidate.score >= limit:
        return "within_margin"
    own = shingles(normal)
    if any(jaccard(own, positive) >= near_duplicate for positive in known.shingles):
        return "near_duplicate_of_a_positive"
    return None


def _with_mined(pair: TrainingPair, kept: Sequence[_Candidate], settings: MiningSettings) -> TrainingPair:
    if not kept:
        return pair
    provenance = {
        "retriever": settings.retriever,
        "ids": [candidate.passage.id for candidate in kept],
        "scores": [round(candidate.score, 6) for candidate in kept],
        "ranks": [candidate.rank for candidate in kept],
    }
    return pair.with_negatives([candidate.passage.full_text for candidate in kept], {"mined": provenance})


def _counts(
    before: Sequence[TrainingPair],
    after: Sequence[TrainingPair],
    queries: Sequence[tuple[str, str]],
    dropped: Counter[str],
) -> dict[str, Any]:
    added = [len(new.negatives) - len(old.negatives) for old, new in zip(before, after, strict=True)]
    return {
        "pairs": len(before),
        "queries": len(queries),
        "negatives": sum(added),
        "pairs_without_mined_negative": added.count(0),
        "dropped": dict(sorted(dropped.items())),
    }


def _known_by_query(pairs: Sequence[TrainingPair], relevant: Mapping[str, Set[str]]) -> dict[str, _Known]:
    positives: dict[str, dict[str, None]] = {}
    for pair in pairs:
        positives.setdefault(pair.query, {})[normal_form(pair.positive)] = None
    return {
        query: _Known(frozenset(normals), [shingles(n) for n in normals], relevant.get(query, frozenset()))
        for query, normals in positives.items()
    }


class _Pool(Sequence[Passage]):
    """The candidates, then the positives that are not among them: these are only scored, never taken.

    Passages are read on demand.
    """

    def __init__(self, pairs: Sequence[TrainingPair], passages: Sequence[Passage] | None) -> None:
        positives = {normal_form(pair.positive): pair.positive for pair in pairs}
        if passages is None:
            passages = [Passage(str(index), text) for index, text in enumerate(positives.values())]
        self._positions: dict[str, int] = {}
        self.candidate_ids: list[str] = []
        for position, passage in enumerate(passages):
            self.candidate_ids.append(passage.id)
            for text in (passage.full_text, passage.text):
                normal = normal_form(text)
                if normal in positives:
                    self._positions.setdefault(normal, position)
        self._passages = passages
        self._extra = [text for normal, text in positives.items() if normal not in self._positions]
        for offset, text in enumerate(self._extra):
            self._positions[normal_form(text)] = len(passages) + offset
        self._position_by_id = {passage_id: p for p, passage_id in enumerate(self.candidate_ids)}
        self._read = lru_cache(maxsize=50_000)(self._passage_and_normals)

    def __len__(self) -> int:
        return len(self._passages) + len(self._extra)

    def __getitem__(self, index: Any) -> Any:
        if index < len(self._passages):
            return self._passages[index]
        return Passage(f"positive {index}", self._extra[index - len(self._passages)])

    def __iter__(self) -> Iterator[Passage]:
        yield from self._passages
        for offset in range(len(self._extra)):
            yield self[len(self._passages) + offset]

    def _passage_and_normals(self, position: int) -> tuple[Passage, tuple[str, str]]:
        passage = self._passages[position]
        return passage, (normal_form(passage.full_text), normal_form(passage.text))

    def position_of(self, positive: str) -> int:
        """Where a pair's positive stands."""
        return self._positions[normal_form(positive)]

    def candidates(self, ranking: Ranking, skip_top: int) -> list[_Candidate]:
        """The passages of a ranking, with ranks from 1, without the first ones."""
        return [
            _Candidate(*self._read(self._position_by_id[passage_id]), rank, score)
            for rank, (passage_id, score) in enumerate(ranking[skip_top:], start=skip_top + 1)
        ]


Found = Iterator[tuple["Ranking", Callable[[int], float]]]
"""For each query in turn: the candidates' ranking, and the score of the passage at a position of the pool."""


def _by_bm25(pool: _Pool, queries: Sequence[tuple[str, str]], settings: MiningSettings) -> Found:
    from medley.search import Bm25Index

    index = Bm25Index(pool)
    for query, _ in queries:
        scores_D = index.scores(query)
        yield index.top(scores_D[: len(pool.candidate_ids)], settings.depth), scores_D.__getitem__


def _by_model(
    pool: _Pool, queries: Sequence[tuple[str, str]], settings: MiningSettings, retriever: Retriever
) -> Found:
    from medley.search import comparable, encode_corpus, exact_top_k, similarity_of

    similarity = similarity_of(retriever)
    passages_DH = encode_corpus(retriever, pool, label="passages to mine")
    candidates_DH = passages_DH[: len(pool.candidate_ids)]
    for start in range(0, len(queries), QUERIES_AT_ONCE):
        queries_QH = _encode(queries[start : start + QUERIES_AT_ONCE], retriever)
        rankings = exact_top_k(
            queries_QH, candidates_DH, pool.candidate_ids, settings.depth, similarity=similarity
        )
        for query_H, ranking in zip(comparable(queries_QH, similarity), rankings, strict=True):

            def score_of(position: int, query_H: np.ndarray = query_H) -> float:
                return float(comparable(passages_DH[position : position + 1], similarity)[0] @ query_H)

            yield ranking, score_of


def _encode(queries: Sequence[tuple[str, str]], retriever: Retriever) -> np.ndarray:
    """Vectors of (query, instruction) pairs: under that instruction where there is one and the model takes one."""
    from medley.encoder import encode_queries

    groups: dict[str | None, list[int]] = {}
    for index, (_, instruction) in enumerate(queries):
        groups.setdefault((instruction or None) if retriever.template else None, []).append(index)
    vectors_by_index: dict[int, np.ndarray] = {}
    for own, indices in groups.items():
        vectors_QH = encode_queries(retriever, [queries[i][0] for i in indices], instruction=own)
        vectors_by_index.update(zip(indices, vectors_QH, strict=True))
    return np.stack([vectors_by_index[index] for index in range(len(queries))])
