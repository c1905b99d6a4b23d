"""Is the chosen instruction better, or was it luck? Decided on queries that had no part in choosing it.

The dev queries are split once: `choose` and `confirm`, each collection in half. On `confirm` the choice is held
against the seed instruction by a paired test, which is handed in. Beside them stand no instruction at all and a random
sample of the library: where these score alike, instructions do not matter for this model, and that is a result.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from medley.prompts.scoring import Scorer

RANDOM_INSTRUCTIONS = 20
FEWEST = 2
"""Confirming queries below which nothing is tested."""
TaskScores = dict[str, dict[str, float]]
PairedTest = Callable[[TaskScores, TaskScores], dict[str, Any]]
"""Two systems' scores by collection and query -> difference, p_value, ci_low, ci_high and more."""
Verdict = Literal["seed is best", "better", "no significant difference", "worse", "too few queries"]


@dataclass(frozen=True)
class Halves:
    """Places of the queries to choose by, in random order with collections mixed, and of those to confirm by."""

    choose: np.ndarray
    confirm: np.ndarray


@dataclass(frozen=True)
class Proof:
    """What the confirming queries say. Scores are mean nDCG@10, collections weighing the same.

    `versus_seed` and `versus_none` are paired tests of the best candidate; None where there was nothing to test.
    """

    verdict: Verdict
    queries: int
    best: float | None = None
    seed: float | None = None
    no_instruction: float | None = None
    random_mean: float | None = None
    random_spread: float | None = None
    random_low: float | None = None
    random_high: float | None = None
    random_count: int = 0
    versus_seed: dict[str, Any] | None = None
    versus_none: dict[str, Any] | None = None

    def as_json(self) -> dict[str, Any]:
        """As prompt.json holds it."""
        return asdict(self)


def halves(scorer: Scorer, seed: int) -> Halves:
    """Split each collection's queries at random; the odd one goes to `choose`."""
    rng = np.random.default_rng(seed)
    by_set: dict[str, list[int]] = {}
    for row, query in enumerate(scorer.queries):
        by_set.setdefault(query.dev.name, []).append(row)
    choose: list[tuple[float, int]] = []
    confirm: list[int] = []
    for rows in by_set.values():
        shuffled = [int(row) for row in rng.permutation(rows)]
        half = -(-len(shuffled) // 2)
        # each collection spread evenly over the order, so that the first rounds of a race see all of them
        choose += [((place + 0.5) / half, row) for place, row in enumerate(shuffled[:half])]
        confirm += shuffled[half:]
    return Halves(
        np.array([row for _, row in sorted(choose)], dtype=int), np.array(sorted(confirm), dtype=int)
    )


def prove(
    scorer: Scorer,
    rows: np.ndarray,
    *,
    best: str,
    seed_instruction: str,
    library: Sequence[str],
    test: PairedTest,
    alpha: float,
    seed: int,
) -> Proof:
    """Hold the best candidate against the seed instruction, none, and random ones, on the rows given."""
    if len(rows) < FEWEST:
        return Proof("seed is best" if best == seed_instruction else "too few queries", len(rows))
    others = [text for text in library if text not in (best, seed_instruction)]
    drawn = random.Random(seed).sample(others, min(RANDOM_INSTRUCTIONS, len(others)))
    texts = list(dict.fromkeys([best, seed_instruction, "", *drawn]))
    values = dict(zip(texts, scorer.scores(texts, rows), strict=True))
    means = {text: float(scores_R @ scorer.weights(rows)) for text, scores_R in values.items()}
    spread = np.array([means[text] for text in drawn])

    def against(other: str) -> dict[str, Any] | None:
        if other == best:
            return None
        return test(_by_task(scorer, rows, values[best]), _by_task(scorer, rows, values[other]))

    versus_seed = against(seed_instruction)
    return Proof(
        _verdict(versus_seed, alpha),
        len(rows),
        best=means[best],
        seed=means[seed_instruction],
        no_instruction=means[""],
        random_mean=float(spread.mean()) if len(spread) else None,
        random_spread=float(spread.std(ddof=1)) if len(spread) > 1 else None,
        random_low=float(spread.min()) if len(spread) else None,
        random_high=float(spread.max()) if len(spread) else None,
        random_count=len(drawn),
        versus_seed=versus_seed,
        versus_none=against(""),
    )


def _verdict(versus_seed: dict[str, Any] | None, alpha: float) -> Verdict:
    if versus_seed is None:
        return "seed is best"
    if versus_seed["p_value"] >= alpha:
        return "no significant difference"
    return "better" if versus_seed["difference"] > 0 else "worse"


def _by_task(scorer: Scorer, rows: np.ndarray, scores_R: np.ndarray) -> TaskScores:
    found: TaskScores = {}
    for row, score in zip(rows, scores_R, strict=True):
        query = scorer.queries[row]
        found.setdefault(query.dev.name, {})[query.id] = float(score)
    return found
