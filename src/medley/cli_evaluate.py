"""`medley evaluate`: models and baselines on suites, tasks and folders, in one table."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from medley.cli_options import AdapterBase, Force, Json
from medley.errors import InputError
from medley.progress import say

if TYPE_CHECKING:
    from medley.evaluate.access import Access

SCORING = ("evaluate/scores.py", "evaluate/similarity.py", "evaluate/systems.py", "search")
"""Code that decides a score: a result kept from before holds until it changes."""


def evaluate(
    model: Annotated[
        str,
        typer.Argument(
            help="A model or adapter folder, a hub id, `bm25`, or URL#MODEL of an embedding server."
        ),
    ],
    task: Annotated[
        list[str] | None,
        typer.Option(metavar="TASK", help="MTEB task or collection folder, with :SPLIT; repeatable."),
    ] = None,
    suite: Annotated[
        list[str] | None,
        typer.Option(metavar="SUITE", help="stm12, medical, nano or bmretriever; repeatable."),
    ] = None,
    baseline: Annotated[
        list[str] | None,
        typer.Option(
            metavar="MODEL",
            help="A system to put beside it, named like the model; NAME+bm25 is fused with BM25 by ranks.",
        ),
    ] = None,
    compress: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SIZE",
            help="Also score small vectors: int8, binary, or a number of dimensions; repeatable.",
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Where results.json goes.")] = None,
    store: Annotated[
        Path | None, typer.Option(help="Keep vectors and results here; nothing is encoded or scored twice.")
    ] = None,
    instruction: Annotated[
        str | None, typer.Option(help="An instruction to use instead of the suite's or the model's own.")
    ] = None,
    template: Annotated[
        str | None, typer.Option(help="For models that have none: bmretriever, e5 or plain.")
    ] = None,
    base: AdapterBase = None,
    dtype: Annotated[str | None, typer.Option(help="float32 or bfloat16; default: as saved.")] = None,
    engine: Annotated[str, typer.Option(help="What encodes: `local`, or `ray` for many machines.")] = "local",
    api_key_env: Annotated[
        str | None,
        typer.Option(help="Variable that holds the server's key; no key is sent without it."),
    ] = None,
    server_extra: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=JSON",
            help="A further field of each request to the server; with query: or passage: before it, of those only.",
        ),
    ] = None,
    keep_empty: Annotated[bool, typer.Option("--keep-empty", help="Allow passages without text.")] = False,
    skip_missing: Annotated[
        bool, typer.Option("--skip-missing", help="Leave out the tasks of a suite that are not available.")
    ] = False,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Score a model on MTEB tasks and collections. Baselines, BM25 among them, stand beside it."""
    from medley.claim import claimed
    from medley.collections import load_collection
    from medley.evaluate.suites import open_suite, refuse_missing
    from medley.evaluate.systems import Options, rows_of
    from medley.evaluate.table import evaluate_table, say_chosen
    from medley.files import write_json
    from medley.fingerprint import code_of
    from medley.search.compressed import check_compression
    from medley.tables import print_evaluation

    if not task and not suite:
        raise InputError("nothing to score on; give --task or --suite.")
    if engine not in ("local", "ray"):
        raise InputError(f"--engine {engine}: not known; choose local or ray.")
    compressions = [check_compression(name) for name in compress or ()]
    rows = rows_of([model, *(baseline or ())], compressions)
    collections = [load_collection(spec, keep_empty=keep_empty) for spec in task or ()]
    opened = [open_suite(name) for name in suite or ()]
    missing = {name: reason for each in opened for name, reason in each.missing.items()}
    if not skip_missing:
        refuse_missing(missing, sum(len(e.collections) + len(e.similarity) + len(e.missing) for e in opened))
    elif missing:
        say(f"left out, since they are not available: {', '.join(missing)}")
    # a task that two suites share is scored once
    collections += {c.name: c for each in opened for c in each.collections}.values()
    options = Options(
        instruction=instruction,
        instructions={name: text for each in opened for name, text in each.instructions.items()},
        template=template,
        base=base,
        dtype=dtype,
        access=_access([row.base for row in rows], api_key_env, server_extra or ()),
        store=store,
    )
    with claimed(out, force=force, inputs=(model, *(baseline or ()))):
        table = evaluate_table(
            rows,
            collections,
            options,
            similarity=list({t.name: t for each in opened for t in each.similarity}.values()),
            engine=_engine(engine, options),
            code=code_of(*SCORING),
        )
        groups = {group: names for each in opened for group, names in each.groups.items()}
        # the first row stands at the top, as without baselines; `variants` holds all, as a run's results do
        if rows[0].label not in table:
            raise InputError(
                f"{model}: none of the tasks can be scored with it; it has no vectors to compare sentences by."
            )
        first = table[rows[0].label]
        results: dict[str, Any] = {**first, **({"variants": table} if len(table) > 1 else {})}
        if groups:
            results["groups"] = groups
        if missing:
            results["missing"] = missing
        if out is not None:
            write_json(out, results, force=force)
    for label, row in table.items():
        say_chosen(label, row["tasks"])
    if as_json:
        print(json.dumps(results))
    else:
        print_evaluation(table, groups)


