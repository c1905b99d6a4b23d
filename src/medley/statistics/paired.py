"""Resampling of paired differences: the sign-flip randomisation test and bootstrap means.

In: for each task, each query's score under model a and under model b. Out: differences, p-values, resampled means.
"""

from __future__ import annotations

from collections.abc import Mapping

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


def expanded_tail(queries: int, tasks: int = 1, *, alpha: float = 0.05) -> float:
    """The tail probability at which a percentile bootstrap interval covers 1 - alpha also with few queries.

    Resamples of n queries vary by a factor (n - 1) / n too little, and know nothing of Student's wider tails; the
    expanded percentile interval takes quantiles further out instead (Hesterberg 2015, section 4.2).
    """
    from scipy.stats import norm, t

    freedom = max(queries - tasks, 1)
    return float(norm.cdf(-np.sqrt(queries / freedom) * t.ppf(1 - alpha / 2, freedom)))
