"""From a recipe to the steps of a run, in order, each with everything that decides its result. Does nothing yet."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from medley.evaluate.endpoint import is_server
from medley.evaluate.systems import base_name, own_variant
from medley.fingerprint import code_of
from medley.guard.judge import read_judge_prompt
from medley.model_name import check_decoder
from medley.pipeline import cost, data, llm_cost, models, proof, training
from medley.pipeline.inputs import ALL, Inputs
from medley.pipeline.prompting import PROMPT_CODE, prompt_settings
from medley.recipe import Expert, Recipe, Source
from medley.run import Step
from medley.train.trainer import COSTS_NOTHING

STAGES = (
    "sources",
    "leaks",
    "mine",
    "synthesize",
    "pretrain",
    "prompts",
    "train",
    "merge",
    "evaluate",
    "report",
)
"""The order of the stages; help text, picture, recipe check and the architecture test come from here.

Mining precedes synthesis because a generated negative is to be harder than the mined one (STM, section 1.1).
"""


GUARD_CODE = ("pipeline/guarding.py", "guard", "origins.py", "overlap.py", "prompt_file.py", "search")
"""What looks at every negative that a stage makes, beside the stage's own code."""


WRITING_CODE = ("pipeline/writing.py", "synthesize", "llm", "overlap.py", "search")
"""What writes texts, and what looks at them while they are written."""


SCORING_CODE = ("merge/pool.py", "search")
"""What scores a model on dev while it trains."""


def plan_steps(recipe: Recipe, folder: Path) -> list[Step]:
    """The steps of a run. Opens and validates every input, so wrong input is reported before anything is made.

    Raises an InputError for a base that is no decoder, a missing file or a malformed collection.
    """
    check_decoder(recipe.base)
    inputs = Inputs(keep_empty=recipe.empty_passages == "keep")
    for spec in held_out_of(recipe):
        inputs.collection(spec)
    steps = [
        *_data_steps(recipe, inputs),
        *_model_steps(recipe, inputs),
        *_proof_steps(recipe, inputs, folder),
    ]
    order = {stage: position for position, stage in enumerate(STAGES)}
    return sorted(steps, key=lambda step: order[step.stage])


def _kinds_of(recipe: Recipe, source: str) -> set[str]:
    """Kinds of negatives that any expert wants of a source."""
    return {
        kind
        for expert in recipe.experts.values()
        if source in expert.sources
        for kind in recipe.kinds_of(expert)
    }


def used_sources(recipe: Recipe) -> list[str]:
    """Sources that an expert trains on, in the recipe's order."""
    return [name for name in recipe.sources if any(name in e.sources for e in recipe.experts.values())]


def held_out_of(recipe: Recipe) -> list[str]:
    """Every collection that decides or proves something, so whose queries must not be trained on."""
    own = [spec for expert in recipe.experts.values() for spec in expert.dev or ()]
    return list(dict.fromkeys((*recipe.merge.dev, *own, *recipe.evaluate.tasks)))


