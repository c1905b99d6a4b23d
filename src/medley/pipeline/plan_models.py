"""The steps that make models: pre-training, instructions, experts, the merge search and the merged model."""

from __future__ import annotations

from functools import partial

from medley.evaluate.systems import own_variant
from medley.fingerprint import code_of
from medley.pipeline import cost, models, training
from medley.pipeline.inputs import ALL, Inputs
from medley.pipeline.plan_shared import base_need, base_settings, llm_settings, used_sources
from medley.pipeline.prompting import PROMPT_CODE, prompt_settings
from medley.recipe import Expert, Recipe
from medley.run import Step
from medley.train.trainer import COSTS_NOTHING

SCORING_CODE = ("merge/pool.py", "search")
"""What scores a model on dev while it trains."""


def model_steps(recipe: Recipe, inputs: Inputs) -> list[Step]:
    """Pre-training where asked for, an instruction and a training per expert and for all data, and the merge."""
    base = base_settings(recipe, inputs)
    pretrained = base_need(recipe)
    steps = []
    if recipe.pretrain is not None:
        dev = training.stopping_dev(recipe, recipe.pretrain.train)
        steps.append(
            Step(
                "pretrain",
                "base",
                {
                    **base,
                    "pretrain": recipe.pretrain.model_dump(
                        mode="json", exclude={"collections": True, "documents": True, "train": COSTS_NOTHING}
                    ),
                    "texts": inputs.text_identities(recipe.pretrain.collections, recipe.pretrain.documents),
                    "dev": inputs.collection_identities(dev),
                    "seed": recipe.seed,
                },
                partial(training.build_pretrained, recipe, inputs),
                code=code_of("pipeline/training.py", "train", "documents.py", *(SCORING_CODE if dev else ())),
            )
        )
    for name, expert in {**recipe.experts, ALL: _all_data(recipe)}.items():
        dev = expert.dev or recipe.merge.dev
        method = recipe.prompt_method(expert)
        steps.append(
            Step(
                "prompts",
                name,
                {
                    **base,
                    **prompt_settings(recipe, inputs, method, dev, llm_settings(recipe, inputs)),
                    "seed_instruction": recipe.sources[expert.sources[0]].instruction,
                    "seed": recipe.seed,
                },
                partial(models.build_prompt, recipe, inputs, name, expert),
                needs=pretrained if method not in ("none", "generic") else (),
                code=code_of(*PROMPT_CODE),
                cost=cost.cost_of_prompts(recipe, inputs, dev, method),
            )
        )
    for name, expert in recipe.experts.items():
        steps.append(_train_step(recipe, inputs, name, {name: expert}))
    fused = [own_variant(system) for system in recipe.evaluate.systems.values()]
    if ALL in recipe.evaluate.baselines or ALL in fused:
        steps.append(_train_step(recipe, inputs, ALL, recipe.experts))
    experts = tuple(f"train/{name}" for name in recipe.experts)
    steps.append(
        Step(
            "merge",
            "search",
            {
                **base,
                "merge": recipe.merge.model_dump(mode="json", exclude={"dev", "dtype"}),
                "dev": inputs.collection_identities(recipe.merge.dev),
                "instructions": [recipe.instruction_for(spec) for spec in recipe.merge.dev],
                "seed": recipe.seed,
            },
            partial(models.build_search, recipe, inputs),
            needs=(*pretrained, *experts, f"prompts/{ALL}"),
            code=code_of("pipeline/models.py", "merge", "backbone.py", "expert.py", "lowrank.py", "search"),
            cost=cost.cost_of_search(recipe, inputs),
        )
    )
    tuned_after: tuple[str, ...] = ()
    if recipe.merged_prompt_method != "none":
        tuned_after = (models.MERGED_INSTRUCTION,)
        steps.append(
            Step(
                "merge",
                "instruction",
                {
                    **base,
                    **prompt_settings(
                        recipe,
                        inputs,
                        recipe.merged_prompt_method,
                        recipe.merge.dev,
                        llm_settings(recipe, inputs),
                    ),
                    "seed": recipe.seed,
                },
                partial(models.build_merged_instruction, recipe, inputs),
                needs=("merge/search", *pretrained, *experts, f"prompts/{ALL}"),
                code=code_of(*PROMPT_CODE, "merge", "backbone.py", "expert.py", "lowrank.py"),
                cost=cost.cost_of_prompts(recipe, inputs, recipe.merge.dev, recipe.merged_prompt_method),
            )
        )
    steps.append(
        Step(
            "merge",
            "model",
            {**base, "dtype": recipe.merge.dtype, "name": recipe.name},
            partial(models.build_merged, recipe, inputs),
            needs=("merge/search", *tuned_after, *pretrained, *experts, f"prompts/{ALL}"),
            code=code_of("pipeline/models.py", "merge", "backbone.py", "expert.py", "lowrank.py"),
            cost=cost.cost_of_model(recipe),
        )
    )
    return steps


def _all_data(recipe: Recipe) -> Expert:
    """What the all-data model is: every used source, judged on every dev collection."""
    return Expert(sources=used_sources(recipe))


def _train_step(recipe: Recipe, inputs: Inputs, name: str, experts: dict[str, Expert]) -> Step:
    dev = training.stopping_dev(recipe, recipe.train, experts.get(name))
    needs = dict.fromkeys(
        need
        for member, expert in experts.items()
        for need in (*_pair_needs(recipe, expert), f"prompts/{member}")
    )
    return Step(
        "train",
        name,
        {
            **base_settings(recipe, inputs),
            "experts": {
                member: {"sources": expert.sources, "negatives": recipe.kinds_of(expert)}
                for member, expert in experts.items()
            },
            "train": recipe.train.model_dump(mode="json", exclude=COSTS_NOTHING),
            "dev": inputs.collection_identities(dev),
            "instructions": [recipe.instruction_for(spec) for spec in dev],
            "seed": recipe.seed,
        },
        partial(training.build_expert, recipe, inputs, name, experts),
        needs=(*base_need(recipe), *needs, *((f"prompts/{ALL}",) if name == ALL else ())),
        code=code_of(
            "pipeline/training.py", "train", "backbone.py", "expert.py", *(SCORING_CODE if dev else ())
        ),
        cost=cost.cost_of_training(
            recipe, inputs, list(dict.fromkeys(s for expert in experts.values() for s in expert.sources)), dev
        ),
    )


def _pair_needs(recipe: Recipe, expert: Expert) -> tuple[str, ...]:
    """The data artefacts that hold an expert's pairs and negatives."""
    needs = []
    for source in expert.sources:
        needs.append(f"sources/{source}")
        if "mined" in recipe.kinds_of(expert) and recipe.negatives.mined is not None:
            needs.append(f"mine/{source}")
        if "generated" in recipe.kinds_of(expert) and recipe.negatives.generated is not None:
            needs.append(f"synthesize/{source}")
    return tuple(needs)
