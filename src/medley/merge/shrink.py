"""How far to move each expert toward the base before merging: the ratio that does best on dev, expert by expert.

After MediPhi, where each expert is SLERPed back toward the base at 10, 25 or 50 %, picked on validation data, and
the merge starts from those. An expert at a ratio is one encoding of the dev pools; ratio 0, the expert as it is, is
always among them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from medley.merge.candidates import candidates
from medley.merge.opening import Merge
from medley.merge.pool import DevPool, score_candidate
from medley.merge.settings import MergeParameters
from medley.progress import progress


@dataclass(frozen=True)
class ShrunkScore:
    """An expert's dev score at one ratio."""

    expert: str
    ratio: float
    score: float


def score_ratios(merge: Merge, pools: Sequence[DevPool], ratios: Sequence[float]) -> list[ShrunkScore]:
    """Every expert alone at every ratio, ratio 0 first, in the experts' order."""
    tried = sorted({0.0, *ratios})
    plain = MergeParameters.model_validate({})
    alone = np.ones((1, 1))
    found = []
    with progress("shrunk experts", len(merge.experts) * len(tried)) as advance:
        for expert in merge.experts:
            for ratio in tried:
                shrunk = replace(expert, shrink=ratio)
                with candidates(merge.base, [shrunk], method="task_arithmetic", parameters=plain) as apply:
                    found.append(ShrunkScore(expert.name, ratio, score_candidate(apply(alone), pools).score))
                advance(1)
    return found


def best_ratios(scores: Sequence[ShrunkScore]) -> dict[str, float]:
    """Each expert's ratio with the highest score; of equal ones the smallest."""
    names = list(dict.fromkeys(found.expert for found in scores))
    return {
        name: min(
            (found for found in scores if found.expert == name), key=lambda found: (-found.score, found.ratio)
        ).ratio
        for name in names
    }
