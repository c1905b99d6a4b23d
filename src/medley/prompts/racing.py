"""Racing: all candidates start on few queries, and those that cannot win any more are dropped early.

Successive halving (Jamieson and Talwalkar 2016) on paired differences, as in F-Race (Birattari et al. 2002): after
each round the worse half is looked at, and of it only those leave whose difference to the leader, on the same queries,
is larger than chance explains. Those that stay to the end have the scores that a full evaluation would give.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

LEAST = 32
"""Queries of the first round."""
SURE = 2.33
"""Standard errors behind the leader that drop a candidate: one in a hundred, one-sided."""

Scores = Callable[[Sequence[str], np.ndarray], np.ndarray]
"""(instructions, rows (R,)) -> scores (C, R)."""
Weights = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Raced:
    """A candidate after the race: its mean over the `queries` it was tried on; `finished`: over all of them."""

    instruction: str
    score: float
    queries: int
    finished: bool


def race(
    candidates: Sequence[str], scores: Scores, weights: Weights, rows: np.ndarray, *, keep: Sequence[str] = ()
) -> list[Raced]:
    """Try candidates on ever more of the `rows`, twice as many each round; `keep` are never dropped.

    `rows` should be in random order. Returns every candidate once, in the order given.
    """
    alive = list(dict.fromkeys(candidates))
    done: dict[str, Raced] = {}
    for size in _rounds(len(rows)):
        seen = rows[:size]
        values_CR, weights_R = scores(alive, seen), weights(seen)
        means_C = values_CR @ weights_R
        last = size == len(rows)
        for text, mean in zip(alive, means_C, strict=True):
            done[text] = Raced(text, float(mean), size, last)
        if not last:
            out = {alive[i] for i in hopeless(values_CR, weights_R)} - set(keep)
            alive = [text for text in alive if text not in out]
    return [done[text] for text in dict.fromkeys(candidates)]


def hopeless(values_CR: np.ndarray, weights_R: np.ndarray) -> list[int]:
    """Candidates of the worse half whose paired difference to the leader is more than chance explains."""
    means_C = values_CR @ weights_R
    leader = int(np.argmax(means_C))
    order = np.argsort(-means_C, kind="stable")
    worse = order[-(-len(order) // 2) :]
    return [
        int(i) for i in worse if means_C[leader] - means_C[i] > SURE * _error(values_CR, weights_R, leader, i)
    ]


def _error(values_CR: np.ndarray, weights_R: np.ndarray, a: int, b: int) -> float:
    """Standard error of the weighted mean of the paired differences."""
    differences_R = values_CR[a] - values_CR[b]
    centred_R = differences_R - differences_R @ weights_R
    count = len(differences_R)
    return float(np.sqrt((weights_R**2 * centred_R**2).sum() * count / max(1, count - 1)))


def _rounds(count: int) -> list[int]:
    sizes = [min(LEAST, count)]
    while sizes[-1] < count:
        sizes.append(min(2 * sizes[-1], count))
    return sizes
