"""A table of systems by tasks: what is kept from before is read, the rest is evaluated and kept.

In: systems by name, opened tasks, options. Out: for each row `{"model": ..., "tasks": ...}`, as results.json holds it.
A kept result is found by all that decides it (model files, instruction, collection, code), so a model is not even
opened when nothing about it is new.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from medley.collections import Collection
from medley.errors import CollectionError
from medley.evaluate.scores import DEPTH, by_name
from medley.evaluate.similarity import SimilarityTask, score_similarity
from medley.evaluate.systems import (
    EngineOf,
    Options,
    Row,
    System,
    chosen_by,
    evaluate_rows,
    identity_of,
    instruction_used,
    open_system,
)
from medley.files import read_json, write_json
from medley.fingerprint import fingerprint
from medley.leaks.chosen import KEY, ChosenOn, queries_chosen_on, warning
from medley.noticed import Count, count_as
from medley.progress import say
from medley.search import Rankings, rank_with_bm25
from medley.search.compressed import bytes_a_passage

Table = dict[str, dict[str, Any]]


def evaluate_table(
    rows: Sequence[Row],
    collections: Sequence[Collection],
    options: Options,
    *,
    similarity: Sequence[SimilarityTask] = (),
    engine: EngineOf | None = None,
    code: str = "",
) -> Table:
    """Score every row on every task. `code` is the fingerprint of what computes the scores.

    Similarity tasks are for rows of a model alone: there is nothing to rank.
    """
    named = by_name(collections)
    lexical: dict[str, Rankings] = {}
    table: Table = {}
    for base in dict.fromkeys(row.base for row in rows):
        own = [row for row in rows if row.base == base]
        opening = _Opening(base, options, engine)
        chosen = chosen_by(base)
        identity = opening.identity
        for name, collection in named.items():
            keys = {
                row: fingerprint(
                    ["retrieval", identity, asdict(row), options.instruction, options.instructions.get(collection.name),
                     collection.identity, collection.leaves_out_own, code]
                )
                for row in own
            }  # fmt: skip
            found = {row: kept for row, key in keys.items() if (kept := _kept(options.store, key))}
            for kept in found.values():
                for kind, count in kept["task"].get("cut", {}).items():
                    count_as(f"{kind} of {collection.name}", Count(count["texts"], count["cut"]))
            todo = [row for row in own if row not in found]
            if todo:

                def ranked(name: str = name, collection: Collection = collection) -> Rankings:
                    if name not in lexical:
                        lexical[name] = rank_with_bm25(collection, DEPTH)
                    return lexical[name]

                system = opening.system()
                for row, task in evaluate_rows(system, todo, collection, options, ranked).items():
                    found[row] = _keep(options.store, keys[row], system, row, task)
            for row in own:
                entry = table.setdefault(row.label, {"model": found[row]["model"], "tasks": {}})
                entry["tasks"][name] = with_chosen(found[row]["task"], chosen, collection)
        for pair_task in similarity:
            alone = [row for row in own if row == Row(base) and base != "bm25"]
            key = fingerprint(
                [
                    "similarity",
                    identity,
                    options.instruction,
                    options.instructions.get(pair_task.name),
                    pair_task.identity,
                    code,
                ]
            )
            for row in alone:
                found_task = _kept(options.store, key)
                if found_task is None:
                    system = opening.system()
                    scored = _similarity(system, pair_task, options)
                    found_task = _keep(options.store, key, system, row, scored)
                entry = table.setdefault(row.label, {"model": found_task["model"], "tasks": {}})
                entry["tasks"][pair_task.name] = found_task["task"]
    return {row.label: table[row.label] for row in rows if row.label in table}


def with_chosen(task: dict[str, Any], chosen: Sequence[ChosenOn], collection: Collection) -> dict[str, Any]:
    """A task of results.json, which says under `chosen_on` where the model was chosen on its queries."""
    shared = queries_chosen_on(chosen, collection)
    return {**task, KEY: shared} if shared else task


def say_chosen(model: str, tasks: Mapping[str, Mapping[str, Any]]) -> None:
    """Say loudly which scores of a model are no tests."""
    for task, scored in tasks.items():
        if KEY in scored:
            say(warning(model, task, scored[KEY]))


class _Opening:
    """A system that is opened when it is first needed, and its identity."""

    def __init__(self, base: str, options: Options, engine: EngineOf | None) -> None:
        self._base, self._options, self._engine = base, options, engine
        self._system: System | None = None
        # without a store nothing is looked up, and a large model's files need not be read twice
        self.identity = identity_of(base, options) if options.store else base

    def system(self) -> System:
        if self._system is None:
            self._system = open_system(self._base, self._options, self._engine)
        return self._system


def _similarity(system: System, task: SimilarityTask, options: Options) -> dict[str, Any]:
    if system.embedder is None:
        raise CollectionError(
            f"{task.name}: {system.name} has no vectors to compare sentences by; leave the task out."
        )
    instruction = instruction_used(system, task.name, options)
    prompt = system.embedder.query_prompt(instruction)
    scored = score_similarity(system.embedder, task, instruction)
    return {**scored, "encoded": {"query_prompt": prompt, "first_query": prompt + task.firsts[0]}}


def _kept(store: Path | None, key: str) -> dict[str, Any] | None:
    path = store / "results" / f"{key}.json" if store else None
    return read_json(path, CollectionError) if path and path.is_file() else None


def _keep(store: Path | None, key: str, system: System, row: Row, task: Mapping[str, Any]) -> dict[str, Any]:
    model = {**system.description, "name": row.label}
    if row.compression and system.embedder is not None:
        model["compression"] = row.compression
        model["bytes_a_passage"] = bytes_a_passage(row.compression, task["dimension"])
        model["bytes_whole"] = bytes_a_passage(None, task["dimension"])
    if row.fused:
        model["fused_with"] = "bm25"
    result = {"model": model, "task": dict(task)}
    if store:
        write_json(store / "results" / f"{key}.json", result)
    return result
