"""Which of the passages found for a query become its negatives: the rules, one candidate after the other.

In: a pair, its query's ranking, what is known to be relevant, and the limit that its positive's score sets. Out: the
candidates kept; `dropped` counts the others by the rule that they break, up to the last one looked at.
Passages that are known to be relevant have no rank: what stands at rank 1 is the best of the others, and the window
of ranks is the same whether or not the corpus holds the positives.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence, Set
from functools import cached_property
from typing import NamedTuple

import numpy as np

from medley.mine.pool import EMPTY, Pool, digest
from medley.mine.settings import MiningSettings
from medley.overlap import jaccard, normal_form, shingles
from medley.pairs import TrainingPair

AT_ONCE = 16
"""Candidates whose fingerprints are looked up at once: most rows need no more."""


class Candidate(NamedTuple):
    """A passage found for a query: its position, its rank from 1 among those not known to be relevant, its score."""

    position: int
    rank: int
    score: float
    digests: Sequence[int]
    """Fingerprints of the text with its title and without."""


class Known:
    """What is known to be relevant to a pair's query: positives (fingerprint and position) and judged passage ids."""

    def __init__(
        self, pair: TrainingPair, own: int, positives: Mapping[int, int], ids: Set[str], pool: Pool
    ) -> None:
        """`own` is the fingerprint of the pair's own positive."""
        self.positives, self.ids = positives, ids
        self._pair, self._own, self._pool = pair, own, pool

    def rule(self, position: int, digests: Sequence[int]) -> str | None:
        """By which rule a passage is known to be relevant."""
        if self.ids and self._pool.ids[position] in self.ids:
            return "judged_relevant"
        if digests[0] in self.positives or digests[1] in self.positives:
            return "positive_of_the_query"
        return None

    @cached_property
    def shingles(self) -> list[frozenset[str]]:
        """The shingles of each positive."""
        others = [self._pool.positive_shingles(key) for key in self.positives if key != self._own]
        return [shingles(normal_form(self._pair.positive)), *others]


def limit_of(positive_score: float, settings: MiningSettings) -> float:
    """The score that a negative stays below; for a negative cosine the margin goes downwards just the same."""
    limit = float("inf")
    if settings.margin is not None:
        limit = positive_score - (1 - settings.margin) * abs(positive_score)
    if settings.absolute_margin is not None:
        limit = min(limit, positive_score - settings.absolute_margin)
    return limit


def select(
    row: int,
    pair: TrainingPair,
    positions_K: np.ndarray,
    scores_K: np.ndarray,
    known: Known,
    limit: float,
    pool: Pool,
    settings: MiningSettings,
    *,
    seed: int,
    dropped: Counter[str],
) -> list[Candidate]:
    """The first candidates that pass every rule: in order of rank, or in an order drawn from the seed and the pair."""
    window: Iterator[Candidate] = _window(positions_K, scores_K, known, pool, settings, dropped)
    if settings.sampling == "random":
        shuffled = list(window)
        key = (str(seed), pair.query, pair.instruction, pair.positive)
        random.Random("\0".join(key)).shuffle(shuffled)
        window = iter(shuffled)
    kept: list[Candidate] = []
    query = pool.query_of(row)
    taken = {digest(text) for text in pair.negatives}
    for candidate in window:
        rule = _broken_rule(candidate, query, known, limit, pool, settings)
        if rule is None and candidate.digests[0] in taken:
            rule = "already_a_negative"
        if rule is not None:
            dropped[rule] += 1
            continue
        kept.append(candidate)
        taken.add(candidate.digests[0])
        if len(kept) == settings.per_query:
            break
    return kept


def _window(
    positions_K: np.ndarray,
    scores_K: np.ndarray,
    known: Known,
    pool: Pool,
    settings: MiningSettings,
    dropped: Counter[str],
) -> Iterator[Candidate]:
    """The candidates between the ranks `skip_top` + 1 and `depth`."""
    rank = 0
    for start in range(0, len(positions_K), AT_ONCE):
        positions, scores = positions_K[start : start + AT_ONCE], scores_K[start : start + AT_ONCE]
        for position, score, digests in zip(
            positions.tolist(), scores.tolist(), pool.digests(positions), strict=True
        ):
            if position < 0:
                return
            if (rule := known.rule(position, digests)) is not None:
                dropped[rule] += 1
                continue
            rank += 1
            if rank > settings.depth:
                return
            if rank > settings.skip_top:
                yield Candidate(position, rank, score, digests)


def _broken_rule(
    candidate: Candidate, query: int, known: Known, limit: float, pool: Pool, settings: MiningSettings
) -> str | None:
    """The first rule that the candidate breaks; its text is read only for the last one."""
    if candidate.digests[0] == EMPTY:
        return "empty"
    if candidate.digests[0] == query:
        return "the_query_itself"
    if candidate.score >= limit:
        return "within_margin"
    if settings.max_score is not None and candidate.score > settings.max_score:
        return "above_max_score"
    if settings.min_score is not None and candidate.score < settings.min_score:
        return "below_min_score"
    own = shingles(normal_form(pool.passage(candidate.position).full_text))
    if any(jaccard(own, positive) >= settings.near_duplicate for positive in known.shingles):
        return "near_duplicate_of_a_positive"
    return None
