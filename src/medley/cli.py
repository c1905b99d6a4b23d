"""The command line: a thin shell. Progress goes to standard error, results to standard output.

Exit codes: 0 success, 2 the user's input is wrong (one sentence), 1 anything else.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

import medley
from medley import (
    cli_compare,
    cli_evaluate,
    cli_guard,
    cli_leaks,
    cli_prompts,
    cli_synthesize,
    cli_train,
)
from medley.cli_options import AdapterBase, Force, Json, Out, Overrides, PairsFile, Seed
from medley.ending import INTERRUPTED, tidy_ending
from medley.errors import InputError, MedleyError
from medley.noticed import telling
from medley.progress import printable, say
from medley.tables import print_results, print_steps

app = typer.Typer(
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.add_typer(cli_synthesize.app, name="synthesize")


def main() -> None:
    """Run the command line; turn errors into one sentence and an exit code."""
    # On a CPU oneDNN keeps code for up to 1,024 shapes of matrices: hundreds of MB where texts have all lengths.
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "128")
    try:
        with tidy_ending(), telling():
            status = app(prog_name="medley", standalone_mode=False)
    except MedleyError as problem:
        say(f"medley: {problem}")
        sys.exit(problem.exit_code)
    except ValueError as problem:
        say(f"medley: {_setting_out_of_range(problem)}")
        sys.exit(InputError.exit_code)
    except OSError as problem:
        if problem.filename is None or problem.strerror is None:
            raise
        say(f"medley: {problem.filename}: {problem.strerror}; check the path and who may use it.")
        sys.exit(InputError.exit_code)
    except Exception as problem:
        say(_usage_error(problem))
        sys.exit(InputError.exit_code)
    if status == INTERRUPTED:
        say("medley: interrupted; run the same command again to continue.")
    sys.exit(status or 0)


def _usage_error(problem: Exception) -> str:
    """A wrong option or argument, in one sentence; any other exception is a defect and is raised again.

    Typer raises click's exceptions from a copy of its own, so they are known by name.
    """
    kinds = [kind.__name__ for kind in type(problem).__mro__]
    if "ClickException" not in kinds:
        raise problem
    context = getattr(problem, "ctx", None)
    message = str(problem.format_message())  # type: ignore[attr-defined]
    if "NoArgsIsHelpError" in kinds:
        return message
    command = context.command_path if context is not None else "medley"
    joined = " See" if message.endswith("?") else "; see"
    return f"medley: {message[:1].lower()}{message[1:].rstrip('.')}{joined} `{command} --help`."


def _setting_out_of_range(problem: ValueError) -> str:
    """What an option's value breaks, in one sentence; any other ValueError is a defect and is raised again."""
    from pydantic import ValidationError

    from medley.recipe import Recipe
    from medley.recipe_problems import explain

    if not isinstance(problem, ValidationError):
        raise problem
    return explain(problem, Recipe)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"medley {medley.__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool,
        typer.Option("--version", is_eager=True, callback=_print_version, help="Say which version this is."),
    ] = False,
) -> None:
    """Turn a decoder-only language model into a retriever for your domain."""


@app.command()
def demo(
    out: Out = Path("demo-run"),
    overrides: Overrides = None,
) -> None:
    """Run everything on bundled data. A CPU is enough; no network, no language model."""
    from medley.collections import BUNDLED

    run(BUNDLED / "demo" / "recipe.yaml", out=out, overrides=overrides)


