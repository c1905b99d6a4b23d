"""The run folder: what a run has made, with the key of each artefact, so that it resumes and knows what is stale.

A run is a list of steps in order. A step's key is the fingerprint of everything that decides its result: its
settings, the content of the files it reads, the code of its stage, the base, and the keys of the steps it needs.
So all keys are known before anything runs, `status` and `--plan` compute without doing, and a changed setting
re-runs exactly what depends on it. An artefact is a folder `stages/<stage>/<name>/` that holds `artefact.json`,
written last and renamed into place as a whole: no artefact.json, not finished. It also says what content the artefact
has and of what content it was made, so that what was edited, or made again with another result, is seen (artefact.py).
"""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from medley.artefact import (
    ARTEFACT,
    STAGES,
    Artefact,
    changed_files,
    keep_edited_artefact,
    marks,
    read_artefact,
)
from medley.errors import OutputError, RecipeError
from medley.files import explained_write_errors, held, sweep, write_json, writing
from medley.fingerprint import fingerprint
from medley.noticed import noticing
from medley.progress import say
from medley.text_file import as_path

FORMAT = 2
MANIFEST = "manifest.json"
LOCK = ".lock"
PATIENCE_S = 10.0
"""How long to wait for a lock: the processes of a run that was killed take a moment to end."""
PACKAGES = (
    "medley-retrieval",
    "torch",
    "transformers",
    "sentence-transformers",
    "peft",
    "mteb",
    "mergekit",
    "bm25s",
)

Build = Callable[[Path, Mapping[str, Path]], Mapping[str, Any]]
"""Write an artefact's files into the folder given, reading the artefacts it needs (by step id); return a summary."""


@dataclass(frozen=True)
class Step:
    """One artefact to be made: `stage/name`, all that decides its content, and the function that makes it."""

    stage: str
    name: str
    settings: Mapping[str, Any]
    build: Build
    needs: tuple[str, ...] = ()
    code: str = ""
    cost: Mapping[str, float] = field(default_factory=dict)
    """Estimates for `--plan`: llm_calls, llm_tokens, encodings (texts), disk_bytes."""

    @property
    def id(self) -> str:
        """`stage/name`, unique in a run."""
        return f"{self.stage}/{self.name}"


@dataclass(frozen=True)
class StepState:
    """Whether a step's artefact is there and up to date, and if not, why; and what else is to be said of it."""

    step: Step
    key: str
    state: Literal["done", "stale", "to do"]
    reason: str = ""
    content: str = ""
    """The fingerprint of what a step that is done has made."""


def step_keys(steps: Sequence[Step]) -> dict[str, str]:
    """The key of every step; each may need only steps before it."""
    keys: dict[str, str] = {}
    for step in steps:
        keys[step.id] = fingerprint(_ingredients(step, keys))
    return keys


def _ingredients(step: Step, keys: Mapping[str, str]) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "settings": step.settings,
        "code": step.code,
        "needs": {need: keys[need] for need in step.needs},
    }


def states(folder: Path, steps: Sequence[Step]) -> list[StepState]:
    """Compare what the run folder holds with what the steps ask for."""
    keys = step_keys(steps)
    contents: dict[str, str] = {}
    return [_state(folder, step, keys, contents) for step in steps]


def _state(folder: Path, step: Step, keys: Mapping[str, str], contents: dict[str, str]) -> StepState:
    """The state of one step. `contents` has what the steps before it hold now, and gets what this one holds.

    A step that needs one which is not there is judged when that has been made again: it may well be the same.
    """
    key = keys[step.id]
    artefact = read_artefact(folder, step.id)
    if artefact is None:
        if (folder / STAGES / step.id / ARTEFACT).exists():
            return StepState(step, key, "stale", f"{STAGES}/{step.id}/{ARTEFACT} cannot be read")
        return StepState(step, key, "to do")
    changed = [
        f"{STAGES}/{step.id}/{change}" for change in changed_files(folder / STAGES / step.id, artefact.files)
    ]
    contents[step.id] = "" if changed else artefact.content
    if artefact.key != key:
        return StepState(step, key, "stale", _difference(artefact.ingredients, _ingredients(step, keys)))
    others = [
        f"{need} has other content than this was made from"
        for need in step.needs
        if need in contents and contents[need] != artefact.made_from.get(need)
    ]
    if changed or others:
        return StepState(step, key, "stale", "; ".join((changed + others)[:3]))
    return StepState(step, key, "done", _made_with(artefact), artefact.content)


