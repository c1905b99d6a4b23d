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

if TYPE_CHECKING:
    from medley.evaluate.access import Access


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
    from medley.api.evaluate import evaluate as evaluate_models
    from medley.api.evaluate import open_tasks
    from medley.evaluate.systems import Options, base_name
    from medley.tables import print_evaluation

    models = [model, *(baseline or ())]
    options = Options(
        instruction=instruction,
        template=template,
        base=base,
        dtype=dtype,
        access=_access(list(map(base_name, models)), api_key_env, server_extra or ()),
        store=store,
    )
    opened = open_tasks(task or (), suite or (), keep_empty=keep_empty, skip_missing=skip_missing)
    found = evaluate_models(
        models, opened, compress=compress or (), options=options, engine=engine, out=out, force=force,
    )  # fmt: skip
    if as_json:
        print(json.dumps(found.as_json()))
    else:
        print_evaluation(found.table, dict(found.groups))


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


def published(
    run: Annotated[
        list[str],
        typer.Option(
            metavar="CONDITION=PLACE",
            help="A run folder or results.json, and what it is: FT, SHN, PO, SHN+PO, 100k or TIES; repeatable.",
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
