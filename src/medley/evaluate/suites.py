"""Suites: named lists of test tasks with a group and an instruction each, opened where they are: on disk or the hub.

In: the name of a suite. Out: its collections, or one sentence naming every task that cannot be had. A local copy,
`$MEDLEY_DATA/<folder>` or `$MEDLEY_DATA/collections/<folder>` in BEIR layout, comes before the hub, so that a suite
works without a network. All tasks are opened before anything is scored.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field

from medley.collections import Collection, load_collection, split_spec
from medley.errors import CollectionError, InputError
from medley.evaluate.similarity import SimilarityTask, load_similarity

DATA = "MEDLEY_DATA"
"""The environment variable that names the folder of local collections."""


class SuiteTask(BaseModel):
    """One task of a suite. `mteb: false` means that only a local folder can hold it.

    `leaves_out_own` is MTEB's `ignore_identical_ids`: a local copy is scored as the hub's is.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    task: str
    group: str
    instruction: str | None = None
    local: tuple[str, ...] = ()
    kind: Literal["retrieval", "similarity"] = "retrieval"
    mteb: bool = True
    leaves_out_own: bool = False

    @property
    def name(self) -> str:
        """The task's name in tables: without subset and split."""
        return split_spec(self.task)[0].partition("/")[0]


class Suite(BaseModel):
    """Tasks that are reported together."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    about: str
    tasks: tuple[SuiteTask, ...] = Field(min_length=1)

    def specs_by_group(self) -> dict[str, list[str]]:
        """Its retrieval tasks that MTEB has, as a recipe's groups name them."""
        groups: dict[str, list[str]] = {}
        for task in self.tasks:
            if task.mteb and task.kind == "retrieval":
                groups.setdefault(task.group, []).append(task.task)
        return groups

    def instructions_by_spec(self) -> dict[str, str]:
        """The instruction of each of those tasks."""
        return {task.task: task.instruction for task in self.tasks if task.mteb and task.instruction}


@dataclass(frozen=True)
class Opened:
    """The tasks that could be opened, and for each that could not, why.

    `instructions` holds those that a suite gives, `groups` the task names of each group.
    """

    collections: tuple[Collection, ...] = ()
    similarity: tuple[SimilarityTask, ...] = ()
    instructions: Mapping[str, str] = field(default_factory=dict)
    groups: Mapping[str, list[str]] = field(default_factory=dict)
    missing: Mapping[str, str] = field(default_factory=dict)
    specs: tuple[str, ...] = ()
    """What was named one by one, as it was named."""


@cache
def suites() -> Mapping[str, Suite]:
    """All suites by name."""
    raw = yaml.safe_load((Path(__file__).parent / "suites.yaml").read_text(encoding="utf-8"))
    return {name: Suite.model_validate(content) for name, content in raw.items()}


def suite(name: str) -> Suite:
    """The suite of this name. Raises InputError naming those there are."""
    if name not in suites():
        known = "; ".join(f"{key} ({value.about})" for key, value in suites().items())
        raise InputError(f"--suite {name}: no such suite; there are {known}.")
    return suites()[name]


def local_folder(task: SuiteTask) -> Path | None:
    """Where a copy of a task lies under MEDLEY_DATA; None without one."""
    root = os.environ.get(DATA)
    if not root:
        return None
    holds = "pairs.jsonl" if task.kind == "similarity" else "corpus.jsonl"
    places = [Path(root).expanduser() / part / name for part in (".", "collections") for name in task.local]
    return next((place for place in places if (place / holds).is_file()), None)


def open_suite(name: str) -> Opened:
    """Open every task of a suite; what cannot be had is in `missing` with the reason."""
    found: list[Collection] = []
    similar: list[SimilarityTask] = []
    missing: dict[str, str] = {}
    tasks = suite(name).tasks
    for task in tasks:
        try:
            if task.kind == "similarity":
                similar.append(replace(load_similarity(task.task, local_folder(task)), name=task.name))
            else:
                found.append(replace(_open(task), name=task.name))
        except CollectionError as problem:
            missing[task.name] = str(problem)
    opened = {collection.name for collection in found} | {task.name for task in similar}
    groups: dict[str, list[str]] = {}
    for task in tasks:
        if task.name in opened:
            groups.setdefault(task.group, []).append(task.name)
    instructions = {task.name: task.instruction for task in tasks if task.instruction}
    return Opened(tuple(found), tuple(similar), instructions, groups, missing)


def _open(task: SuiteTask) -> Collection:
    folder = local_folder(task)
    if folder is not None:
        # the split of a copy in BEIR layout is test, whatever the hub's is called; corpora hold empty passages
        own_split = split_spec(task.task)[1]
        split = own_split if (folder / "qrels" / f"{own_split}.tsv").is_file() else "test"
        collection = load_collection(f"{folder}:{split}", keep_empty=True)
        return replace(collection, leaves_out_own=task.leaves_out_own)
    if not task.mteb:
        raise CollectionError(
            f"{task.name}: is not in MTEB; put a copy in BEIR layout at ${DATA}/collections/{task.local[0]}."
        )
    return load_collection(task.task)


def refuse_missing(missing: Mapping[str, str], total: int) -> None:
    """Raise CollectionError that names all tasks which cannot be had, before any is scored."""
    if not missing:
        return
    reasons: dict[str, list[str]] = {}
    for task, reason in missing.items():
        reasons.setdefault(_why(reason, task), []).append(task)
    listed = "; ".join(f"{', '.join(tasks)} ({why})" for why, tasks in reasons.items())
    raise CollectionError(
        f"{len(missing)} of {total} tasks are not available: {listed}. Put local copies in BEIR layout under ${DATA}, "
        "go online once so that the hub's cache holds them, or pass --skip-missing to score the others."
    )


def _why(reason: str, task: str) -> str:
    """A reason without the task's own name, so that equal reasons are told once."""
    return "the hub cannot be reached" if "hub" in reason else reason.removeprefix(f"{task}: ").rstrip(".")


def means_of(groups: Mapping[str, Sequence[str]], scores: Mapping[str, float]) -> dict[str, float]:
    """The mean of each group's tasks, and of all tasks."""
    means = {
        group: sum(scores[task] for task in tasks) / len(tasks) for group, tasks in groups.items() if tasks
    }
    return {**means, "all": sum(scores.values()) / len(scores)} if scores else {}
