"""A paper's tables beside one's own numbers: Synthesize-Train-Merge on its 12 tasks.

In: results.json of runs, each under the name of its condition (FT, SHN, PO, SHN+PO, 100k, TIES). Out: rows with the
published figure and one's own. A mean over fewer tasks than the paper's says over how many, because it is another
number; where the paper gives single tasks (the linear merge), its mean over the same tasks stands beside.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from medley.errors import InputError
from medley.evaluate.suites import suite

METRIC = "ndcg_at_10"
CONDITIONS = ("FT", "SHN", "PO", "SHN+PO", "100k", "TIES")
"""FT: plain; SHN: with synthetic hard negatives; PO: with optimised prompts; 100k: on so many rows in all; TIES: FT
merged by TIES."""


@dataclass(frozen=True)
class Line:
    """A row of the table. `own` is None where no run gives it; `tasks` is over how many of the paper's it goes."""

    name: str
    published: float | None
    own: float | None
    tasks: int


@cache
def published() -> dict[str, Any]:
    """The paper's figures."""
    return yaml.safe_load((Path(__file__).parent / "published.yaml").read_text(encoding="utf-8"))


def base_number(base: str) -> int:
    """The column of a base. Raises InputError naming those of the paper."""
    if base not in published()["bases"]:
        raise InputError(f"--base {base}: not in the paper; choose one of {', '.join(published()['bases'])}.")
    return int(published()["bases"].index(base))


def own_scores(variant: Mapping[str, Any]) -> dict[str, float]:
    """A variant's nDCG@10 by the paper's task names: MTEB's, or a local copy's folder name."""
    names: dict[str, str] = {}
    for task in suite("stm12").tasks:
        names |= {alias: task.name for alias in (task.name, *task.local)}
    found = {name.partition("/")[0]: float(task[METRIC]) for name, task in variant["tasks"].items()}
    return {names[name]: score for name, score in found.items() if name in names}


def mean_lines(runs: Mapping[str, Mapping[str, Any]], base: str) -> list[Line]:
    """The table of all-task means. `runs` holds the `variants` of each condition's results."""
    column = base_number(base)
    own: dict[str, dict[str, float]] = {}
    best: dict[str, float] = {}
    for condition, variants in runs.items():
        experts = {name: own_scores(v) for name, v in variants.items() if name.startswith("expert:")}
        if experts and condition in CONDITIONS[:4]:
            shared = set.intersection(*(set(scores) for scores in experts.values()))
            own[f"expert mean {condition}"] = {
                task: sum(scores[task] for scores in experts.values()) / len(experts) for task in shared
            }
            top = max(experts.values(), key=lambda scores: _mean(scores.values()) or 0.0)
            if (_mean(top.values()) or 0.0) > (_mean(best.values()) or -1.0):
                best = top
        everything = {
            "FT": "FT on everything",
            "SHN": "FT on everything + SHN",
            "100k": "FT on 100k random rows",
        }
        if "all" in variants and condition in everything:
            own[everything[condition]] = own_scores(variants["all"])
        if "merged" in variants and condition != "100k":
            name = "STM TIES" if condition == "TIES" else "STM linear"
            merged = own_scores(variants["merged"])
            # several conditions end in a linear merge: the paper's is of its best experts
            if (_mean(merged.values()) or 0.0) > (_mean(own.get(name, {}).values()) or -1.0):
                own[name] = merged
        if "bm25" in variants:
            own["BM25"] = own_scores(variants["bm25"])
    if best:
        own["best single expert"] = best
    rows = {name: values[column] for name, values in published()["means"].items()} | published()["baselines"]
    return [
        Line(name, figure, _mean(own.get(name, {}).values()), len(own.get(name, {})))
        for name, figure in rows.items()
    ]


def task_lines(merged: Mapping[str, Any], base: str) -> list[Line]:
    """The linear merge task by task, then the mean over the tasks that both have."""
    column = base_number(base)
    own = own_scores(merged)
    figures = {name: values[column] for name, values in published()["linear"].items()}
    lines = [Line(name, figure, own.get(name), int(name in own)) for name, figure in figures.items()]
    shared = [name for name in figures if name in own]
    return [
        *lines,
        Line(
            "mean of shared tasks",
            _mean([figures[n] for n in shared]),
            _mean([own[n] for n in shared]),
            len(shared),
        ),
    ]


def _mean(values: Any) -> float | None:
    numbers: Sequence[float] = list(values)
    return sum(numbers) / len(numbers) if numbers else None
