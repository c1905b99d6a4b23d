"""One step of a run in a process of its own: `python -m medley.pipeline.worker FOLDER STAGE/NAME`.

This is what trains experts side by side, one process a device (see devices.py), and what a launcher such as torchrun
starts once on every device of a machine. Of several processes the first writes the artefact; the others do their
share of the work and write nothing.
"""

from __future__ import annotations

import os
import stat
import sys
import threading
from pathlib import Path

from medley.ending import tidy_ending
from medley.errors import MedleyError
from medley.files import remove
from medley.pipeline.plan import plan_steps
from medley.pipeline.publish import recipe_in
from medley.progress import say
from medley.recipe import load_recipe
from medley.run import make, step_keys
from medley.train.processes import is_first, join


def work(folder: Path, step_id: str) -> None:
    """Make one step of the run in a folder, whose lock the caller holds. Raises what the step raises."""
    join()
    steps = plan_steps(load_recipe(recipe_in(folder)), folder)
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


def end_with_the_run() -> None:
    """End this process when the run that started it ends, killed or not: then its standard input does.

    Launchers hand their standard input on, as a pipe; a process that was given another (/dev/null) is not watched.
    """
    if stat.S_ISFIFO(os.fstat(0).st_mode):
        threading.Thread(target=_wait_for_the_end, daemon=True).start()


def _wait_for_the_end() -> None:
    while os.read(0, 1):
        pass
    os._exit(1)


if __name__ == "__main__":
    end_with_the_run()
    try:
        with tidy_ending():
            work(Path(sys.argv[1]), sys.argv[2])
    except MedleyError as problem:
        say(f"medley: {problem}")
        sys.exit(problem.exit_code)
