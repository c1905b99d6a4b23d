"""Are the tests calibrated? False alarms on simulated null comparisons, power, coverage of the intervals.

    python benchmarks/significance.py --comparisons 1000

Scores are drawn as real ones look: each query has a difficulty that two models share, nDCG@10 piles up at 0 and 1.
Under the null the two models are draws of one law; with an effect one of them is better by a constant on the scale
underneath. `--results` takes a run's results.json instead and shuffles the labels of real per-query scores.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

from medley.statistics.compare import Comparison, compare, compare_seeds
from medley.statistics.family import holm, per_query

Draw = Callable[[np.random.Generator, int, float], tuple[np.ndarray, np.ndarray]]


def as_scores(values_Q: np.ndarray) -> dict[str, dict[str, float]]:
    """One task's per-query scores."""
    return {"t": {str(q): float(value) for q, value in enumerate(values_Q)}}


def retrieval_scores(rng: np.random.Generator, queries: int, shift: float) -> tuple[np.ndarray, np.ndarray]:
    """Two models' nDCG@10: a shared difficulty, noise of their own, and a pile of zeros and ones."""
    difficulty_Q = rng.normal(0.2, 1.1, queries)
    both = []
    for extra in (shift, 0.0):
        level_Q = 1 / (1 + np.exp(-(difficulty_Q + extra + rng.normal(0, 0.8, queries))))
        both.append(np.where(level_Q < 0.25, 0.0, np.where(level_Q > 0.75, 1.0, level_Q)))
    return both[0], both[1]


def real_null(path: Path, rng: np.random.Generator) -> Draw:
    """Scores of two variants of a run, each query's pair in a random order: nothing can differ but by chance."""
    variants = json.loads(path.read_text(encoding="utf-8"))["variants"]
    a, b = (per_query(variants[name]) for name in ("merged", "all"))
    gaps_Q = np.array([a[task][q] - b[task][q] for task in a for q in a[task]])

    def draw(rng: np.random.Generator, queries: int, shift: float) -> tuple[np.ndarray, np.ndarray]:
        chosen_Q = rng.choice(gaps_Q, queries) * rng.choice([-1, 1], queries) + shift
        return chosen_Q, np.zeros(queries)

    return draw


def tried(draw: Draw, count: int, queries: int, shift: float, seed: int) -> list[Comparison]:
    """So many comparisons of two models."""
    rng = np.random.default_rng(seed)
    return [
        compare(*map(as_scores, draw(rng, queries, shift)), seed=number, permutations=2_000, resamples=1_000)
        for number in range(count)
    ]


def share(found: list[bool]) -> str:
    """A share in per cent."""
    return f"{100 * np.mean(found):.1f} %"


def null_table(draw: Draw, count: int) -> None:
    """False alarms, and how often the interval holds the truth, which is 0."""
    print(
        "| queries | p below .05 | p below .01 | 95 % interval holds 0 | p below .05 after Holm, any of 8 |"
    )
    print("|---|---|---|---|---|")
    for queries in (25, 100, 400):
        found = tried(draw, count, queries, 0.0, seed=queries)
        families = [
            holm([one.p_value for one in found[start : start + 8]]) for start in range(0, count - 7, 8)
        ]
        print(
            f"| {queries} | {share([one.p_value < 0.05 for one in found])} "
            f"| {share([one.p_value < 0.01 for one in found])} "
            f"| {share([one.ci_low <= 0 <= one.ci_high for one in found])} "
            f"| {share([min(family) < 0.05 for family in families])} |",
            flush=True,
        )


def power_table(count: int) -> None:
    """Power at fixed differences, and at the difference that the report calls detectable."""
    print(
        "\n| queries | true difference | p below .05 (power) | detectable difference, mean |\n|---|---|---|---|"
    )
    for queries in (25, 100, 400):
        noise = tried(retrieval_scores, 100, queries, 0.0, seed=7)
        detectable = float(np.mean([one.detectable or 0 for one in noise]))
        for shift in (0.1, 0.3, _shift_for(detectable)):
            truth = _true_difference(shift)
            found = tried(retrieval_scores, count, queries, shift, seed=queries + 1)
            mark = " (= detectable)" if abs(truth - detectable) < 0.003 else ""
            print(f"| {queries} | {truth:.3f}{mark} | {share([one.p_value < 0.05 for one in found])} "
                  f"| {np.mean([one.detectable or 0 for one in found]):.3f} |", flush=True)  # fmt: skip


def _true_difference(shift: float) -> float:
    a, b = retrieval_scores(np.random.default_rng(0), 400_000, shift)
    return float((a - b).mean())


def _shift_for(difference: float) -> float:
    """The shift on the scale underneath that gives this difference of means."""
    low, high = 0.0, 6.0
    for _ in range(20):
        middle = (low + high) / 2
        low, high = (middle, high) if _true_difference(middle) < difference else (low, middle)
    return low


def seeds_table(count: int) -> None:
    """False alarms where training seeds differ: tests over queries alone, and over queries and seeds."""
    print(
        "\n| seeds | spread of seeds | p below .05, queries alone | p below .05, queries and seeds |\n|---|---|---|---|"
    )
    for seeds, spread in ((3, 0.0), (3, 0.02), (5, 0.02)):
        rng = np.random.default_rng(seeds)
        found = []
        for number in range(count):
            runs = [retrieval_scores(rng, 100, 0.0) for _ in range(seeds)]
            ours = [as_scores(a + rng.normal(0, spread)) for a, _ in runs]
            found.append(compare_seeds(ours, [as_scores(b) for _, b in runs], seed=number, resamples=1_000))
        print(f"| {seeds} | {spread} | {share([one.pooled_p_value < 0.05 for one in found])} "
              f"| {share([one.p_value < 0.05 for one in found])} |", flush=True)  # fmt: skip


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--comparisons", type=int, default=1_000)
    parser.add_argument("--results", type=Path, help="a run's results.json with the variants merged and all")
    given = parser.parse_args()
    if given.results:
        null_table(real_null(given.results, np.random.default_rng(0)), given.comparisons)
        return
    null_table(retrieval_scores, given.comparisons)
    power_table(max(100, given.comparisons // 4))
    seeds_table(given.comparisons // 2)


if __name__ == "__main__":
    main()
