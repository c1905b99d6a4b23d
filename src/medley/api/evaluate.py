"""`medley.evaluate`: models and baselines on suites, MTEB tasks and folders, in one table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medley.api.frames import frame
from medley.claim import claimed
from medley.collections import load_collection
from medley.errors import InputError
from medley.evaluate.suites import Opened, open_suite, refuse_missing
from medley.evaluate.systems import EngineOf, Options, opened, rows_of
from medley.evaluate.table import Table, evaluate_table, say_chosen
from medley.files import write_json
from medley.fingerprint import code_of
from medley.noticed import telling
from medley.progress import say
from medley.search.compressed import check_compression

if TYPE_CHECKING:
    import pandas

SCORING = ("evaluate/scores.py", "evaluate/similarity.py", "evaluate/systems.py", "search")
"""Code that decides a score: a result kept from before holds until it changes."""
ENGINES = ("local", "ray")


@dataclass(frozen=True)
class Evaluation:
    """Scores of each row (a model, a baseline) on each task, as results.json holds them.

    `groups` are the task names of a suite's groups, `missing` the tasks that were left out, each with the reason.
    """

    table: Table
    groups: Mapping[str, list[str]]
    missing: Mapping[str, str]

    def as_json(self) -> dict[str, Any]:
        """results.json: the first row stands at the top; `variants` holds all rows where there are several."""
        first = next(iter(self.table.values()))
        results: dict[str, Any] = {**first, **({"variants": self.table} if len(self.table) > 1 else {})}
        if self.groups:
            results["groups"] = dict(self.groups)
        if self.missing:
            results["missing"] = dict(self.missing)
        return results

    def to_frame(self) -> pandas.DataFrame:
        """A row for each model and task: `model`, `task`, `split`, and the measures, such as `ndcg_at_10`."""
        return frame(
            {"model": name, "task": task, **{key: value for key, value in scored.items() if _is_measure(value)}}
            for name, row in self.table.items()
            for task, scored in row["tasks"].items()
        )  # fmt: skip


def open_tasks(
    tasks: Sequence[str] = (),
    suites: Sequence[str] = (),
    *,
    keep_empty: bool = False,
    skip_missing: bool = False,
) -> Opened:
    """Open collections (folders or MTEB tasks, with `:SPLIT`) and suites; a task that two suites share is there once.

    With `skip_missing` what a suite names and cannot be had is left out, which is told. Raises CollectionError
    otherwise, and InputError where there is nothing to score on.
    """
    if not tasks and not suites:
        raise InputError("nothing to score on; give --task or --suite.")
    collections = [load_collection(spec, keep_empty=keep_empty) for spec in tasks]
    opened = [open_suite(name) for name in suites]
    missing = {name: reason for each in opened for name, reason in each.missing.items()}
    if not skip_missing:
        refuse_missing(missing, sum(len(e.collections) + len(e.similarity) + len(e.missing) for e in opened))
    elif missing:
        say(f"left out, since they are not available: {', '.join(missing)}")
    collections += {c.name: c for each in opened for c in each.collections}.values()
    return Opened(
        tuple(collections),
        tuple({t.name: t for each in opened for t in each.similarity}.values()),
        {name: text for each in opened for name, text in each.instructions.items()},
        {group: names for each in opened for group, names in each.groups.items()},
        missing,
        tuple(tasks),
    )


@telling()
def evaluate(
    models: str | Sequence[str],
    tasks: Opened | str | Sequence[str],
    *,
    compress: Sequence[str] = (),
    options: Options | None = None,
    engine: str = "local",
    out: Path | str | None = None,
    force: bool = False,
) -> Evaluation:
    """Score models on tasks: `bm25`, folders or hub ids, URL#MODEL of a server; NAME+bm25 fuses both.

    `tasks` are collections and MTEB tasks by name, or what `open_tasks` opened. `compress` adds rows with small
    vectors (`int8`, `binary`, a number of dimensions). `engine` encodes: `local`, or `ray` on many machines.
    `out` is results.json, replaced with `force` only.
    Raises CollectionError, ModelError, EndpointError, and OutputError before anything is encoded.
    """
    if engine not in ENGINES:
        raise InputError(f"--engine {engine}: not known; choose {' or '.join(ENGINES)}.")
    names = [models] if isinstance(models, str) else list(models)
    if not names:
        raise InputError("no model to score; name at least one, such as bm25.")
    rows = rows_of(names, [check_compression(name) for name in compress])
    there = tasks if isinstance(tasks, Opened) else open_tasks([tasks] if isinstance(tasks, str) else tasks)
    asked = options or Options()
    asked = replace(asked, instructions={**there.instructions, **asked.instructions})
    place = None if out is None else Path(out)
    with claimed(place, force=force, inputs=[*names, *there.specs]):
        table = evaluate_table(
            rows, there.collections, asked, similarity=there.similarity, engine=_engine(engine, asked),
            code=code_of(*SCORING),
        )  # fmt: skip
        if rows[0].label not in table:
            raise InputError(
                f"{names[0]}: none of the tasks can be scored with it; it has no vectors to compare sentences by."
            )
        found = Evaluation(table, there.groups, there.missing)
        if place is not None:
            write_json(place, found.as_json(), force=force)
    for label, row in table.items():
        say_chosen(label, row["tasks"])
    return found


def _engine(name: str, options: Options) -> EngineOf | None:
    if name == "local":
        return None
    from medley.search.ray_engine import ray_engine

    return ray_engine(partial(opened, options=options))


def _is_measure(value: object) -> bool:
    return isinstance(value, (str, int, float))
