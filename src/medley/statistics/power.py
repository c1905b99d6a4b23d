"""What a test set can show: the smallest difference that this many queries would have found.

In: paired differences of each task. Out: the minimum detectable effect, (t_{1 - alpha/2} + t_{power}) times the
standard error of the mean, with n - 1 degrees of freedom (Cohen 1988, section 2.3; for retrieval tests Sakai 2016).
A smaller true difference goes unseen more often than one time in five: `no difference shown` says nothing about it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

ALPHA = 0.05
POWER = 0.8
DIFFERING = 10
"""With fewer queries whose scores differ their spread is a guess: one of eight would promise to find almost nothing."""


def standard_error(tasks: Sequence[np.ndarray]) -> float | None:
    """Of the mean over tasks of each task's mean of paired differences (Q,); None where a task has but one query."""
    if any(len(d_Q) < 2 for d_Q in tasks):
        return None
    return float(np.sqrt(sum(d_Q.var(ddof=1) / len(d_Q) for d_Q in tasks))) / len(tasks)


def detectable_difference(
    tasks: Sequence[np.ndarray], *, alpha: float = ALPHA, power: float = POWER
) -> float | None:
    """The smallest true difference of the mean over tasks that a two-sided test finds with this probability.

    None where there are too few queries to tell (a task with one, or fewer than DIFFERING that differ at all), or
    where all differences are equal.
    """
    if sum(int(np.count_nonzero(d_Q)) for d_Q in tasks) < DIFFERING:
        return None
    error = standard_error(tasks)
    if not error:
        return None
    from scipy.stats import t

    freedom = sum(len(d_Q) for d_Q in tasks) - len(tasks)
    return float((t.ppf(1 - alpha / 2, freedom) + t.ppf(power, freedom)) * error)
