"""Paired tests between two models' per-query scores: is a difference more than chance?

In: for each task, each query's score under model a and under model b. Out: the difference, its randomisation
p-value and bootstrap interval. Several comparisons of one question are corrected together (`holm`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from medley.errors import InputError

EXACT_UP_TO = 14
"""Queries that differ up to which all sign patterns are tried (2^14 = 16,384)."""
CHUNK = 1_000
"""Permutations or resamples in memory at once."""
TIE = 1e-9
"""Scores closer than this are a tie; also the slack when statistics are compared."""

TaskQueryScores = Mapping[str, Mapping[str, float]]
"""For each task, each query's score."""


@dataclass(frozen=True)
class Comparison:
    """Model a minus model b, paired by query.

    `difference`, `p_value` and the 95 % interval are about the mean over tasks of each task's mean over queries,
    the figure that is reported, in which every task weighs the same. The `pooled_` ones take all queries of all
    tasks together, in which every query weighs the same. With one task they are equal. `effect_size` is Cohen's
    d_z: the mean of all paired differences over their standard deviation (0 where all differences are 0).
    """

    difference: float
    p_value: float
    ci_low: float
    ci_high: float
    pooled_difference: float
    pooled_p_value: float
    effect_size: float
    wins: int
    ties: int
    losses: int
    queries: int
    tasks: int

    def as_json(self) -> dict[str, Any]:
        """A row of a table of comparisons."""
        return asdict(self)


def compare(
    a: TaskQueryScores, b: TaskQueryScores, *, seed: int, permutations: int = 10_000, resamples: int = 10_000
) -> Comparison:
    """Compare two models on the tasks that both were scored on.

    Two-sided sign-flip randomisation test (Fisher; Smucker, Allan and Carterette 2007): under the null hypothesis
    a query's two scores could be swapped. Exact where at most EXACT_UP_TO queries differ, else `permutations`
    random patterns with p = (hits + 1) / (permutations + 1). Percentile bootstrap, queries drawn within each task.
    Raises InputError when no task is shared or a task was scored on different queries.
    """
    differences = paired_differences(a, b)
    tasks = list(differences.values())
    pooled_Q = np.concatenate(tasks)
    weights_Q = np.concatenate([np.full(len(d_Q), 1 / (len(tasks) * len(d_Q))) for d_Q in tasks])
    rng = np.random.default_rng(seed)
    p_value = sign_flip_p_value(weights_Q * pooled_Q, rng, permutations=permutations)
    pooled_p_value = (
        sign_flip_p_value(pooled_Q, rng, permutations=permutations) if len(tasks) > 1 else p_value
    )
    means_R = np.mean([bootstrap_means(d_Q, rng, resamples=resamples) for d_Q in tasks], axis=0)
    low, high = np.quantile(means_R, [0.025, 0.975])
    spread = float(np.std(pooled_Q, ddof=1)) if len(pooled_Q) > 1 else 0.0
    return Comparison(
        difference=float(np.mean([d_Q.mean() for d_Q in tasks])),
        p_value=p_value,
        ci_low=float(low),
        ci_high=float(high),
        pooled_difference=float(pooled_Q.mean()),
        pooled_p_value=pooled_p_value,
        effect_size=float(pooled_Q.mean()) / spread if spread > 0 else 0.0,
        wins=int((pooled_Q > TIE).sum()),
        ties=int((np.abs(pooled_Q) <= TIE).sum()),
        losses=int((pooled_Q < -TIE).sum()),
        queries=len(pooled_Q),
        tasks=len(tasks),
    )


def paired_differences(a: TaskQueryScores, b: TaskQueryScores) -> dict[str, np.ndarray]:
    """For each task that both have, a's score minus b's for each query (Q,), in ascending order of query id."""
    shared = [task for task in a if task in b]
    if not shared:
        raise InputError(
            f"no task in common ({', '.join(a) or 'none'} against {', '.join(b) or 'none'}); "
            "evaluate both models on the same collections."
        )
    for task in shared:
        if not a[task] or a[task].keys() != b[task].keys():
            odd = sorted(a[task].keys() ^ b[task].keys())
            raise InputError(
                f"{task}: the two results are about different queries ({len(odd)} in only one of them"
                f"{f', such as {odd[0]!r}' if odd else ''}); evaluate both on the same split."
            )
    return {
        task: np.array([a[task][q] - b[task][q] for q in sorted(a[task])], dtype=np.float64)
        for task in shared
    }


def sign_flip_p_value(terms_Q: np.ndarray, rng: np.random.Generator, *, permutations: int = 10_000) -> float:
    """Two-sided p-value of |sum of terms| when each term's sign is a fair coin; see `compare`."""
    terms_Q = terms_Q[terms_Q != 0]
    if len(terms_Q) == 0:
        return 1.0
    scale = np.abs(terms_Q).sum()
    observed = abs(terms_Q.sum()) - TIE * scale
    if len(terms_Q) <= EXACT_UP_TO:
        patterns = np.arange(2 ** len(terms_Q))[:, None] >> np.arange(len(terms_Q)) & 1
        return float(np.mean(np.abs((2 * patterns - 1) @ terms_Q) >= observed))
    hits = 0
    for start in range(0, permutations, CHUNK):
        shape = (min(CHUNK, permutations - start), len(terms_Q))
        heads_PQ = rng.integers(0, 2, size=shape, dtype=np.int8).astype(np.float64)
        hits += int((np.abs(2 * (heads_PQ @ terms_Q) - terms_Q.sum()) >= observed).sum())
    return (hits + 1) / (permutations + 1)


def bootstrap_means(
    differences_Q: np.ndarray, rng: np.random.Generator, *, resamples: int = 10_000
) -> np.ndarray:
    """Means of resamples of the differences, drawn with replacement: shape (R,)."""
    count = len(differences_Q)
    return np.concatenate(
        [
            differences_Q[rng.integers(0, count, size=(min(CHUNK, resamples - start), count))].mean(axis=1)
            for start in range(0, resamples, CHUNK)
        ]
    )


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction of a family of p-values, in the order given (Holm 1979)."""
    corrected = [0.0] * len(p_values)
    running = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        running = max(running, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = running
    return corrected
