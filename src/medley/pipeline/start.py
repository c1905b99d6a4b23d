"""Carrying out a recipe: take the folder, keep the resolved recipe in it, make what is to do, hand it over."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from medley.artefact import read_artefact
from medley.errors import CollectionError, LeakError, PairsError
from medley.files import remove
from medley.pipeline.data import LLM_CACHE
from medley.pipeline.devices import Devices, train_on
from medley.pipeline.plan import STAGES, plan_steps
from medley.pipeline.publish import (
    MERGED,
    RECIPE,
    UNFINISHED,
    hand_over,
    hand_over_untested,
    keep_recipe,
    not_as_made,
    recipe_in,
    write_manifest,
)
from medley.progress import say
from medley.recipe import Recipe, load_recipe
from medley.reuse import check_runs, found_elsewhere, take
from medley.run import Step, StepState, check_folder, execute, stages_until, states, working_on

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
    with working_on(folder, recipe.name) as lock:
        keep_recipe(recipe, folder)
        try:
            all_done = _make(recipe, folder, steps, stages, devices or Devices(), reuse, lock)
        except (LeakError, CollectionError, PairsError):
            made = {step.stage for step in steps if read_artefact(folder, step.id)}
            if not there_before and made <= {"sources", "leaks"}:
                remove(folder)  # nothing was made but copies of the input, so nothing is left behind
            raise
        if all_done:
            hand_over(recipe, folder, steps)
        elif MERGED.partition("/")[0] in stages:
            hand_over_untested(recipe, folder, steps)
    return folder


def _make(
    recipe: Recipe,
    folder: Path,
    steps: Sequence[Step],
    stages: Sequence[str],
    devices: Devices,
    reuse: Sequence[Path],
    lock: int,
) -> bool:
    """Make or take the steps of some stages; whether all steps are done then. `lock` is the folder's."""

    def made() -> None:
        write_manifest(recipe, folder, steps)

    wanted = [step for step in steps if step.stage in stages]
    for step_id, other in take(folder, wanted, reuse, files=(LLM_CACHE,)).items():
        say(f"{step_id}: from {other}")
    if TRAIN in stages and not devices.in_this_process:
        execute(folder, steps, stages=STAGES[: STAGES.index(TRAIN)], made=made)
        train_on(devices, folder, steps, stage=TRAIN, lock=lock)
    all_done = execute(folder, steps, stages=stages, made=made)
    made()
    return all_done


def plan(recipe: Recipe, folder: Path, *, reuse: Sequence[Path] = ()) -> list[dict[str, Any]]:
    """What `--plan` prints: each step, its state and its estimated cost. Touches nothing.

    Raises an InputError where the run would.
    """
    check_runs(reuse)
    check_folder(folder, recipe.name)
    return _rows(states(folder, plan_steps(recipe, folder)), reuse)


def _rows(found: Sequence[StepState], reuse: Sequence[Path]) -> list[dict[str, Any]]:
    elsewhere = found_elsewhere(found, reuse)
    return [
        {"step": s.step.id, "state": "reused", "why": f"from {elsewhere[s.step.id]}"}
        if s.step.id in elsewhere
        else {"step": s.step.id, "state": s.state, "why": s.reason, **s.step.cost}
        for s in found
    ]


def status(folder: Path) -> list[dict[str, Any]]:
    """What `medley status` prints: each step of the recipe in the folder, and whether and why it must be redone.

    Another row says so where a finished run's model, results or report are not there or not those that it made.
    """
    path = recipe_in(folder)
    recipe = load_recipe(path)
    steps = plan_steps(recipe, folder)
    rows = _rows(states(folder, steps), ())
    if path.name == UNFINISHED:
        wrong = [f"they are of {RECIPE}; {UNFINISHED} was run later and not to its end"]
    elif all(row["state"] == "done" for row in rows):
        wrong = not_as_made(recipe, folder, steps)
    else:
        wrong = []
    return [*rows, *({"step": "model, results, report", "state": "stale", "why": why} for why in wrong[:3])]
