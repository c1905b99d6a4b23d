"""From a recipe to the steps of a run, in order, each with everything that decides its result. Does nothing yet."""

from __future__ import annotations

from pathlib import Path

from medley.model_name import check_decoder, location_of
from medley.pipeline.inputs import Inputs
from medley.pipeline.plan_data import data_steps
from medley.pipeline.plan_models import model_steps
from medley.pipeline.plan_proof import proof_steps
from medley.pipeline.plan_shared import held_out_of, keep_dev_from_tests
from medley.recipe import Recipe
from medley.run import Step
from medley.traits import check_asked

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


def plan_steps(recipe: Recipe, folder: Path) -> list[Step]:
    """The steps of a run. Opens and validates every input, so wrong input is reported before anything is made.

    Raises an InputError for a base that is no decoder or a finished retriever of another kind, a missing file or a
    malformed collection.
    """
    check_decoder(recipe.base)
    check_asked(recipe.base, location_of(recipe.base), recipe.retriever)
    inputs = Inputs(keep_empty=recipe.empty_passages == "keep")
    for spec in held_out_of(recipe):
        inputs.collection(spec)
    keep_dev_from_tests(recipe, inputs)
    order = {stage: position for position, stage in enumerate(STAGES)}
    steps = [*data_steps(recipe, inputs), *model_steps(recipe, inputs)]
    steps.sort(key=lambda step: order[step.stage])
    return [*steps, *proof_steps(recipe, inputs, folder, steps)]
