"""Taking finished artefacts from other run folders, so that a run that varies one stage makes only what differs.

A step's key is the fingerprint of all that decides its result (run.py), so an artefact of the same key is the one that
would be made. What is taken are hard links where the file system has them: artefacts are never written to again.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from medley.artefact import STAGES, changed_files, keep_edited_artefact, read_artefact
from medley.errors import OutputError
from medley.files import explained_write_errors, link_tree, writing
from medley.run import MANIFEST, Step, StepState, states


def check_runs(others: Sequence[Path]) -> None:
    """Raise OutputError where one of the others is no run folder."""
    for other in others:
        if not (other / MANIFEST).is_file():
            raise OutputError(
                f"--reuse {other}: holds no {MANIFEST}, so it is no run folder; check the path."
            )


def found_elsewhere(wanted: Sequence[StepState], others: Sequence[Path]) -> dict[str, Path]:
    """By step id, for each step that is to do or stale: the first of the other runs that holds its artefact.

    It has the same key, was not touched since, and was made from the content that the steps before it have.
    """
    found: dict[str, Path] = {}
    contents: dict[str, str] = {}
    for state in wanted:
        if state.state == "done":
            contents[state.step.id] = state.content
            continue
        for other in others:
            artefact = read_artefact(other, state.step.id)
            if (
                artefact is not None
                and artefact.key == state.key
                and all(
                    contents.get(need, content) == content for need, content in artefact.made_from.items()
                )
                and not changed_files(other / STAGES / state.step.id, artefact.files)
            ):
                found[state.step.id] = other
                contents[state.step.id] = artefact.content
                break
    return found


def take(
    folder: Path, steps: Sequence[Step], others: Sequence[Path], *, files: Sequence[str] = ()
) -> Mapping[str, Path]:
    """Take every artefact of these steps that is to do or stale from the first run that holds it.

    `files`, by name, are copied from the first run that has them where the folder has none: what grows while a run
    goes on, as a cache does. Returns by step id whence it came. The caller holds the lock of this folder.
    """
    if not others:
        return {}
    found = found_elsewhere(states(folder, steps), others)
    with explained_write_errors(folder):
        for step_id, other in found.items():
            with writing(folder / STAGES / step_id, own=True) as temporary:
                link_tree(other / STAGES / step_id, temporary)
                keep_edited_artefact(folder, step_id)
        for name in files:
            source = next((other / name for other in others if (other / name).is_file()), None)
            if source is not None and not (folder / name).exists():
                with writing(folder / name) as temporary:
                    shutil.copyfile(source, temporary)
    return found
