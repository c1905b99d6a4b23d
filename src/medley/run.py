"""The run folder: what a run has made, with the key of each artefact, so that it resumes and knows what is stale.

A run is a list of steps in order. A step's key is the fingerprint of everything that decides its result: its
settings, the content of the files it reads, the code of its stage, the base, and the keys of the steps it needs.
So all keys are known before anything runs, `status` and `--plan` compute without doing, and a changed setting
re-runs exactly what depends on it. An artefact is a folder `stages/<stage>/<name>/` that holds `artefact.json`,
written last and renamed into place as a whole: no artefact.json, not finished.
"""

from __future__ import annotations

import contextlib
import datetime
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from medley.errors import OutputError, RecipeError
from medley.files import explained_write_errors, held, read_json, remove, write_json, writing
from medley.fingerprint import fingerprint
from medley.progress import say

FORMAT = 1
ARTEFACT = "artefact.json"
MANIFEST = "manifest.json"
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
    """Whether a step's artefact is there and up to date, and if not, why."""

    step: Step
    key: str
    state: Literal["done", "stale", "missing"]
    reason: str = ""


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
    found = []
    for step in steps:
        artefact = read_artefact(folder, step.id)
        if artefact is None:
            found.append(StepState(step, keys[step.id], "missing"))
        elif artefact["key"] == keys[step.id]:
            found.append(StepState(step, keys[step.id], "done"))
        else:
            wanted = _ingredients(step, keys)
            found.append(
                StepState(step, keys[step.id], "stale", _difference(artefact["ingredients"], wanted))
            )
    return found


def read_artefact(folder: Path, step_id: str) -> dict[str, Any] | None:
    """What a finished artefact says of itself; None when it is not finished."""
    path = folder / "stages" / step_id / ARTEFACT
    return read_json(path) if path.is_file() else None


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
    folder: Path, steps: Sequence[Step], *, name: str, seed: int, stages: Sequence[str] | None = None
) -> None:
    """Make every artefact that is missing or stale, in order; with `stages`, only those of these stages.

    Holds a lock on the folder. Can be interrupted at any moment: finished artefacts stay.
    Raises OutputError when another process works in the folder.
    """
    with locked(folder):
        _sweep(folder)
        keys = step_keys(steps)
        for index, step in enumerate(steps):
            state = states(folder, [*steps[:index], step])[-1]
            if state.state == "done" or (stages is not None and step.stage not in stages):
                continue
            say(
                f"[{index + 1}/{len(steps)}] {step.id}"
                + (f" (again: {state.reason})" if state.reason else "")
            )
            make(folder, step, keys)
            write_manifest(folder, steps, name=name, seed=seed)
        write_manifest(folder, steps, name=name, seed=seed)


def make(folder: Path, step: Step, keys: Mapping[str, str]) -> None:
    """Make one artefact, whatever was there; the caller holds the lock."""
    needs = {need: folder / "stages" / need for need in step.needs}
    target = folder / "stages" / step.id
    started = time.monotonic()
    with writing(target, own=True) as temporary:
        temporary.mkdir(parents=True)
        summary = step.build(temporary, needs)
        write_json(
            temporary / ARTEFACT,
            {
                "id": step.id,
                "key": keys[step.id],
                "ingredients": _plain(_ingredients(step, keys)),
                "seconds": round(time.monotonic() - started, 3),
                "finished": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
                "summary": dict(summary),
            },
        )


def write_manifest(folder: Path, steps: Sequence[Step], *, name: str, seed: int) -> None:
    """Write manifest.json from the artefacts that are there: fingerprints, versions, seed, time, cost."""
    stages: dict[str, dict[str, Any]] = {}
    for step in steps:
        artefact = read_artefact(folder, step.id)
        if artefact is not None:
            kept = {key: artefact[key] for key in ("key", "seconds", "finished", "summary")}
            stages.setdefault(step.stage, {})[step.name] = kept
    write_json(
        folder / MANIFEST,
        {
            "format": FORMAT,
            "name": name,
            "seed": seed,
            "versions": versions(),
            "machine": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
            "seconds": round(sum(a["seconds"] for stage in stages.values() for a in stage.values()), 3),
            "stages": stages,
        },
    )


def versions() -> dict[str, str]:
    """Installed versions of the packages that decide a run's numbers."""
    found = {}
    for package in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found


def claim_folder(folder: Path, name: str) -> None:
    """Make sure that a folder is empty, new, or holds the run of this name.

    Raises OutputError when it holds another run or something that is no run.
    """
    with explained_write_errors(folder):
        if folder.exists() and not folder.is_dir():
            raise OutputError(f"{folder}: is a file; choose another --out.")
        folder.mkdir(parents=True, exist_ok=True)
    manifest = folder / MANIFEST
    if manifest.is_file():
        other = read_json(manifest, OutputError).get("name")
        if other != name:
            raise OutputError(f"{folder}: holds another run ({other!r}, not {name!r}); choose another --out.")
    elif any(not entry.name.startswith(".") for entry in folder.iterdir()):
        raise OutputError(f"{folder}: is not empty and holds no Medley run; choose another --out.")
    else:
        write_json(manifest, {"format": FORMAT, "name": name, "stages": {}})


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other processes from working on a run. Raises OutputError when one does."""
    busy = f"{folder}: another process is working on this run; wait for it or stop it."
    with held(folder / ".lock", busy):
        yield


def _sweep(folder: Path) -> None:
    """Remove what a killed process left half-written."""
    stages = folder / "stages"
    if stages.is_dir():
        for path in stages.glob("*/.*"):
            remove(path)
    for path in folder.glob(".*.writing-*"):
        remove(path)


def stages_until(until: str | None, stages: Sequence[str]) -> Sequence[str]:
    """The stages up to and including `until`, all without one. Raises RecipeError where no stage has that name."""
    if until is None:
        return stages
    if until not in stages:
        raise RecipeError(f"--until {until}: no such stage; choose one of {', '.join(stages)}.")
    return stages[: stages.index(until) + 1]
