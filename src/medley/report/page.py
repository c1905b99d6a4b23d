"""The page: everything the template shows, computed from a run, and the template filled in.

Input: `Run`. Output: HTML text. The template only places values; what it is given is plain data, which Jinja
escapes, and pictures, which charts.py escapes itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medley.report import charts, findings, making, numbers, prompts
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


def render_report(run: Run) -> str:
    """The whole page as HTML."""
    import jinja2
    from markupsafe import Markup

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
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
    return environment.get_template("report.html").render(page_values(run))


def page_values(run: Run) -> dict[str, Any]:
    """What the template is filled with; a section that has no data is None or empty."""
    seed = run.manifest.seed or 0
    names = [source.name for source in run.sources]
    return {
        "run": run,
        "samples": draw_samples(run.folder / "stages", names, count=SAMPLES, seed=seed),
        "seed": run.manifest.seed,
        "base": run.recipe.get("base", ""),
        **_result_values(run, seed),
        "search": making.search_values(run),
        "dev_and_test": making.dev_and_test(run),
        "instructions": prompts.instruction_values(run),
        "trainings": making.training_values(run),
        "data": making.data_values(run),
        "leaks": making.leak_values(run),
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
    }
    if results is None:
        return {**empty, "verdict": judge(None, [])}
    variants = findings.variants_of(results)
    tasks = [task for _, names in findings.tasks_of(results) for task in names]
    rivals = [variant for variant in variants if variant != MERGED and MERGED in variants]
    tested = findings.differences(results, [(MERGED, rival) for rival in rivals], tasks, seed=seed)
    verdict = judge(results, tested)
    limits = padded(
        [edge for claim in verdict.claims for edge in (claim.found.low, claim.found.high, 0.0)] or [0.0]
    )
    return {
        "verdict": verdict,
        "tiles": [(claim, charts.interval_chart(claim.found, limits)) for claim in verdict.claims],
        "table": _table(run, {found.b: found for found in tested}),
        "panels": _panels(run, tasks, seed),
        "metrics": _metrics(run, variants, tasks),
        "tallies": [
            (rival, charts.tally_chart(counted))
            for rival in rivals
            if (counted := findings.tallies(results, rival, tasks))
        ],
        "changes": _changes(run, tasks),
    }


def _table(run: Run, tested: Mapping[str, findings.Difference]) -> dict[str, Any]:
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
                    (value, value is not None and round(value, 3) == best[i])
                    for i, value in enumerate(cells[v])
                ],
                "test": tested.get(v),
            }
            for v in variants
        ],
        "tests": len(tested),
    }


def _panels(run: Run, tasks: list[str], seed: int) -> list[dict[str, Any]]:
    """One dot plot for the mean and for each task, all on one scale, with the same numbers as a table."""
    results = run.results
    assert results is not None
    if BASE not in results.variants:
        return []
    others = [(variant, BASE) for variant in findings.variants_of(results) if variant != BASE]
    places = [("Mean of all tests", tasks)] if len(tasks) > 1 else []
    places += [(task, [task]) for task in tasks]
    made = [
        (title, names, findings.differences(results, others, names, seed=seed)) for title, names in places
    ]
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
