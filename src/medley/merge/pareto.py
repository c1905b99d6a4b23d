"""Domain against general score: the candidates that no other beats at both, and the chosen one among them.

A dev collection is `general` where the search settings list it; all others are of the domain.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from medley.merge.pool import DevPool

if TYPE_CHECKING:
    from medley.merge.outcome import Candidate


@dataclass(frozen=True)
class Front:
    """Indices into the candidates, by falling domain score, and the two mean scores of every candidate (C, 2)."""

    indices: tuple[int, ...]
    chosen: int
    scores: np.ndarray

    def as_json(self) -> dict[str, Any]:
        """As search.json holds it: candidates by index, with their domain and general mean."""
        return {
            "candidates": list(self.indices),
            "chosen": self.chosen,
            "scores": [
                {"domain": float(domain), "general": float(general)} for domain, general in self.scores
            ],
        }


def pareto_front(
    candidates: Sequence[Candidate], chosen: Candidate, pools: Sequence[DevPool]
) -> Front | None:
    """The front among the really encoded candidates; None unless there are collections of both kinds."""
    kinds = {pool.name: pool.general for pool in pools}
    if len(set(kinds.values())) < 2:
        return None
    means = [
        [
            float(np.mean([score for name, score in candidate.scores.items() if kinds[name] is general]))
            for general in (False, True)
        ]
        for candidate in candidates
    ]
    scores_C2 = np.array(means)
    real = [index for index, candidate in enumerate(candidates) if candidate.real]
    undominated = [real[index] for index in front_of(scores_C2[real])]
    position = next(index for index, candidate in enumerate(candidates) if candidate is chosen)
    return Front(tuple(undominated), position, scores_C2)


def front_of(scores_CG: np.ndarray) -> list[int]:
    """Rows that no other row equals or exceeds in every column and exceeds in one, by falling first column."""
    at_least_CC = (scores_CG[:, None] >= scores_CG[None]).all(axis=2)
    better_CC = at_least_CC & (scores_CG[:, None] > scores_CG[None]).any(axis=2)
    kept = np.flatnonzero(~better_CC.any(axis=0))
    return [int(index) for index in kept[np.lexsort((-scores_CG[kept, 1], -scores_CG[kept, 0]))]]