def _data_steps(recipe: Recipe, inputs: Inputs) -> list[Step]:
    steps = []
    held_out = held_out_of(recipe)
    for name in used_sources(recipe):
        source = recipe.sources[name]
        if source.pairs is not None:
            content = inputs.pairs_file(source.pairs)
        elif source.corpus is not None:
            content = inputs.corpus_identity(source.corpus)
        else:
            content = inputs.collection(f"{source.collection}:{source.split}").identity
        steps.append(
            Step(
                "sources",
                name,
                {
                    "source": source.model_dump(
                        exclude={"pairs", "collection", "corpus", "queries", "licence"}
                    ),
                    "content": content,
                    "written": _query_settings(recipe, inputs, source) if source.corpus else None,
                    "held_out": inputs.collection_identities(held_out) if recipe.leaks == "drop" else {},
                    "seed": recipe.seed,
                },
                partial(data.build_source, recipe, inputs, name, held_out),
                code=code_of(
                    "pipeline/data.py", "leaks", "overlap.py", *(WRITING_CODE if source.corpus else ())
                ),
                cost=llm_cost.cost_of_queries(recipe, inputs, name),
            )
        )
        if recipe.leaks != "allow":
            steps.append(
                Step(
                    "leaks",
                    name,
                    {"held_out": inputs.collection_identities(held_out)},
                    partial(data.check_leaks, inputs, name, held_out),
                    needs=(f"sources/{name}",),
                    code=code_of("pipeline/data.py", "leaks", "overlap.py"),
                )
            )
        kinds = _kinds_of(recipe, name)
        mined = recipe.negatives.mined
        mine_id = f"mine/{name}"
        # a generated negative is to be harder than the mined one, whether experts train with that or not
        mines = mined is not None and bool({"mined", "generated"} & kinds)
        if mined is not None and mines:
            steps.append(
                Step(
                    "mine",
                    name,
                    {
                        "mined": mined.model_dump(exclude={"retriever", "margin"}),
                        "guard": _guard_settings(recipe, inputs),
                        "retriever": "bm25" if mined.retriever == "bm25" else inputs.model(mined.retriever),
                        "seed": recipe.seed,
                    },
                    partial(data.build_mined, recipe, inputs, name),
                    needs=(f"sources/{name}",),
                    code=code_of("pipeline/data.py", "mine", *GUARD_CODE),
                    cost=llm_cost.cost_of_judge(recipe, inputs, name, mined.per_query),
                )
            )
        generated = recipe.negatives.generated
        if generated is not None and "generated" in kinds:
            steps.append(
                Step(
                    "synthesize",
                    name,
                    {
                        "generated": generated.model_dump(mode="json", exclude={"by"}),
                        "guard": _guard_settings(recipe, inputs),
                        "llm": _llm_settings(recipe, inputs) if recipe.negatives_by_llm else None,
                        "files": {file: inputs.file(file) for file in generated.files},
                        "seed": recipe.seed,
                    },
                    partial(data.build_generated, recipe, inputs, name),
                    needs=(f"sources/{name}", *((mine_id,) if mines else ())),
                    code=code_of("pipeline/data.py", *WRITING_CODE, *GUARD_CODE),
                    cost=llm_cost.sum_of(
                        llm_cost.cost_of_generation(recipe, inputs, name),
                        llm_cost.cost_of_judge(recipe, inputs, name, generated.per_query),
                    ),
                )
            )
    return steps


def _llm_settings(recipe: Recipe, inputs: Inputs) -> dict[str, object] | None:
    """What of the language model decides its replies: not where it is, nor how fast it is asked."""
    llm = recipe.llm
    if llm is None:
        return None
    decides = llm.model_dump(mode="json", include={"model", "max_tokens", "temperature"})
    return decides if llm.local is None else decides | {"local": inputs.model(llm.local)}


def _query_settings(recipe: Recipe, inputs: Inputs, source: Source) -> dict[str, object]:
    """All that decides which queries are written for a corpus."""
    filter = source.written.consistency
    return {
        **source.written.model_dump(mode="json", exclude={"consistency", "prompt", "styles_file"}),
        "files": [inputs.file(str(path)) for path in source.written.files],
        "retriever": inputs.model(filter.retriever) if filter and filter.retriever != "bm25" else "bm25",
        "top_k": filter and filter.top_k,
        "llm": _llm_settings(recipe, inputs),
    }


def _guard_settings(recipe: Recipe, inputs: Inputs) -> dict[str, object]:
    """All that decides what the guard does: its settings, its retriever's content, its judge's prompt and model."""
    guard = recipe.negatives.guard
    judge = guard.judge
    return {
        **guard.model_dump(mode="json", exclude={"retriever": True, "judge": {"prompt"}}),
        "retriever": inputs.model(guard.retriever)
        if guard.retriever not in (None, "bm25")
        else guard.retriever,
        "prompt": read_judge_prompt(judge) if judge else None,
        "llm": recipe.llm.model_dump(include={"model", "local"}) if judge and recipe.llm else None,
    }


