"""Building the proof: per-query scores of every variant, paired tests against the merged model, the report."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from medley.files import read_json, write_json, writing
from medley.pipeline.inputs import Inputs
from medley.pipeline.models import variant_retriever
from medley.recipe import Recipe

RESULTS = "results.json"
METRIC = "ndcg_at_10"


def build_evaluation(
    recipe: Recipe, inputs: Inputs, variant: str, out: Path, needs: Mapping[str, Path]
) -> dict[str, Any]:
    """Score one variant on every test collection; the test sets are read here and nowhere before."""
    from medley.evaluate.scores import evaluate_bm25, evaluate_retriever

    collections = {spec: inputs.collection(spec) for spec in recipe.evaluate.tasks}
    if variant == "bm25":
        model: dict[str, Any] = {"name": "bm25"}
        scores = evaluate_bm25(list(collections.values()))
    else:
        retriever = variant_retriever(recipe, variant, needs)
        given = {collection.name: recipe.instruction_for(spec) for spec, collection in collections.items()}
        instructions = {name: text for name, text in given.items() if text is not None}
        model = {"name": variant, "identity": retriever.identity(), "instruction": retriever.instruction}
        scores = evaluate_retriever(retriever, list(collections.values()), instructions=instructions)
    tasks = {name: task.as_json() for name, task in scores.items()}
    write_json(out / RESULTS, {"model": model, "tasks": tasks})
    return {METRIC: {name: task[METRIC] for name, task in tasks.items()}}


def build_report(
    recipe: Recipe,
    inputs: Inputs,
    variants: Sequence[str],
    folder: Path,
    out: Path,
    needs: Mapping[str, Path],
) -> dict[str, Any]:
    """Assemble results.json, test every difference to the merged model, and write report.html."""
    from medley.report import write_report

    found = {variant: read_json(needs[f"evaluate/{variant}"] / RESULTS) for variant in variants}
    collections = {spec: inputs.collection(spec) for spec in recipe.evaluate.tasks}
    results = {
        "variants": found,
        "groups": {
            group: [collections[spec].name for spec in specs]
            for group, specs in recipe.evaluate.groups.items()
        },
        "comparisons": compare_variants(found, "merged", seed=recipe.seed),
        "queries": {c.name: dict(c.queries) for c in collections.values()},
    }
    results["demands"] = check_demands(recipe, results)
    write_json(out / RESULTS, results)
    write_json(folder / RESULTS, results)
    write_report(folder)
    return {"means": {variant: mean_score(result) for variant, result in found.items()}}


def mean_score(result: Mapping[str, Any]) -> float:
    """Mean over tasks of a variant's nDCG@10."""
    tasks = result["tasks"].values()
    return sum(task[METRIC] for task in tasks) / len(tasks)


def compare_variants(
    results: Mapping[str, Mapping[str, Any]], reference: str, *, seed: int
) -> list[dict[str, Any]]:
    """Tests of `reference` against every other variant, by mean and by task, Holm-corrected over all of them."""
    from medley.statistics.family import comparison_rows

    others = [variant for variant in results if variant != reference]
    runs = {variant: [result] for variant, result in results.items()}
    return comparison_rows(runs, [(reference, other) for other in others], seed=seed)


def check_demands(recipe: Recipe, results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Hold the recipe's demands against the scores of merged."""
    from medley.statistics.demands import check_demand
    from medley.statistics.family import per_query

    merged = per_query(results["variants"]["merged"])
    return [
        check_demand(
            demand,
            merged,
            per_query(results["variants"][demand.than]),
            results["groups"][demand.group],
            seed=recipe.seed,
        ).as_json()
        for demand in recipe.evaluate.demands
    ]


def publish_model(folder: Path) -> None:
    """Put the merged model at `model/` by hard links: no second copy on disk, and no link that breaks when moved."""
    with writing(folder / "model") as temporary:
        source = folder / "stages" / "merge" / "model" / "model"
        try:
            shutil.copytree(source, temporary, copy_function=os.link)
        except OSError:  # another file system, or one without hard links
            shutil.rmtree(temporary, ignore_errors=True)
            shutil.copytree(source, temporary)
