"""The steps that prove: every variant on every test collection, and the report."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from medley.evaluate.access import Access, is_server
from medley.evaluate.systems import base_name, own_variant
from medley.fingerprint import code_of
from medley.pipeline import cost, proof
from medley.pipeline.inputs import ALL, Inputs
from medley.pipeline.plan_shared import base_need, base_settings
from medley.recipe import Recipe
from medley.run import Step


def proof_steps(recipe: Recipe, inputs: Inputs, folder: Path, earlier: Sequence[Step]) -> list[Step]:
    """An evaluation of the merged model and of everything it is compared with, and the report on all steps."""
    chosen = recipe.evaluate.baselines
    base = base_settings(recipe, inputs)
    prompt = f"prompts/{ALL}"
    wanted: dict[str, tuple[dict[str, object], tuple[str, ...]]] = {
        "merged": _needs_of(recipe, "merged", base)
    }
    if "base" in chosen:
        wanted["base"] = _needs_of(recipe, "base", base)
        if recipe.pretrain is not None:
            wanted["pretrained"] = (base, ("pretrain/base", prompt))
    if "bm25" in chosen:
        wanted["bm25"] = ({}, ())
    if ALL in chosen:
        wanted[ALL] = _needs_of(recipe, ALL, base)
    if "experts" in chosen:
        for name in recipe.experts:
            wanted[f"expert:{name}"] = _needs_of(recipe, f"expert:{name}", base)
    for name, system in recipe.evaluate.systems.items():
        own = own_variant(system)
        if own is None:
            place = base_name(system)
            identity = place if is_server(place) else inputs.model(place)
            fields = recipe.evaluate.servers.get(name, Access()).decides
            asked = {"fields": fields} if fields else {}
            wanted[name] = ({"system": system.removeprefix(place), "identity": identity, **asked}, ())
        else:
            settings, needs = _needs_of(recipe, own, base)
            wanted[name] = ({**settings, "system": system}, needs)
    steps = [
        Step(
            "evaluate",
            variant,
            {
                **settings,
                "tasks": inputs.collection_identities(recipe.evaluate.tasks),
                "instructions": [recipe.instruction_for(spec) for spec in recipe.evaluate.tasks],
            },
            partial(proof.build_evaluation, recipe, inputs, variant),
            needs=needs,
            code=code_of("pipeline/proof.py", "evaluate", "search", "backbone.py", "expert.py", "lowrank.py"),
            cost=cost.cost_of_evaluation(recipe, inputs, variant),
        )
        for variant, (settings, needs) in wanted.items()
    ]
    steps.append(
        Step(
            "report",
            "report",
            {"groups": recipe.evaluate.groups, "seed": recipe.seed, "recipe": recipe.model_dump(mode="json")},
            partial(proof.build_report, recipe, inputs, list(wanted), folder, [*earlier, *steps]),
            needs=tuple(f"evaluate/{variant}" for variant in wanted),
            code=code_of("pipeline/proof.py", "pipeline/cases.py", "statistics", "report"),
        )
    )
    return steps


def _needs_of(
    recipe: Recipe, variant: str, base: dict[str, object]
) -> tuple[dict[str, object], tuple[str, ...]]:
    """The settings that decide one of the run's own models, and the artefacts that it is made of."""
    if variant == "merged":
        return {}, ("merge/model",)
    if variant == "base":
        return base, (f"prompts/{ALL}",)
    return base, (*base_need(recipe), f"train/{variant.removeprefix('expert:')}")
