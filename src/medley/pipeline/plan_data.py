"""The steps that make training pairs: sources, leak check, mining, synthesis, each with all that decides its result."""

from __future__ import annotations

from functools import partial

from medley.fingerprint import code_of
from medley.guard.judge import read_judge_prompt
from medley.pipeline import data, llm_cost
from medley.pipeline.inputs import Inputs
from medley.pipeline.plan_shared import held_out_of, llm_settings, used_sources
from medley.recipe import Recipe, Source
from medley.run import Step

GUARD_CODE = (
    "pipeline/guarding.py",
    "guard",
    "origins.py",
    "overlap.py",
    "words.py",
    "prompt_file.py",
    "search",
)
"""What looks at every negative that a stage makes, beside the stage's own code."""


WRITING_CODE = (
    "pipeline/writing.py",
    "synthesize",
    "llm",
    "overlap.py",
    "words.py",
    "positives.py",
    "search",
)
"""What writes texts, and what looks at them while they are written."""


def data_steps(recipe: Recipe, inputs: Inputs) -> list[Step]:
    """For every source that is used: its pairs, their leaks, and the negatives that its experts want."""
    steps = []
    held_out = held_out_of(recipe)
    names = used_sources(recipe)
    for name in names:
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
                    "written": _query_settings(recipe, inputs, source) if source.writes_queries else None,
                    "held_out": inputs.collection_identities(held_out) if recipe.leaks == "drop" else {},
                    "seed": recipe.seed,
                },
                partial(data.build_source, recipe, inputs, name, held_out),
                code=code_of(
                    "pipeline/data.py",
                    "pairs.py",
                    "positives.py",
                    "leaks",
                    "overlap.py",
                    "words.py",
                    *(WRITING_CODE if source.writes_queries else ()),
                ),
                cost=llm_cost.cost_of_queries(recipe, inputs, name),
            )
        )
    if recipe.leaks != "allow":
        steps.append(
            Step(
                "leaks",
                "sources",
                {"held_out": inputs.collection_identities(held_out)},
                partial(data.check_leaks, inputs, names, held_out),
                needs=tuple(f"sources/{name}" for name in names),
                code=code_of("pipeline/data.py", "leaks", "overlap.py", "words.py"),
            )
        )
    for name in names:
        kinds, source = _kinds_of(recipe, name), recipe.sources[name]
        # of other sources the corpus is in the key of `sources` already
        searched = {"corpus": inputs.corpus_identity(source.corpus)} if source.pairs and source.corpus else {}
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
                        **searched,
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
                        **searched,
                        "guard": _guard_settings(recipe, inputs),
                        "llm": llm_settings(recipe, inputs) if recipe.negatives_by_llm else None,
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


def _kinds_of(recipe: Recipe, source: str) -> set[str]:
    """Kinds of negatives that any expert wants of a source."""
    return {
        kind
        for expert in recipe.experts.values()
        if source in expert.sources
        for kind in recipe.kinds_of(expert)
    }


def _query_settings(recipe: Recipe, inputs: Inputs, source: Source) -> dict[str, object]:
    """All that decides which queries are written for a corpus."""
    filter = source.written.consistency
    return {
        **source.written.model_dump(mode="json", exclude={"consistency", "prompt", "styles_file"}),
        "files": [inputs.file(str(path)) for path in source.written.files],
        "retriever": inputs.model(filter.retriever) if filter and filter.retriever != "bm25" else "bm25",
        "top_k": filter and filter.top_k,
        "llm": llm_settings(recipe, inputs),
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