def _access(names: Sequence[str], api_key_env: str | None, extra: Sequence[str]) -> dict[str, Access]:
    """What the command's server is asked with. Raises InputError where it names no server or several: a key and fields
    are one server's own.
    """
    from medley.evaluate.access import Access, is_server
    from medley.llm.extra import extra_from_options

    servers = list(dict.fromkeys(name for name in names if is_server(name)))
    if api_key_env is None and not extra:
        return {}
    if len({name.partition("#")[0] for name in servers}) != 1:
        raise InputError(
            "--api-key-env and --server-extra are for one server (URL#MODEL), and "
            f"{'none is' if not servers else 'several are'} named; evaluate each by a command of its own."
        )
    only = {
        side: [text.removeprefix(side) for text in extra if text.startswith(side)]
        for side in ("query:", "passage:")
    }
    for_all = [text for text in extra if not text.startswith(("query:", "passage:"))]
    read = partial(extra_from_options, option="--server-extra")
    access = Access(
        api_key_env=api_key_env,
        extra_body=read(for_all),
        query_body=read(only["query:"]),
        document_body=read(only["passage:"]),
    )
    return dict.fromkeys(servers, access)


def _engine(name: str, options: Any) -> Any:
    if name == "local":
        return None
    from medley.evaluate.systems import opened
    from medley.search.ray_engine import ray_engine

    return ray_engine(partial(opened, options=options))


def published(
    run: Annotated[
        list[str],
        typer.Option(
            help="CONDITION=RUN_FOLDER_OR_RESULTS, with FT, SHN, PO, SHN+PO, 100k or TIES; repeatable."
        ),
    ],
    base: Annotated[str, typer.Option(help="qwen3-0.6b, gemma-2b or phi-4-mini.")] = "qwen3-0.6b",
    as_json: Json = False,
) -> None:
    """Put your own numbers beside the paper's tables."""
    from dataclasses import asdict

    from medley.errors import CollectionError
    from medley.evaluate.published import CONDITIONS, mean_lines, task_lines
    from medley.files import read_json
    from medley.tables import print_published

    runs: dict[str, Any] = {}
    for given in run:
        condition, equals, place = given.partition("=")
        if not equals or condition not in CONDITIONS:
            raise InputError(f"--run {given}: write CONDITION=PLACE, with one of {', '.join(CONDITIONS)}.")
        path = Path(place) / "results.json" if Path(place).is_dir() else Path(place)
        results = read_json(path, CollectionError)
        # of `medley evaluate` on one model: the model that was merged
        runs[condition] = results.get("variants", {"merged": results})
    means = mean_lines(runs, base)
    merged = next((variants["merged"] for variants in runs.values() if "merged" in variants), None)
    tasks = task_lines(merged, base) if merged else []
    if as_json:
        print(
            json.dumps({"means": [asdict(line) for line in means], "tasks": [asdict(line) for line in tasks]})
        )
    else:
        print_published(base, means, tasks)
