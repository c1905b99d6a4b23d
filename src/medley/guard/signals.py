"""Signals that a negative is a positive after all, without a language model: duplicates, and a retriever's scores.

In: queries with their known positives and candidates. Out: for each signal its value and its limit; a candidate whose
value reaches the limit is under suspicion. With s(a, b) the retriever's score of text b for text a, q the query, p a
known positive and n the candidate:

    margin       s(q, n)                                         limit: margin x s(q, p), p being the row's own positive
    similarity   max over p of  s(p, n) / s(p, p)                (NV-Retriever, arXiv 2407.15831)
    closeness    max over p of  (s(q, n) + s(p, n)) / (s(q, p) + s(p, p))
    left         s(q, what a rewriting left of p)                limit: left x s(q, what it changed); see rewritten.py

Closeness is the margin asked with query and positive together: for vectors it is the ratio of the candidate's and the
positive's score under the query q + p, which is Rocchio's expanded query (1971).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from medley.collections import Passage
from medley.guard.settings import GuardSettings
from medley.overlap import jaccard, normal_form, shingles
from medley.progress import progress

if TYPE_CHECKING:
    from medley.encoder import Retriever

CONTAINED_WORDS = 8
"""A shorter positive, such as a name, may stand in a passage that does not answer."""

QueryKey = tuple[str, str]
"""(query, instruction)."""


@dataclass(frozen=True)
class Signal:
    """One piece of evidence; `value` at or above `limit` makes the candidate suspect."""

    name: str
    value: float
    limit: float

    @property
    def fires(self) -> bool:
        """Whether the limit is reached; a score of nothing is no evidence."""
        return self.value >= self.limit and self.value > 0

    @property
    def strength(self) -> float:
        """How near the limit the value comes: 1 at the limit."""
        return self.value / self.limit if self.limit > 0 else float(self.fires)


class KnownPositives:
    """The positives of one query, ready to be held against candidates as texts."""

    def __init__(self, query: str, positives: Sequence[str]) -> None:
        self._query = normal_form(query)
        self._normals = {normal_form(text) for text in positives}
        self._shingles = [(shingles(normal), len(normal.split())) for normal in sorted(self._normals)]

    def duplicate(self, text: str, near_duplicate: float | None) -> Signal | None:
        """Whether a candidate is the query or a positive but for case and punctuation, or (unless None) nearly so.

        Near is a Jaccard similarity of word shingles of at least `near_duplicate`, or that share of a positive's own
        shingles standing in the candidate.
        """
        normal = normal_form(text)
        if normal in self._normals or normal == self._query:
            return Signal("duplicate", 1.0, 1.0)
        if near_duplicate is None:
            return None
        own = shingles(normal)
        nearest = max((_overlap(own, positive, words) for positive, words in self._shingles), default=0.0)
        found = Signal("near_duplicate", nearest, near_duplicate)
        return found if found.fires else None


def _overlap(candidate: frozenset[str], positive: frozenset[str], words: int) -> float:
    contained = len(candidate & positive) / len(positive) if words >= CONTAINED_WORDS else 0.0
    return max(jaccard(candidate, positive), contained)


@dataclass(frozen=True)
class Case:
    """What a query's scores are computed for: its known positives and the candidates, each text once."""

    key: QueryKey
    positives: tuple[str, ...]
    candidates: tuple[str, ...]


@dataclass(frozen=True)
class Scores:
    """A retriever's scores for one case: of P positives and N candidates, float32."""

    positives: np.ndarray
    """(P) for the query."""
    candidates: np.ndarray
    """(N) for the query."""
    pairwise: np.ndarray
    """(P, N) candidates for each positive."""
    own: np.ndarray
    """(P) each positive for itself."""


def signals(
    case: Case, scores: Scores, positive: str, candidate: str, settings: GuardSettings
) -> list[Signal]:
    """The retriever's signals about one candidate of a row with this positive, in the order of the settings."""
    p, n = case.positives.index(positive), case.candidates.index(candidate)
    found = []
    if settings.margin is not None and scores.positives[p] > 0:
        found.append(
            Signal("margin", float(scores.candidates[n]), settings.margin * float(scores.positives[p]))
        )
    if settings.closeness is not None:
        together_P = scores.positives + scores.own
        value = _largest_ratio(scores.candidates[n] + scores.pairwise[:, n], together_P)
        found.append(Signal("closeness", value, settings.closeness))
    if settings.similarity is not None:
        value = _largest_ratio(scores.pairwise[:, n], scores.own)
        found.append(Signal("similarity", value, settings.similarity))
    return found


def _largest_ratio(above_P: np.ndarray, below_P: np.ndarray) -> float:
    """The largest quotient; positives that score nothing themselves tell nothing."""
    told = below_P > 0
    return float(np.max(above_P[told] / below_P[told])) if told.any() else 0.0


def score_cases(cases: Sequence[Case], retriever: Retriever | None) -> Iterator[Scores]:
    """The scores of each case in turn, by a retriever or, without one, by BM25 over all the texts of the cases."""
    texts = list(dict.fromkeys(text for case in cases for text in (*case.positives, *case.candidates)))
    score = _by_bm25(texts) if retriever is None else _by_vectors(texts, cases, retriever)
    with progress("score negatives", len(cases)) as advance:
        for case in cases:
            yield score(case)
            advance(1)


def _by_bm25(texts: Sequence[str]) -> Callable[[Case], Scores]:
    from medley.search import Bm25Index

    index = Bm25Index([Passage(str(position), text) for position, text in enumerate(texts)])
    position_of = {text: position for position, text in enumerate(texts)}

    def score(case: Case) -> Scores:
        p = [position_of[text] for text in case.positives]
        n = [position_of[text] for text in case.candidates]
        query_PN = index.scores(case.key[0], np.array([*p, *n]))
        scores_PN = np.stack(
            [index.scores(text, np.array([own, *n])) for own, text in zip(p, case.positives, strict=True)]
        )
        return Scores(query_PN[: len(p)], query_PN[len(p) :], scores_PN[:, 1:], scores_PN[:, 0])

    return score


def _by_vectors(
    texts: Sequence[str], cases: Sequence[Case], retriever: Retriever
) -> Callable[[Case], Scores]:
    from medley.encoder import encode_queries_under
    from medley.search import comparable, encode_corpus, similarity_of

    similarity = similarity_of(retriever)
    passages = [Passage(str(position), text) for position, text in enumerate(texts)]
    vectors_DH = np.asarray(encode_corpus(retriever, passages, label="positives and negatives"))
    passages_DH = comparable(vectors_DH, similarity)
    position_of = {text: position for position, text in enumerate(texts)}
    keys = list(dict.fromkeys(case.key for case in cases))
    query_vectors = dict(
        zip(keys, comparable(encode_queries_under(retriever, keys), similarity), strict=True)
    )

    def score(case: Case) -> Scores:
        positives_PH = passages_DH[[position_of[text] for text in case.positives]]
        candidates_NH = passages_DH[[position_of[text] for text in case.candidates]]
        query_H = query_vectors[case.key]
        return Scores(
            positives_PH @ query_H,
            candidates_NH @ query_H,
            positives_PH @ candidates_NH.T,
            np.einsum("ph,ph->p", positives_PH, positives_PH),
        )

    return score