def _base_settings(recipe: Recipe, inputs: Inputs) -> dict[str, object]:
    return {"base": inputs.model(recipe.base), "retriever": recipe.retriever.model_dump(mode="json")}


def _base_need(recipe: Recipe) -> tuple[str, ...]:
    return ("pretrain/base",) if recipe.pretrain else ()


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


def _model_steps(recipe: Recipe, inputs: Inputs) -> list[Step]:
    base = _base_settings(recipe, inputs)
    base_need = _base_need(recipe)
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
                    **prompt_settings(recipe, inputs, method, dev, _llm_settings(recipe, inputs)),
                    "seed_instruction": recipe.sources[expert.sources[0]].instruction,
                    "seed": recipe.seed,
                },
                partial(models.build_prompt, recipe, inputs, name, expert),
                needs=base_need if method not in ("none", "generic") else (),
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
            needs=(*base_need, *experts, f"prompts/{ALL}"),
            code=code_of("pipeline/models.py", "merge", "expert.py", "lowrank.py", "search"),
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
                        _llm_settings(recipe, inputs),
                    ),
                    "seed": recipe.seed,
                },
                partial(models.build_merged_instruction, recipe, inputs),
                needs=("merge/search", *base_need, *experts, f"prompts/{ALL}"),
                code=code_of(*PROMPT_CODE, "expert.py", "lowrank.py"),
                cost=cost.cost_of_prompts(recipe, inputs, recipe.merge.dev, recipe.merged_prompt_method),
            )
        )
    steps.append(
        Step(
            "merge",
            "model",
            {**base, "dtype": recipe.merge.dtype, "name": recipe.name},
            partial(models.build_merged, recipe, inputs),
            needs=("merge/search", *tuned_after, *base_need, *experts, f"prompts/{ALL}"),
            code=code_of("pipeline/models.py", "merge", "expert.py", "lowrank.py"),
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
            **_base_settings(recipe, inputs),
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
        needs=(*_base_need(recipe), *needs, *((f"prompts/{ALL}",) if name == ALL else ())),
        code=code_of("pipeline/training.py", "train", "expert.py", *(SCORING_CODE if dev else ())),
        cost=cost.cost_of_training(
            recipe, inputs, list(dict.fromkeys(s for expert in experts.values() for s in expert.sources)), dev
        ),
    )


def _needs_of(
    recipe: Recipe, variant: str, base: dict[str, object]
) -> tuple[dict[str, object], tuple[str, ...]]:
    """The settings that decide one of the run's own models, and the artefacts that it is made of."""
    if variant == "merged":
        return {}, ("merge/model",)
    if variant == "base":
        return base, (f"prompts/{ALL}",)
    return base, (*_base_need(recipe), f"train/{variant.removeprefix('expert:')}")


def _proof_steps(recipe: Recipe, inputs: Inputs, folder: Path) -> list[Step]:
    chosen = recipe.evaluate.baselines
    base = _base_settings(recipe, inputs)
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
            wanted[name] = ({"system": system.removeprefix(place), "identity": identity}, ())
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
            code=code_of("pipeline/proof.py", "evaluate", "search", "expert.py", "lowrank.py"),
            cost=cost.cost_of_evaluation(recipe, inputs, variant),
        )
        for variant, (settings, needs) in wanted.items()
    ]
    steps.append(
        Step(
            "report",
            "report",
            {"groups": recipe.evaluate.groups, "seed": recipe.seed, "recipe": recipe.model_dump(mode="json")},
            partial(proof.build_report, recipe, inputs, list(wanted), folder),
            needs=tuple(f"evaluate/{variant}" for variant in wanted),
            code=code_of("pipeline/proof.py", "pipeline/cases.py", "statistics", "report"),
        )
    )
    return steps
