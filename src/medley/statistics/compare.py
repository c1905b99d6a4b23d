"""Paired tests between two models' per-query scores: is a difference more than chance?

In: for each task, each query's score under model a and under model b, of one training seed or of several. Out: the
difference, its p-value and interval, effect size, and what difference this many queries could have shown.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from medley.errors import InputError
from medley.statistics.paired import (
    TIE,
    TaskQueryScores,
    bootstrap_means,
    expanded_tail,
    paired_differences,
    sign_flip_p_value,
)
from medley.statistics.power import detectable_difference


@dataclass(frozen=True)
class Comparison:
    """Model a minus model b, paired by query.

    `difference`, `p_value` and the 95 % interval are about the mean over tasks of each task's mean over queries,
    the figure that is reported, in which every task weighs the same. The `pooled_` ones take all queries of all
    tasks together, in which every query weighs the same. With one task they are equal. `effect_size` is Cohen's
    d_z: the mean of all paired differences over their standard deviation (0 where all differences are 0).
    `detectable` is the smallest true difference that this many queries show four times in five (None: too few to say),
    `seeds` how many training seeds each side has.
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
    detectable: float | None = None
    seeds: int = 1

    def as_json(self) -> dict[str, Any]:
        """A row of a table of comparisons."""
        return asdict(self)