def _made_with(artefact: Artefact) -> str:
    """Which packages had other versions when a step was made, in words."""
    now = versions()
    others = [
        f"{package} {then}, now {now.get(package, 'not installed')}"
        for package, then in artefact.versions.items()
        if now.get(package) != then
    ]
    return f"made with {'; '.join(others)}" if others else ""


def _difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """The first few places where two sets of ingredients differ, in words."""
    reasons = []
    for where, before, after in changes(old.get("settings", {}), _plain(new["settings"])):
        reasons.append(f"{where}: {_short(before)} -> {_short(after)}")
    if old.get("code") != new["code"]:
        reasons.append("the stage's code changed")
    if old.get("format") != new["format"]:
        reasons.append("the run folder's format changed")
    if not reasons:  # a changed input explains itself at the input; name it only where nothing else changed
        needs, before_needs = new["needs"], old.get("needs", {})
        changed = [need for need, key in needs.items() if before_needs.get(need) != key]
        gone = [need for need in before_needs if need not in needs]
        reasons += [f"{need} changed" for need in changed] + [f"{need} is no longer needed" for need in gone]
    return "; ".join(reasons[:3])


def changes(old: Any, new: Any, where: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Each place where two plain values differ, as key.sub, with both values."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in dict.fromkeys((*old, *new)):
            yield from changes(old.get(key), new.get(key), f"{where}.{key}" if where else str(key))
    elif old != new:
        yield where, old, new


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _plain(value: Any) -> Any:
    """As JSON would give it back, so that a stored value and a fresh one compare equal."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def execute(
    folder: Path,
    steps: Sequence[Step],
    *,
    stages: Sequence[str] | None = None,
    made: Callable[[], None] = lambda: None,
) -> bool:
    """Make every artefact that is to do or stale, in order; with `stages`, only those of these stages.

    Can be interrupted at any moment: finished artefacts stay. The caller holds the lock; `made` is called after each
    artefact. Returns whether all steps are done.
    """
    keys = step_keys(steps)
    contents: dict[str, str] = {}
    all_done = True
    for index, step in enumerate(steps):
        state = _state(folder, step, keys, contents)
        if state.state == "done":
            continue
        if stages is not None and step.stage not in stages:
            all_done = False
            continue
        again = f" (again: {state.reason})" if state.reason else ""
        say(f"[{index + 1}/{len(steps)}] {step.id}{again}")
        contents[step.id] = make(folder, step, keys).content
        made()
    return all_done


def make(folder: Path, step: Step, keys: Mapping[str, str]) -> Artefact:
    """Make one artefact in place of what was there, of which an edited file is kept; the caller holds the lock."""
    needs = {need: folder / STAGES / need for need in step.needs}
    of = {need: read_artefact(folder, need) for need in step.needs}
    started = time.monotonic()
    with writing(folder / STAGES / step.id, own=True) as temporary:
        temporary.mkdir(parents=True)
        with noticing() as noticed:
            summary = dict(step.build(temporary, needs))
        noticed.tell(step.id)
        if counts := noticed.as_json():
            summary["cut"] = counts
        artefact = Artefact(
            id=step.id,
            key=keys[step.id],
            ingredients=_plain(_ingredients(step, keys)),
            made_from={need: found.content for need, found in of.items() if found is not None},
            files=marks(temporary),
            versions=versions(),
            machine=f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
            seconds=round(time.monotonic() - started, 3),
            finished=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            summary=summary,
        )
        write_json(temporary / ARTEFACT, artefact.model_dump(mode="json"))
        keep_edited_artefact(folder, step.id)
    return artefact


def manifest_of(folder: Path, steps: Sequence[Step], *, name: str, seed: int) -> dict[str, Any]:
    """What manifest.json says, all of it from the artefacts that are there: keys, versions, time, cost.

    Versions are those that the artefacts were made with, several where they were made with several.
    """
    artefacts = [(step, found) for step in steps if (found := read_artefact(folder, step.id)) is not None]
    stages: dict[str, dict[str, Any]] = {}
    for step, artefact in artefacts:
        stages.setdefault(step.stage, {})[step.name] = artefact.model_dump(
            mode="json", include={"key", "seconds", "finished", "summary"}
        )
    used: dict[str, list[str]] = {}
    for _, artefact in artefacts:
        for package, version in artefact.versions.items():
            used.setdefault(package, []).append(version)
    return {
        "format": FORMAT,
        "name": name,
        "seed": seed,
        "versions": {package: _each_once(found) for package, found in used.items()},
        "machine": _each_once([artefact.machine for _, artefact in artefacts]),
        "seconds": round(sum(artefact.seconds for _, artefact in artefacts), 3),
        "stages": stages,
    }


def _each_once(values: Sequence[str]) -> str:
    return " and ".join(dict.fromkeys(values))


def versions() -> dict[str, str]:
    """Installed versions of the packages that decide a run's numbers."""
    found = {}
    for package in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found


def check_folder(folder: Path, name: str) -> None:
    """Make sure that a folder is empty, new, or holds the run of this name; touches nothing.

    Raises OutputError when it holds another run or something that is no run.
    """
    as_path(str(folder), OutputError)
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"{folder}: is a file; choose another --out.")
    there = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    if not there.is_dir():
        raise OutputError(f"{folder}: a file stands where a folder is needed; choose another --out.")
    if not os.access(there, os.W_OK):
        raise OutputError(f"{folder}: cannot be written (Permission denied); choose another --out.")
    manifest = folder / MANIFEST
    if manifest.exists():
        other = _name_in(manifest)
        if other is None:
            raise OutputError(
                f'{manifest}: does not say which run this is; write {{"name": "{name}"}} into it if it is this one, '
                "or choose another --out."
            )
        if other != name:
            raise OutputError(f"{folder}: holds another run ({other!r}, not {name!r}); choose another --out.")
    elif folder.is_dir() and any(not entry.name.startswith(".") for entry in folder.iterdir()):
        raise OutputError(f"{folder}: is not empty and holds no Medley run; choose another --out.")


