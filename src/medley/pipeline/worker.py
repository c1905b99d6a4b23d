"""One step of a run in a process of its own: `python -m medley.pipeline.worker FOLDER STAGE/NAME`.

This is what trains experts side by side, one process a device (see devices.py), and what a launcher such as torchrun
starts once on every device of a machine. Of several processes the first writes the artefact; the others do their
share of the work and write nothing.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from medley.errors import MedleyError
from medley.files import remove
from medley.pipeline.plan import plan_steps
from medley.progress import say
from medley.recipe import load_recipe
from medley.run import make, step_keys
from medley.train.processes import is_first, join

RECIPE = "recipe.yaml"


def work(folder: Path, step_id: str) -> None:
    """Make one step of the run in a folder, whose lock the caller holds. Raises what the step raises."""
    join()
    steps = plan_steps(load_recipe(folder / RECIPE), folder)
    step = next(step for step in steps if step.id == step_id)
    if is_first():
        make(folder, step, step_keys(steps))
        return
    artefact = folder / "stages" / step.id
    scratch = artefact.with_name(f".{artefact.name}.process-{os.getpid()}")
    scratch.mkdir(parents=True)
    try:
        step.build(scratch, {need: folder / "stages" / need for need in step.needs})
    finally:
        remove(scratch)


if __name__ == "__main__":
    try:
        work(Path(sys.argv[1]), sys.argv[2])
    except MedleyError as problem:
        say(f"medley: {problem}")
        sys.exit(problem.exit_code)