def compare(
    a: TaskQueryScores, b: TaskQueryScores, *, seed: int, permutations: int = 10_000, resamples: int = 10_000
) -> Comparison:
    """Compare two models on the tasks that both were scored on.

    Two-sided sign-flip randomisation test (Fisher; Smucker, Allan and Carterette 2007): under the null hypothesis
    a query's two scores could be swapped. Exact where at most EXACT_UP_TO queries differ, else `permutations`
    random patterns with p = (hits + 1) / (permutations + 1). Expanded percentile bootstrap, queries drawn within each
    task.
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
    low, high = _interval(tasks, rng, resamples=resamples)
    spread = float(np.std(pooled_Q, ddof=1)) if len(pooled_Q) > 1 else 0.0
    return Comparison(
        difference=float(np.mean([d_Q.mean() for d_Q in tasks])),
        p_value=p_value,
        ci_low=low,
        ci_high=high,
        pooled_difference=float(pooled_Q.mean()),
        pooled_p_value=pooled_p_value,
        effect_size=float(pooled_Q.mean()) / spread if spread > 0 else 0.0,
        wins=int((pooled_Q > TIE).sum()),
        ties=int((np.abs(pooled_Q) <= TIE).sum()),
        losses=int((pooled_Q < -TIE).sum()),
        queries=len(pooled_Q),
        tasks=len(tasks),
        detectable=detectable_difference(tasks),
    )


def difference_interval(
    a: TaskQueryScores, b: TaskQueryScores, *, seed: int, resamples: int = 10_000
) -> tuple[float, float, float]:
    """Difference of the mean over tasks with its 95 % bootstrap interval, and no test."""
    tasks = list(paired_differences(a, b).values())
    low, high = _interval(tasks, np.random.default_rng(seed), resamples=resamples)
    return float(np.mean([d_Q.mean() for d_Q in tasks])), low, high


def _interval(
    tasks: Sequence[np.ndarray], rng: np.random.Generator, *, resamples: int
) -> tuple[float, float]:
    means_R = np.mean([bootstrap_means(d_Q, rng, resamples=resamples) for d_Q in tasks], axis=0)
    tail = expanded_tail(sum(len(d_Q) for d_Q in tasks), len(tasks))
    low, high = np.quantile(means_R, [tail, 1 - tail])
    return float(low), float(high)


def compare_seeds(
    a: Sequence[TaskQueryScores], b: Sequence[TaskQueryScores], *, seed: int, resamples: int = 10_000
) -> Comparison:
    """Compare two ways of training, each run with several seeds (in the same order), on the tasks they share.

    Is the difference more than chance for other queries *and other seeds*? Both are random factors, crossed: the
    variance of the mean of D (seeds S x queries Q) is (MS_S + MS_Q - MS_SQ) / (S Q), never below that of either
    factor alone, with Satterthwaite's degrees of freedom (Clark 1973, who calls it the minimum F'; Satterthwaite
    1946). The interval and p-value are Student's t; `pooled_p_value` is the randomisation test over queries alone
    (each query's mean over seeds), which asks less. Wins, ties and losses are of those means.

    Raises InputError where there are fewer than two seeds or the two numbers differ.
    """
    if len(a) != len(b) or len(a) < 2:
        raise InputError(
            f"{len(a)} results against {len(b)}: seeds are compared in pairs, two at least; give both the same number."
        )
    differences = [paired_differences(one, other) for one, other in zip(a, b, strict=True)]
    names = list(differences[0])
    tasks_SQ = [np.stack([found[name] for found in differences]) for name in names]
    averaged = [d_SQ.mean(axis=0) for d_SQ in tasks_SQ]
    pooled_Q = np.concatenate(averaged)
    queries, tasks = len(pooled_Q), len(names)
    weighted_SQ = np.concatenate([d_SQ * (queries / (tasks * d_SQ.shape[1])) for d_SQ in tasks_SQ], axis=1)
    mean = float(weighted_SQ.mean())
    p_value, half, detectable = _crossed(weighted_SQ, [d_SQ.shape[1] for d_SQ in tasks_SQ])
    spread = float(np.std(pooled_Q, ddof=1)) if queries > 1 else 0.0
    rng = np.random.default_rng(seed)
    return Comparison(
        difference=mean,
        p_value=p_value,
        ci_low=mean - half,
        ci_high=mean + half,
        pooled_difference=float(pooled_Q.mean()),
        pooled_p_value=sign_flip_p_value(pooled_Q, rng, permutations=resamples),
        effect_size=float(pooled_Q.mean()) / spread if spread > 0 else 0.0,
        wins=int((pooled_Q > TIE).sum()),
        ties=int((np.abs(pooled_Q) <= TIE).sum()),
        losses=int((pooled_Q < -TIE).sum()),
        queries=queries,
        tasks=tasks,
        detectable=detectable,
        seeds=len(a),
    )


def _crossed(weighted_SQ: np.ndarray, sizes: Sequence[int]) -> tuple[float, float, float | None]:
    """p-value, half width of the 95 % interval and detectable difference of the mean of seeds x queries.

    Queries are compared within their task (`sizes`), whose means may differ.
    """
    from scipy.stats import t

    seeds, queries = weighted_SQ.shape
    mean = float(weighted_SQ.mean())
    by_seed_S, by_query_Q = weighted_SQ.mean(axis=1), weighted_SQ.mean(axis=0)
    blocks = np.split(np.arange(queries), np.cumsum(sizes)[:-1])
    task_S_of = [weighted_SQ[:, block].mean(axis=1) for block in blocks]
    of_seeds = queries * float(((by_seed_S - mean) ** 2).sum()) / (seeds - 1)
    freedom_q = max(queries - len(sizes), 1)
    of_queries = (
        seeds * sum(float(((by_query_Q[b] - by_query_Q[b].mean()) ** 2).sum()) for b in blocks) / freedom_q
    )
    residual = sum(
        float(((weighted_SQ[:, b] - task_S[:, None] - by_query_Q[b] + by_query_Q[b].mean()) ** 2).sum())
        for b, task_S in zip(blocks, task_S_of, strict=True)
    ) / (freedom_q * (seeds - 1))  # fmt: skip
    parts: tuple[tuple[Any, Any, int], ...]
    parts = ((of_seeds, seeds - 1, 1), (of_queries, freedom_q, 1), (residual, freedom_q * (seeds - 1), -1))
    total = sum(sign * square for square, _, sign in parts)
    if total < max(
        of_seeds, of_queries
    ):  # the estimate of one factor's share is negative: leave that factor out
        parts = ((of_seeds, seeds - 1, 1),) if of_seeds > of_queries else ((of_queries, freedom_q, 1),)
        total = max(of_seeds, of_queries)
    if total <= TIE**2:
        return (1.0 if abs(mean) <= TIE else 0.0), 0.0, None
    freedom = total**2 / sum(square**2 / count for square, count, _ in parts)
    error = float(np.sqrt(total / (seeds * queries)))
    critical = float(t.ppf(0.975, freedom))
    return (
        float(2 * t.sf(abs(mean) / error, freedom)),
        critical * error,
        (critical + float(t.ppf(0.8, freedom))) * error,
    )
