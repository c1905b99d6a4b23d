"""How the model was made, for the page: merge search, training, data, leaks, stages.

Input: `Run`. Output: plain values and pictures; None or an empty list where the run has made nothing yet.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from medley.report import charts, dev_chart, findings, waterfall
from medley.report.formats import Candidate, Coefficient
from medley.report.numbers import count
from medley.report.reading import ALL, EXPERT, MERGED, Outcome, Run
from medley.report.search_front import front_chart
from medley.report.svg import padded


def search_values(run: Run) -> dict[str, Any] | None:
    """The merge search in numbers and pictures."""
    search = run.search
    if search is None:
        return None
    candidates = search.candidates or [search.best]
    both = [(c.predicted, c.score) for c in candidates if c.real and c.predicted is not None]
    alone = {name: c.score for c in candidates if c.real and (name := _only_expert(c.coefficients))}
    return {
        "strategy": search.strategy,
        "method": search.method.replace("_", " "),
        "encodings": search.encodings,
        "tried": len(candidates),
        "measured": sum(candidate.real for candidate in candidates),
        "best": search.best,
        "candidates": charts.candidates_chart(candidates, search.best, alone),
        "agreement": charts.agreement_chart(both) if len(both) > 2 else None,
        "error": sum(abs(a - b) for a, b in both) / len(both) if len(both) > 2 else None,
        "coefficients": charts.coefficients_chart(search.best.coefficients),
        "held_out": search.best.confirm.score if search.best.confirm else None,
        "front": front_chart(search.front) if search.front else None,
    }


def _only_expert(coefficients: Mapping[str, Coefficient]) -> str:
    """The expert that has all the weight; empty where several have some."""
    used = [
        name for name, value in coefficients.items() if any(value if isinstance(value, list) else [value])
    ]
    return used[0] if len(used) == 1 else ""


def dev_and_test(run: Run) -> dict[str, Any] | None:
    """For merged and for each expert that the search tried alone: dev score beside test score, by collection.

    Only collections that have both a dev and a test split here are listed by themselves.
    """
    if run.search is None or run.results is None:
        return None
    scored: dict[str, Candidate] = {MERGED: run.search.best}
    for candidate in run.search.candidates:
        name = _only_expert(candidate.coefficients)
        if candidate.real and name:
            scored.setdefault(EXPERT + name, candidate)
    tests = [task for _, names in findings.tasks_of(run.results) for task in names]
    devs = {name.partition(":")[0]: name for name in run.search.best.scores}
    shared = [task for task in tests if task in devs]
    rows = []
    for variant, candidate in scored.items():
        if variant in run.results.variants:
            pairs = [
                (candidate.scores.get(devs[task]), findings.score(run.results, variant, task))
                for task in shared
            ]
            rows.append((variant, [*pairs, (candidate.score, findings.mean(run.results, variant, tests))]))
    points = [
        (variant, dev, test)
        for variant, cells in rows
        if (dev := cells[-1][0]) is not None and (test := cells[-1][1]) is not None
    ]
    scatter = waterfall.scatter_chart(points) if len(points) > 1 else None
    return {"columns": [*shared, "mean of all"], "rows": rows, "scatter": scatter} if rows else None


def training_values(run: Run) -> list[dict[str, Any]]:
    """Each training with its curve; all curves share one scale, so that they can be compared."""
    losses = [point.loss for training in run.trainings.values() for point in training.losses]
    limits = padded([*losses, 0.0]) if losses else (0.0, 1.0)
    return [
        {
            "name": name,
            "is_all": name == ALL,
            "training": training,
            "picture": charts.losses_chart(training.losses, limits, name=name) if training.losses else None,
            "dev": dev_chart.dev_chart(training.dev, name=name) if training.dev else None,
            "dev_words": dev_chart.in_words(training.dev) if training.dev else "",
        }
        for name, training in run.trainings.items()
    ]


def data_values(run: Run) -> dict[str, Any] | None:
    """Rows and negatives by source, with sums."""
    if not run.sources:
        return None
    return {
        "sources": run.sources,
        "has_mined": any(source.mined for source in run.sources),
        "has_generated": any(source.generated for source in run.sources),
        "pairs": sum(source.pairs or 0 for source in run.sources),
        "mined": sum(source.mined.made for source in run.sources if source.mined),
        "generated": sum(source.generated.made for source in run.sources if source.generated),
    }


def outcome_in_words(outcome: Outcome) -> str:
    """`30 entity, 4 negation; dropped: 28 within margin; 2 rows got none`."""
    said = [_listed(outcome.other)] if any(outcome.other.values()) else []
    said += [f"dropped: {_listed(outcome.dropped)}"] if any(outcome.dropped.values()) else []
    if outcome.without:
        said.append(f"{count(outcome.without)} row{'s' if outcome.without > 1 else ''} got none")
    return "; ".join(said)


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count(number)} {key.replace('_', ' ')}" for key, number in counts.items() if number)


def leak_values(run: Run) -> dict[str, Any] | None:
    """What the leak check found: the recipe's policy, and rows found by source and collection."""
    if not run.sources:
        return None
    found = [
        (source.name, spec, rows) for source in run.sources for spec, rows in source.leaks.items() if rows
    ]
    return {
        "policy": run.recipe.get("leaks", "refuse"),
        "found": found,
        "rows": sum(rows for *_, rows in found),
        "findings": [(source, finding) for source, all_of_it in run.leaks.items() for finding in all_of_it],
    }


def ledger_values(run: Run) -> list[dict[str, Any]]:
    """What language models were asked: each artefact that paid for replies, as its summary's `llm` says."""
    rows = []
    for stage, artefacts in run.manifest.stages.items():
        for name, artefact in artefacts.items():
            paid = artefact.summary.get("llm")
            if isinstance(paid, Mapping):
                numbers = {
                    key: value
                    for key, value in paid.items()
                    if isinstance(value, (int, float)) and not isinstance(value, bool)
                }
                rows.append({"name": f"{stage}/{name}", "numbers": numbers})
    return rows


def cut_values(run: Run) -> list[tuple[str, str, int, int]]:
    """Where texts were longer than the model reads: the step, whose texts, how many were cut, of how many."""
    return [
        (f"{stage}/{name}", kind, int(counts["cut"]), int(counts["texts"]))
        for stage, artefacts in run.manifest.stages.items()
        for name, artefact in artefacts.items()
        for kind, counts in artefact.summary.get("cut", {}).items()
        if counts["cut"]
    ]


def stage_values(run: Run) -> dict[str, Any] | None:
    """Time by stage, and every artefact with its fingerprint."""
    stages = [
        {
            "name": stage,
            "seconds": sum(artefact.seconds for artefact in artefacts.values()),
            "artefacts": sorted(artefacts.items(), key=lambda item: item[1].finished),
        }
        for stage, artefacts in run.manifest.stages.items()
        if artefacts
    ]
    if not stages:
        return None
    return {
        "stages": stages,
        "total": _total(stages),
        "longest": max(stage["seconds"] for stage in stages) or 1.0,
    }


def _total(stages: Sequence[Mapping[str, Any]]) -> float:
    return sum(stage["seconds"] for stage in stages)