def _name_in(manifest: Path) -> str | None:
    """The run's name; None in a file that is no manifest."""
    try:
        name = json.loads(manifest.read_bytes())["name"]
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return None
    return name if isinstance(name, str) else None


@contextlib.contextmanager
def working_on(folder: Path, name: str) -> Iterator[int]:
    """Take a folder for the run of this name and keep other processes from it; what a killed one left is removed.

    Gives the lock's descriptor: a process that inherits it holds the lock, too.
    Raises OutputError as `check_folder` does, and when another process works in the folder.
    """
    check_folder(folder, name)
    with explained_write_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with locked(folder) as lock:
        check_folder(folder, name)
        _sweep(folder)
        if not (folder / MANIFEST).exists():
            write_json(folder / MANIFEST, {"format": FORMAT, "name": name, "stages": {}})
        yield lock


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[int]:
    """Hold the lock of a run; gives its descriptor. Raises OutputError when another process holds it."""
    busy = f"{folder}: another process is working on this run; wait for it or stop it."
    with held(folder / LOCK, busy, patience_s=PATIENCE_S) as lock:
        yield lock


def _sweep(folder: Path) -> None:
    """Remove what a killed process left half-written. What a stage's folder leads to, where it is a link, stays."""
    stages = folder / STAGES
    sweep(folder)
    for place in stages.iterdir() if stages.is_dir() and not stages.is_symlink() else ():
        if place.is_dir() and not place.is_symlink():
            sweep(place)


def stages_until(until: str | None, stages: Sequence[str]) -> Sequence[str]:
    """The stages up to and including `until`, all without one. Raises RecipeError where no stage has that name."""
    if until is None:
        return stages
    if until not in stages:
        raise RecipeError(f"--until {until}: no such stage; choose one of {', '.join(stages)}.")
    return stages[: stages.index(until) + 1]
