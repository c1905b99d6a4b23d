"""Carrying out a recipe: claim the folder, keep the resolved recipe in it, make what is missing, publish."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from medley.errors import CollectionError, DemandError, LeakError, PairsError
from medley.files import read_json, remove, write_text
from medley.pipeline.data import LLM_CACHE
from medley.pipeline.devices import Devices, train_on
from medley.pipeline.plan import STAGES, plan_steps
from medley.pipeline.proof import RESULTS, publish_model
from medley.progress import say
from medley.recipe import Recipe, load_recipe, write_recipe
from medley.report.card import write_card
from medley.reuse import check_runs, found_elsewhere, take
from medley.run import claim_folder, execute, read_artefact, stages_until, states

RECIPE = "recipe.yaml"
TRAIN = "train"
"""The stage whose steps need not one another, and that several devices share."""


def run_recipe(
    recipe: Recipe,
    folder: Path,
    *,
    until: str | None = None,
    devices: Devices | None = None,
    reuse: Sequence[Path] = (),
) -> Path:
    """Run a recipe in a folder, up to and including the stage `until`; continue where an earlier run stopped.

    What other run folders, `reuse`, hold of the very same steps is taken from there, and their paid replies.
    `devices` says how many experts train side by side, or what starts a training on several devices.
    Raises an InputError before anything is written when recipe, inputs or folder are wrong, and a DemandError at the
    end where the result breaks a demand of the recipe.
    """
    stages = stages_until(until, STAGES)
    steps = plan_steps(recipe, folder)
    check_runs(reuse)
    there_before = folder.exists()
    claim_folder(folder, recipe.name)
    try:
        write_text(folder / RECIPE, write_recipe(recipe))
        wanted = [step for step in steps if step.stage in stages]
        for step_id, other in take(folder, wanted, reuse, files=(LLM_CACHE,)).items():
            say(f"{step_id}: from {other}")
        if TRAIN in stages and devices is not None and not devices.in_this_process:
            before = STAGES[: STAGES.index(TRAIN)]
            execute(folder, steps, name=recipe.name, seed=recipe.seed, stages=before)
            train_on(devices, folder, steps, stage=TRAIN)
        execute(folder, steps, name=recipe.name, seed=recipe.seed, stages=stages)
    except (LeakError, CollectionError, PairsError):
        made = {step.stage for step in steps if read_artefact(folder, step.id)}
        if not there_before and made <= {"sources", "leaks"}:
            remove(folder)  # nothing was made but copies of the input, so nothing is left behind
        raise
    if read_artefact(folder, "merge/model") is not None:
        if until in (None, STAGES[-1]):
            stop_at_broken_demands(folder)
        publish_model(folder)
        write_card(folder)
    return folder


def stop_at_broken_demands(folder: Path) -> None:
    """Hand over no model that breaks a demand of the recipe; the numbers stay to be looked at.

    Raises DemandError with the tasks concerned.
    """
    broken = [one for one in read_json(folder / RESULTS)["demands"] if not one["met"]]
    if broken:
        remove(folder / "model")
        raise DemandError(
            f"evaluate.demands: {'; '.join(one['sentence'] for one in broken)}. No model is handed over; see "
            f"{folder / 'report.html'}. Change training data or dev sets, or the demand."
        )


def plan(recipe: Recipe, folder: Path, *, reuse: Sequence[Path] = ()) -> list[dict[str, Any]]:
    """What `--plan` prints: each step, its state and its estimated cost. Touches nothing."""
    check_runs(reuse)
    found = states(folder, plan_steps(recipe, folder))
    elsewhere = found_elsewhere(found, reuse)
    return [
        {"step": s.step.id, "state": "reused", "why": f"from {elsewhere[s.step.id]}"}
        if s.step.id in elsewhere
        else {"step": s.step.id, "state": s.state, "why": s.reason, **s.step.cost}
        for s in found
    ]


def status(folder: Path) -> list[dict[str, Any]]:
    """What `medley status` prints: each step of the recipe in the folder, and whether and why it must be redone."""
    return plan(load_recipe(folder / RECIPE), folder)
