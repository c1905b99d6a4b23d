"""The page: everything the template shows, computed from a run, and the template filled in.

Input: `Run`. Output: HTML text. The template only places values; what it is given is plain data, which Jinja
escapes, and pictures, which charts.py escapes itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from medley.progress import printable
from medley.report import charts, findings, guarding, helped, making, numbers, prompts, waterfall
from medley.report.reading import BASE, MERGED, Run
from medley.report.samples import draw_samples
from medley.report.svg import padded
from medley.report.verdict import judge

SAMPLES = 6
CHANGED = 10
"""Queries listed as most improved, and as most hurt."""
METRIC_NAMES = {
    "ndcg_at_10": "nDCG@10", "mrr_at_10": "MRR@10", "map": "MAP@100", "recall_at_10": "Recall@10",
    "recall_at_100": "Recall@100", "judged_at_10": "Judged@10",
}  # fmt: skip


def render_report(run: Run, others: Sequence[Run] = ()) -> str:
    """The whole page as HTML; `others` are runs to be shown beside this one."""
    import jinja2
    from markupsafe import Markup

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_shown,
    )
    for name in (
        "score",
        "signed",
        "p_value",
        "p_alone",
        "interval",
        "count",
        "duration",
        "plain",
        "variant",
    ):
        environment.filters[name] = getattr(numbers, name)
    environment.filters["drawn"] = Markup
    environment.globals["outcome_in_words"] = making.outcome_in_words
    return environment.get_template("report.html").render(page_values(run, others))


def _shown(value: Any) -> Any:
    """What the page holds of a value: what a browser would obey is spelled out; pictures did so themselves."""
    from markupsafe import Markup

    return printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def page_values(run: Run, others: Sequence[Run] = ()) -> dict[str, Any]:
    """What the template is filled with; a section that has no data is None or empty."""
    seed = run.manifest.seed or 0
    names = [source.name for source in run.sources]
    return {
        "run": run,
        "samples": draw_samples(run.folder / "stages", names, count=SAMPLES, seed=seed),
        "seed": run.manifest.seed,
        "base": run.recipe.get("base", ""),
        **_result_values(run, seed),
        "beside": helped.beside(run, others, seed=seed),
        "instruction_gain": helped.instruction_gain(run),
        "cases": run.cases,
        "ledger": making.ledger_values(run),
        "search": making.search_values(run),
        "dev_and_test": making.dev_and_test(run),
        "instructions": prompts.instruction_values(run),
        "trainings": making.training_values(run),
        "data": making.data_values(run),
        "leaks": making.leak_values(run),
        "cut": making.cut_values(run),
        "stages": making.stage_values(run),
    }


def _result_values(run: Run, seed: int) -> dict[str, Any]:
    """Verdict, tables and pictures of the results."""
    results = run.results
    empty: dict[str, Any] = {
        "table": None,
        "panels": [],
        "metrics": None,
        "tallies": [],
        "changes": None,
        "tiles": [],
        "waterfall": None,
        "by_task": [],
        "guard": [],
        "reach": [],
        "demands": [],
    }
    if results is None:
        return {**empty, "verdict": judge(None, [])}
    variants = findings.variants_of(results)
    tasks = [task for _, names in findings.tasks_of(results) for task in names]
    rivals = [variant for variant in variants if variant != MERGED and MERGED in variants]
    tested = findings.tested(results, rivals, tasks, seed=seed)
    means = [found for found in tested if not found.task]
    verdict = judge(results, means)
    limits = padded(
        [edge for claim in verdict.claims for edge in (claim.found.low, claim.found.high, 0.0)] or [0.0]
    )
    steps = helped.steps(results, tasks, seed=seed)
    return {
        "verdict": verdict,
        "tiles": [(claim, charts.interval_chart(claim.found, limits)) for claim in verdict.claims],
        "table": _table(run, {found.b: found for found in means}, len(tested)),
        "panels": _panels(run, tasks, seed),
        "metrics": _metrics(run, variants, tasks),
        "tallies": [
            (rival, charts.tally_chart(counted))
            for rival in rivals
            if (counted := findings.tallies(results, rival, tasks))
        ],
        "changes": _changes(run, tasks),
        "waterfall": waterfall.waterfall_chart(steps) if steps else None,
        "by_task": guarding.by_task_values(tested, tasks),
        "guard": guarding.guard_values(results, tasks),
        "reach": guarding.reach_values(tested, results, tasks),
        "demands": results.demands,
    }


def _table(run: Run, tested: Mapping[str, findings.Difference], tests: int) -> dict[str, Any]:
    """Variants by tasks, with means of groups that have several tasks, and the best of each column."""
    results = run.results
    assert results is not None
    groups = findings.tasks_of(results)
    tasks = [task for _, names in groups for task in names]
    columns: list[tuple[str, list[str]]] = []
    heads = []
    for group, names in groups:
        with_mean = len(names) > 1 and len(groups) > 1
        columns += [(task, [task]) for task in names]
        columns += [(f"mean of {group or 'others'}", names)] if with_mean else []
        heads.append((group, len(names) + with_mean))
    columns += [("mean", tasks)] if len(tasks) > 1 else []
    variants = findings.variants_of(results)
    cells = {v: [findings.mean(results, v, names) for _, names in columns] for v in variants}
    best = [max((round(cells[v][i] or 0.0, 3) for v in variants), default=0.0) for i in range(len(columns))]
    return {
        "heads": heads if any(group for group, _ in groups) else [],
        "means": len(tasks) > 1,
        "columns": [(name, len(names) > 1) for name, names in columns],
        "rows": [
            {
                "variant": v,
                "cells": [
                    (value, value is not None and round(value, 3) == best[i], _half(run, v, columns[i]))
                    for i, value in enumerate(cells[v])
                ],
                "test": tested.get(v),
            }
            for v in variants
        ],
        "tests": tests,
    }


def _half(run: Run, variant: str, column: tuple[str, list[str]]) -> float | None:
    """Half of the interval of a cell about one task."""
    name, names = column
    return findings.half_width(run.results, variant, name) if run.results and names == [name] else None


def _panels(run: Run, tasks: list[str], seed: int) -> list[dict[str, Any]]:
    """One dot plot for the mean and for each task, all on one scale, with the same numbers as a table."""
    results = run.results
    assert results is not None
    if BASE not in results.variants:
        return []
    places = [("Mean of all tests", tasks)] if len(tasks) > 1 else []
    places += [(task, [task]) for task in tasks]
    made = [(title, names, findings.over_base(results, names, seed=seed)) for title, names in places]
    made = [(title, names, found) for title, names, found in made if found]
    edges = [edge for *_, found in made for d in found for edge in (d.low, d.high)]
    limits = padded([*edges, 0.0]) if edges else (0.0, 1.0)
    return [
        {
            "title": title,
            "picture": charts.differences_chart(
                found, limits, title=title, base_score=findings.mean(results, BASE, names)
            ),
            "differences": found,
        }
        for title, names, found in made
    ]


def _metrics(run: Run, variants: list[str], tasks: list[str]) -> dict[str, Any] | None:
    """Means over all tests of the other measures."""
    results = run.results
    assert results is not None
    table = {v: {m: findings.mean(results, v, tasks, m) for m in METRIC_NAMES} for v in variants}
    names = [m for m in METRIC_NAMES if any(table[v][m] is not None for v in variants)]
    if len(names) < 2:
        return None
    return {
        "names": [METRIC_NAMES[m] for m in names],
        "rows": [(v, [table[v][m] for m in names]) for v in variants],
    }


def _changes(run: Run, tasks: list[str]) -> dict[str, Any] | None:
    """The queries that merged improves and hurts most against the base."""
    results = run.results
    assert results is not None
    if not {MERGED, BASE} <= results.variants.keys():
        return None
    changes = findings.query_changes(results, tasks)
    improved = [change for change in changes[:CHANGED] if change.change > 0]
    hurt = [change for change in reversed(changes[-CHANGED:]) if change.change < 0]
    return {"improved": improved, "hurt": hurt} if improved or hurt else None
