"""What the steps of several stages ask of a recipe: what is used, what is held out, and what of base and language model
decides a result."""

from __future__ import annotations

from medley.leaks.dev import refuse_shared, shared_queries, without_shared
from medley.pipeline.inputs import Inputs
from medley.recipe import Recipe


def used_sources(recipe: Recipe) -> list[str]:
    """Sources that an expert trains on, in the recipe's order."""
    return [name for name in recipe.sources if any(name in e.sources for e in recipe.experts.values())]


def dev_of(recipe: Recipe) -> list[str]:
    """Every collection that decides something: weights, instructions, when a training stops, its learning rate."""
    own = [spec for expert in recipe.experts.values() for spec in expert.dev or ()]
    return list(dict.fromkeys((*recipe.merge.dev, *own)))


def held_out_of(recipe: Recipe) -> list[str]:
    """Every collection that decides or proves something, so whose queries must not be trained on."""
    return list(dict.fromkeys((*dev_of(recipe), *recipe.evaluate.tasks)))


def keep_dev_from_tests(recipe: Recipe, inputs: Inputs) -> None:
    """Hold every dev set against every test set, before anything is made: `leaks: allow` does not allow this.

    Under `leaks: drop` the inputs hold the dev set without the few queries that a test set has too.
    Raises LeakError naming the dev set, the test set and a query.
    """
    tests = {spec: inputs.collection(spec) for spec in recipe.evaluate.tasks}
    dev = {spec: inputs.collection(spec) for spec in dev_of(recipe)}
    for spec, shared in shared_queries(dev, tests).items():
        if recipe.leaks == "drop":
            inputs.collections[spec] = without_shared(spec, dev[spec], shared, tests)
            inputs.left_out[spec] = len(shared)
        else:
            refuse_shared(spec, dev[spec], shared)


def llm_settings(recipe: Recipe, inputs: Inputs) -> dict[str, object] | None:
    """What of the language model decides its replies: not where it is, nor how fast it is asked."""
    llm = recipe.llm
    if llm is None:
        return None
    decides = llm.model_dump(mode="json", include={"model", "max_tokens", "temperature"})
    if llm.extra_body:  # left out where there is none, so that earlier runs keep their keys
        decides["extra_body"] = llm.extra_body
    return decides if llm.local is None else decides | {"local": inputs.model(llm.local)}


def base_settings(recipe: Recipe, inputs: Inputs) -> dict[str, object]:
    """What decides how any text is encoded before training: the base's content and how it is made a retriever."""
    return {"base": inputs.model(recipe.base), "retriever": recipe.retriever.model_dump(mode="json")}


def base_need(recipe: Recipe) -> tuple[str, ...]:
    """The step that makes the base of the experts; none where that is the recipe's base as it is."""
    return ("pretrain/base",) if recipe.pretrain else ()
