"""Building the proof: per-query scores of every variant, paired tests against the merged model, the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from medley.files import read_json, write_json, write_text
from medley.pipeline.cases import FAILURES, changed_cases
from medley.pipeline.inputs import Inputs
from medley.pipeline.models import variant_retriever
from medley.pipeline.publish import BROKEN, CARD, RECIPE, RESULTS
from medley.recipe import Recipe, write_recipe
from medley.run import MANIFEST, Step, manifest_of

METRIC = "ndcg_at_10"


def build_evaluation(
    recipe: Recipe, inputs: Inputs, variant: str, out: Path, needs: Mapping[str, Path]
) -> dict[str, Any]:
    """Score one variant on every test collection; the test sets are read here and nowhere before."""
    from medley.evaluate.scores import DEPTH, by_name
    from medley.evaluate.systems import (
        FUSED,
        Options,
        Row,
        chosen_by,
        evaluate_rows,
        open_system,
        own_variant,
        system_of,
    )
    from medley.evaluate.table import say_chosen, with_chosen
    from medley.search import rank_with_bm25

    collections = {spec: inputs.collection(spec) for spec in recipe.evaluate.tasks}
    given = {collection.name: recipe.instruction_for(spec) for spec, collection in collections.items()}
    name = recipe.evaluate.systems.get(variant, variant)
    options = Options(
        instructions={name: text for name, text in given.items() if text is not None},
        access={
            name.removesuffix(FUSED): own for key, own in recipe.evaluate.servers.items() if key == variant
        },
    )
    own = own_variant(name)
    system = (
        open_system(name.removesuffix(FUSED), options)
        if own is None or own == "bm25"
        else system_of(variant, variant_retriever(recipe, own, needs))
    )
    row = Row(variant, fused=name.endswith(FUSED))
    tasks = {
        task: evaluate_rows(system, [row], collection, options, partial(rank_with_bm25, collection, DEPTH))[
            row
        ]
        for task, collection in by_name(list(collections.values())).items()
    }
    if own is None:
        chosen = chosen_by(name.removesuffix(FUSED))
        named = by_name(list(collections.values()))
        tasks = {task: with_chosen(scored, chosen, named[task]) for task, scored in tasks.items()}
        say_chosen(variant, tasks)
    model = {**system.description, "name": variant, **({"fused_with": "bm25"} if row.fused else {})}
    write_json(out / RESULTS, {"model": model, "tasks": tasks})
    return {METRIC: {name: task[METRIC] for name, task in tasks.items()}}


def build_report(
    recipe: Recipe,
    inputs: Inputs,
    variants: Sequence[str],
    folder: Path,
    earlier: Sequence[Step],
    out: Path,
    needs: Mapping[str, Path],
) -> dict[str, Any]:
    """Assemble results.json, test every difference to the merged model, and write report and model card.

    With recipe and manifest beside them this is all that a finished run hands over (publish.py), but for the model.
    """
    from medley.report import write_report
    from medley.report.card import model_card
    from medley.report.reading import read_run

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
    demands = check_demands(recipe, results)
    results["demands"] = demands
    write_json(out / RESULTS, results)
    if "base" in found:
        tasks = {collection.name: collection for collection in collections.values()}
        write_json(out / FAILURES, changed_cases(found["base"], found["merged"], tasks))
    write_text(out / RECIPE, write_recipe(recipe))
    write_json(out / MANIFEST, manifest_of(folder, earlier, name=recipe.name, seed=recipe.seed))
    write_report(folder, outcome=out)
    write_text(out / CARD, model_card(read_run(folder, out)))
    return {
        "means": {variant: mean_score(result) for variant, result in found.items()},
        BROKEN: [one["sentence"] for one in demands if not one["met"]],
    }


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
