"""`medley train`: one expert from a pairs file, or a domain base from raw text. A thin shell.

Under a launcher (torchrun, accelerate launch) the same command runs once on every device; the first writes the result.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from medley.cli_options import Force, Out, Seed
from medley.errors import InputError

if TYPE_CHECKING:
    from pydantic import BaseModel

OBJECTIVES = ("contrastive", "language")
Settings = TypeVar("Settings", bound="BaseModel")


def train(
    base: Annotated[str, typer.Option(help="Hub id, model folder, or `tiny`.")],
    out: Out,
    pairs: Annotated[
        Path | None,
        typer.Option("--pairs", help="A pairs file: JSON Lines, Parquet, CSV or a saved data set."),
    ] = None,
    objective: Annotated[
        str,
        typer.Option(help="`contrastive`: a retriever from --pairs; `language`: a domain base from --text."),
    ] = "contrastive",
    text: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE",
            help="Raw text: a .jsonl, .jsonl.gz, .parquet, .txt or .md file, or a folder; repeatable.",
        ),
    ] = None,
    learning_rate: Annotated[
        float | None, typer.Option(help="Peak of the schedule; default 5e-5, for `language` 1e-4.")
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Pairs (256) or blocks of text (32) a step, over all devices.")
    ] = None,
    epochs: Annotated[float, typer.Option(help="Passes over the data.")] = 1.0,
    full: Annotated[bool, typer.Option("--full", help="Train all weights instead of an adapter.")] = False,
    dev: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SPEC:SPLIT",
            help="Stop when the score on this dev collection no longer rises; repeatable.",
        ),
    ] = None,
    instruction: Annotated[
        str, typer.Option(help="The task sentence (instruction) for rows that have none.")
    ] = "",
    overrides: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="Any other setting of the recipe's `train`: key.sub=value."
        ),
    ] = None,
    seed: Seed = 13,
    plan: Annotated[
        bool,
        typer.Option("--plan", help="Estimate time and memory from a few measured passes; train nothing."),
    ] = False,
    force: Force = False,
) -> None:
    """Train one expert on pairs, or a base on raw text. Continues where it was killed."""
    from medley.api.train import plan_training, train_on_text
    from medley.api.train import train as train_expert
    from medley.train.settings import LanguageSettings, TrainSettings

    given: dict[str, Any] = {"epochs": epochs}
    given |= {} if learning_rate is None else {"learning_rate": learning_rate}
    given |= {} if batch_size is None else {"batch_size": batch_size}
    given |= {"lora": None} if full else {}
    if objective not in OBJECTIVES:
        raise InputError(f"--objective {objective}: not known; choose {' or '.join(OBJECTIVES)}.")
    if objective == "language":
        if plan:
            raise InputError(
                "--plan: measures contrastive training only; leave it out with --objective language."
            )
        if not text or pairs or dev:
            raise InputError(
                "--objective language: give raw text with --text, and neither --pairs nor --dev."
            )
        trained = train_on_text(
            base, text, out, settings=_settings(LanguageSettings, given, overrides), seed=seed, force=force
        )
        result = trained.as_json()
    else:
        if pairs is None or text:
            raise InputError("--objective contrastive: give a pairs file with --pairs, and no --text.")
        given |= {"early_stopping": {}} if dev else {}
        settings = _settings(TrainSettings, given, overrides)
        if plan:
            result = plan_training(base, pairs, settings=settings, instruction=instruction, seed=seed)
        else:
            result = train_expert(
                base, pairs, out, settings=settings, dev=dev or (), instruction=instruction, seed=seed, force=force
            ).as_json()  # fmt: skip
    from medley.train.processes import is_first

    if is_first():
        print(json.dumps(result))


def _settings(model: type[Settings], given: dict[str, Any], overrides: list[str] | None) -> Settings:
    """The options and each --set as settings; InputError, in one sentence, where they are none."""
    from pydantic import ValidationError

    from medley.recipe import overridden
    from medley.recipe_problems import explain

    for override in overrides or ():
        given = overridden(given, override, example="weight_decay=0.01")
    try:
        return model.model_validate(given)
    except ValidationError as problem:
        raise InputError(explain(problem, model)) from problem
