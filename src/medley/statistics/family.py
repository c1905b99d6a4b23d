"""All comparisons of one report, tested and corrected together.

In: variants' per-query scores and the pairs to compare. Out: for each pair the mean over tasks and every task by
itself, each with its p-value corrected for the number of all of them (Holm 1979): whoever looks at forty differences
finds two below .05 where there is nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from medley.errors import InputError
from medley.statistics.compare import Comparison, compare, compare_seeds
from medley.statistics.paired import TaskQueryScores

METRIC = "ndcg_at_10"
ALPHA = 0.05
"""A corrected p-value below this is called a difference."""


@dataclass(frozen=True)
class Tested:
    """One comparison of a family. `task` is empty for the mean over tasks."""

    a: str
    b: str
    task: str
    found: Comparison
    p_holm: float

    @property
    def word(self) -> str:
        """`better`, `worse` (a than b), or `open` where the corrected test shows no difference."""
        if self.p_holm >= ALPHA:
            return "open"
        return "better" if self.found.difference > 0 else "worse"

    @property
    def in_words(self) -> str:
        """What may be said of it."""
        return {"better": "better", "worse": "worse", "open": "no difference shown"}[self.word]

    def as_json(self) -> dict[str, Any]:
        """A row of a table of comparisons."""
        return {
            "a": self.a, "b": self.b, "task": self.task, **self.found.as_json(), "p_holm": self.p_holm,
            "verdict": self.in_words,
        }  # fmt: skip


def compare_family(
    scores: Mapping[str, Sequence[TaskQueryScores]],
    pairs: Sequence[tuple[str, str]],
    *,
    seed: int,
    by_task: bool = True,
) -> list[Tested]:
    """Compare pairs of variants over the mean of their tasks and, where there are several, over each task.

    `scores` has one entry for each training seed of a variant; where both of a pair have several, seeds are a level
    of variation (`compare_seeds`). Tasks that only one of a pair has are left out. Raises InputError where two
    variants share no task or were scored on different queries.
    """
    made = []
    for a, b in dict.fromkeys(pairs):
        shared = [task for task in scores[a][0] if task in scores[b][0]]
        scopes = [("", shared), *((task, [task]) for task in shared if by_task and len(shared) > 1)]
        for name, tasks in scopes if shared else [("", [*scores[a][0], *scores[b][0]])]:
            made.append((a, b, name, _compared(scores[a], scores[b], tasks, seed=seed)))
    corrected = holm([found.p_value for *_, found in made])
    return [Tested(*given, p_holm) for given, p_holm in zip(made, corrected, strict=True)]


def comparison_rows(
    results: Mapping[str, Sequence[Mapping[str, Any]]],
    pairs: Sequence[tuple[str, str]],
    *,
    seed: int,
    by_task: bool = True,
) -> list[dict[str, Any]]:
    """Comparisons of variants given as in results.json (one for each seed): a row a pair, its tasks under `tasks`."""
    scores = {name: [per_query(one) for one in runs] for name, runs in results.items()}
    chosen = {name: _chosen_on(runs) for name, runs in results.items()}
    tested = compare_family(scores, pairs, seed=seed, by_task=by_task)
    return [
        {
            **one.as_json(),
            "comparisons": len(tested),
            "chosen_on": {name: chosen[name] for name in (one.a, one.b) if chosen[name]},
            "by_task": [t.as_json() for t in tested if (t.a, t.b) == (one.a, one.b) and t.task],
        }
        for one in tested
        if not one.task
    ]


def _chosen_on(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The tasks on whose queries a variant was chosen, as `medley evaluate` found."""
    return {
        task: scored["chosen_on"]
        for result in runs
        for task, scored in result["tasks"].items()
        if "chosen_on" in scored
    }


def per_query(result: Mapping[str, Any], metric: str = METRIC) -> dict[str, dict[str, float]]:
    """For each task of a variant in results.json, each query's score. Raises InputError where it has none."""
    found = {}
    for name, task in result["tasks"].items():
        rows = task.get("per_query") or {}
        if not rows or any(metric not in scores for scores in rows.values()):
            raise InputError(f"{name}: has no {metric} for every query; evaluate again, with `--out`.")
        found[name] = {query: scores[metric] for query, scores in rows.items()}
    return found


def _compared(
    a: Sequence[TaskQueryScores], b: Sequence[TaskQueryScores], tasks: Sequence[str], *, seed: int
) -> Comparison:
    ours = [{task: one[task] for task in tasks if task in one} for one in a]
    theirs = [{task: one[task] for task in tasks if task in one} for one in b]
    if len(ours) == len(theirs) == 1:
        return compare(ours[0], theirs[0], seed=seed)
    return compare_seeds(ours, theirs, seed=seed)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction of a family of p-values, in the order given (Holm 1979)."""
    corrected = [0.0] * len(p_values)
    running = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        running = max(running, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = running
    return corrected