@app.command()
def run(
    recipe: Annotated[Path, typer.Argument(help="A recipe file (YAML).")],
    out: Annotated[Path | None, typer.Option("--out", help="The run folder; default runs/<name>.")] = None,
    until: Annotated[str | None, typer.Option(help="Stop after this stage.")] = None,
    overrides: Overrides = None,
    plan_only: Annotated[
        bool, typer.Option("--plan", help="Say what would run and what it would cost; change nothing.")
    ] = False,
    measure: Annotated[
        bool,
        typer.Option("--measure", help="With --plan: also estimate the time, from a few measured passes."),
    ] = False,
    devices: Annotated[int, typer.Option(help="Experts that train side by side, one on each device.")] = 1,
    launcher: Annotated[
        str,
        typer.Option(
            help='Train each expert on all devices, started by a command: "torchrun --nproc-per-node 8".'
        ),
    ] = "",
    reuse: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="RUN", help="Another run folder: results of exactly the same steps are taken from there."
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Run a recipe, from data to proof. Continues where an earlier run of it stopped."""
    from medley.pipeline.devices import Devices
    from medley.pipeline.start import plan, run_recipe
    from medley.recipe import load_recipe

    settings = load_recipe(recipe, overrides or ())
    folder = out or Path("runs") / settings.name
    if measure and not plan_only:
        raise InputError("--measure: estimates the times of a plan; give --plan with it.")
    if plan_only:
        rows = plan(settings, folder, reuse=reuse or ())
        if measure:
            from medley.pipeline import timing

            rows = timing.timed(rows, timing.measure(settings))
        print_steps(rows, as_json)
        return
    run_recipe(settings, folder, until=until, devices=Devices(devices, launcher), reuse=reuse or ())
    results = folder / "results.json"
    if results.is_file() and until is None:
        print_results(json.loads(results.read_text(encoding="utf-8")), as_json)
        if not as_json:
            print(printable(f"\nmodel:  {folder / 'model'}\nreport: {folder / 'report.html'}"))


@app.command()
def status(folder: Annotated[Path, typer.Argument(help="A run folder.")], as_json: Json = False) -> None:
    """Say which steps of a run are done, stale or to do, and why."""
    from medley.pipeline.start import status as run_status

    if not (folder / "recipe.yaml").is_file():
        raise InputError(f"{folder}: holds no recipe.yaml, so it is no run folder; check the path.")
    print_steps(run_status(folder), as_json)


@app.command()
def mine(
    pairs: PairsFile,
    out: Out,
    retriever: Annotated[
        str, typer.Option(help="`bm25`, or a model or adapter folder, or a hub id.")
    ] = "bm25",
    base: AdapterBase = None,
    corpus: Annotated[
        str | None, typer.Option(help="A collection or a corpus.jsonl; default: the pairs' own positives.")
    ] = None,
    depth: Annotated[int, typer.Option(help="How many ranks are looked at for each query.")] = 100,
    skip_top: Annotated[int, typer.Option(help="How many ranks are left out at the top.")] = 0,
    per_query: Annotated[int, typer.Option(help="Negatives kept for each pair.")] = 1,
    margin: Annotated[
        float, typer.Option(help="Keep candidates that score below margin x the positive's score.")
    ] = 0.95,
    absolute_margin: Annotated[
        float | None,
        typer.Option(help="Keep candidates that score lower than the positive by more than this."),
    ] = None,
    min_score: Annotated[float | None, typer.Option(help="Keep candidates that score at least this.")] = None,
    max_score: Annotated[float | None, typer.Option(help="Keep candidates that score at most this.")] = None,
    sampling: Annotated[str, typer.Option(help="`top`: the best that pass; `random`: any of them.")] = "top",
    vectors: Annotated[
        Path | None,
        typer.Option(help="Keep the corpus' vectors here; default: OUT.vectors, removed when done."),
    ] = None,
    seed: Seed = 13,
    force: Force = False,
) -> None:
    """Mine hard negatives for training pairs, from a corpus."""
    from medley.api.mine import mine as mine_pairs
    from medley.mine import MiningSettings

    settings = MiningSettings.model_validate(
        {
            "retriever": retriever,
            "depth": depth,
            "skip_top": skip_top,
            "per_query": per_query,
            "margin": margin,
            "absolute_margin": absolute_margin,
            "min_score": min_score,
            "max_score": max_score,
            "sampling": sampling,
        }
    )
    mined = mine_pairs(
        pairs, out, corpus=corpus, settings=settings, base=base, vectors=vectors, seed=seed, force=force
    )
    print(json.dumps(mined.counts))


app.command("tune-prompt")(cli_prompts.tune_prompt)


app.command()(cli_train.train)


@app.command()
def merge(
    merge_file: Annotated[Path, typer.Argument(help="A merge file (YAML); mergekit's are accepted.")],
    out: Out,
    as_mergekit: Annotated[
        bool,
        typer.Option("--as-mergekit", help="Write mergekit's configuration of the merge to --out instead."),
    ] = False,
    force: Force = False,
) -> None:
    """Merge experts with given weights. The model is exported through the gate."""
    from medley.api.merge import as_mergekit_file
    from medley.api.merge import merge as merge_experts

    if as_mergekit:
        print(json.dumps({"mergekit": str(as_mergekit_file(merge_file, out, force=force))}))
    else:
        print(json.dumps(merge_experts(merge_file, out, force=force).as_json()))


@app.command("search-merge")
def search_merge(
    merge_file: Annotated[Path, typer.Argument(help="A merge file with a `search` section.")],
    out: Out,
    force: Force = False,
) -> None:
    """Search merge weights on dev, in memory. Writes search.json and the best model."""
    from medley.api.merge import search_merge as search

    print(json.dumps(search(merge_file, out, force=force).result.as_json()["best"]))


app.command()(cli_evaluate.evaluate)
app.command()(cli_evaluate.published)


app.command()(cli_compare.compare)
app.command()(cli_leaks.leaks)
app.command()(cli_guard.guard)
app.command()(cli_guard.review)


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(help="A run folder.")],
    beside: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="RUN",
            help="Another run to compare this one with, such as one without negatives; repeatable.",
        ),
    ] = None,
) -> None:
    """Write the report of a run again."""
    from medley.report import write_report

    print(printable(str(write_report(folder, beside or ()))))
