"""The regression guard: what a mean hides, and what a run may demand of its result before the model is handed over.

In: variants' scores by task, tested comparisons. Out: worst task and number of tasks improved beside the mean; for
each demand whether it is met, and by which tasks not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from medley.statistics.compare import Comparison, compare
from medley.statistics.paired import TaskQueryScores


class Demand(BaseModel):
    """No task of a group may be worse than a variant by more than `by` (nDCG@10)."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    group: str = Field(description="of `evaluate`'s groups")
    than: str = Field("base", description="variant that is compared with: base, all, bm25, expert:NAME")
    by: float = Field(0.01, ge=0, le=1, description="nDCG@10 that a task may lose")
    evidence: Literal["estimate", "interval"] = Field(
        "estimate",
        description="estimate: the measured loss must not exceed `by`; interval: nor may the 95 % interval reach "
        "beyond it, so that few queries are no excuse",
    )


@dataclass(frozen=True)
class Broken:
    """A task that breaks a demand: difference to the other variant, with its interval."""

    task: str
    difference: float
    ci_low: float
    ci_high: float
    detectable: float | None


@dataclass(frozen=True)
class Outcome:
    """A demand, how many tasks were looked at, and those that break it."""

    demand: Demand
    tasks: int
    broken: tuple[Broken, ...]

    @property
    def met(self) -> bool:
        """Whether every task of the group keeps to it."""
        return not self.broken

    @property
    def sentence(self) -> str:
        """`no general task worse than base by more than .01: broken by scidocs (-.034, 95 % interval ...)`."""
        said = (
            f"no {self.demand.group} task worse than {self.demand.than} by more than {self.demand.by:g}"
            + (", with its 95 % interval" if self.demand.evidence == "interval" else "")
        )
        if self.met:
            return f"{said}: met on {self.tasks} task{'s' if self.tasks != 1 else ''}"
        tasks = ", ".join(
            f"{b.task} ({b.difference:+.4f}, 95 % interval {b.ci_low:+.4f} to {b.ci_high:+.4f})"
            for b in self.broken
        )
        return f"{said}: broken by {tasks}"

    def as_json(self) -> dict[str, Any]:
        """For results.json."""
        return {
            "demand": self.demand.model_dump(), "met": self.met, "tasks": self.tasks, "sentence": self.sentence,
            "broken": [asdict(one) for one in self.broken],
        }  # fmt: skip


def check_demand(
    demand: Demand, merged: TaskQueryScores, other: TaskQueryScores, tasks: Sequence[str], *, seed: int
) -> Outcome:
    """Hold one demand against the per-query scores of the merged model and of the other variant."""
    found = {task: compare({task: merged[task]}, {task: other[task]}, seed=seed) for task in tasks}
    return Outcome(
        demand,
        len(found),
        tuple(
            Broken(task, one.difference, one.ci_low, one.ci_high, one.detectable)
            for task, one in found.items()
            if _breaks(one, demand)
        ),
    )


def _breaks(found: Comparison, demand: Demand) -> bool:
    worst = found.ci_low if demand.evidence == "interval" else found.difference
    return worst < -demand.by - 1e-12


@dataclass(frozen=True)
class ByTask:
    """A variant against another, task by task: the worst task and how many are better."""

    worst: str
    worst_difference: float
    improved: int
    tasks: int


def by_task(ours: Mapping[str, float], theirs: Mapping[str, float]) -> ByTask | None:
    """Compare means by task; None where no task is shared."""
    gaps = {task: ours[task] - theirs[task] for task in ours if task in theirs}
    if not gaps:
        return None
    worst = min(gaps, key=lambda task: gaps[task])
    return ByTask(worst, gaps[worst], sum(gap > 0 for gap in gaps.values()), len(gaps))
