"""What a mean hides, for the page: each task by itself, the worst one, and what a test set cannot show."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from medley.report import findings
from medley.report.formats import Results
from medley.report.reading import BASE


def by_task_values(tested: Sequence[findings.Difference], tasks: Sequence[str]) -> list[dict[str, Any]]:
    """For each rival, merged minus it on every task, tested; empty where there is one task only."""
    rows: dict[str, dict[str, findings.Difference]] = {}
    for found in tested:
        if found.task:
            rows.setdefault(found.b, {})[found.task] = found
    return [{"rival": rival, "cells": [by.get(task) for task in tasks]} for rival, by in rows.items()]


def guard_values(results: Results, tasks: Sequence[str]) -> list[dict[str, Any]]:
    """For each variant against the base: tasks improved, and the worst task with its difference."""
    from medley.statistics.demands import by_task

    def scores(variant: str) -> dict[str, float]:
        return {t: value for t in tasks if (value := findings.score(results, variant, t)) is not None}

    if BASE not in results.variants:
        return []
    base = scores(BASE)
    rows = ((v, by_task(scores(v), base)) for v in findings.variants_of(results) if v != BASE)
    return [{"variant": variant, "found": found} for variant, found in rows if found is not None]


def reach_values(
    tested: Sequence[findings.Difference], results: Results, tasks: Sequence[str]
) -> list[dict[str, Any]]:
    """For each test set its queries and the smallest difference to the base (or the first rival) that it shows."""
    rivals = list(dict.fromkeys(found.b for found in tested))
    rival = BASE if BASE in rivals else next(iter(rivals), None)
    rows = []
    for found in tested:
        if found.b == rival and (found.task or len(tasks) == 1):
            rows.append({"task": found.task or tasks[0], "queries": found.queries, "least": found.detectable})
    rows += [
        {"task": "mean of all", "queries": found.queries, "least": found.detectable}
        for found in tested
        if found.b == rival and not found.task and len(tasks) > 1
    ]
    return [{**row, "rival": rival} for row in rows]
