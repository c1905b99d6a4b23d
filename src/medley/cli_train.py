"""`medley train`: one expert from a pairs file, or a domain base from raw text. A thin shell.

Under a launcher (torchrun, accelerate launch) the same command runs once on every device; the first writes the result.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from medley.cli_options import Force, Out, Seed
from medley.errors import InputError

if TYPE_CHECKING:
    from medley.encoder import RetrieverSettings
    from medley.train.contrastive import Training
    from medley.train.settings import LanguageSettings, TrainSettings

OBJECTIVES = ("contrastive", "language")


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
        result = _language(base, text, out, _settings(given, overrides, language=True), seed, force)
    else:
        if pairs is None or text:
            raise InputError("--objective contrastive: give a pairs file with --pairs, and no --text.")
        given |= {"early_stopping": {}} if dev else {}
        settings = _settings(given, overrides, language=False)
        result = (
            _planned(base, pairs, settings, instruction, seed)
            if plan
            else _contrastive(base, pairs, out, settings, dev or [], instruction, seed, force)
        )
    from medley.train.processes import is_first

    if is_first():
        print(json.dumps(result))


def _settings(given: dict[str, Any], overrides: list[str] | None, *, language: bool) -> Any:
    from medley.recipe import overridden
    from medley.train.settings import LanguageSettings, TrainSettings

    for override in overrides or ():
        given = overridden(given, override)
    return (LanguageSettings if language else TrainSettings).model_validate(given)


def _language(
    base: str, text: list[Path], out: Path, settings: LanguageSettings, seed: int, force: bool
) -> dict[str, Any]:
    from medley.documents import shards_of
    from medley.train.language import COSTS_NOTHING, train_language

    asked = {"text": list(map(str, text)), "base": base, **_plain(settings, COSTS_NOTHING), "seed": seed}
    with _claimed(out, force, asked, inputs=(base, *text)) as checkpoints:
        shards = [shard for source in text for shard in shards_of(source)]
        report = train_language(base, shards, settings, out, seed=seed, checkpoints=checkpoints)
    return {
        "tokens": report.tokens, "steps": report.steps, "loss": report.losses[-1]["loss"],
        "held_out_loss_before": report.loss_before, "held_out_loss_after": report.loss_after,
    }  # fmt: skip


def _contrastive(
    base: str,
    pairs: Path,
    out: Path,
    settings: TrainSettings,
    dev: list[str],
    instruction: str,
    seed: int,
    force: bool,
) -> dict[str, Any]:
    import shutil

    from medley.backbone import base_fingerprint
    from medley.encoder import build_retriever, save_retriever
    from medley.expert import save_expert
    from medley.files import writing
    from medley.fingerprint import fingerprint_file
    from medley.leaks.chosen import as_extra, read_chosen
    from medley.markdown import literal
    from medley.model_name import resolve_base
    from medley.pairs import read_pairs
    from medley.pipeline.training import pools_of, score_on, stopped_on
    from medley.train.processes import is_first, join
    from medley.train.sharded import loading_device
    from medley.train.trainer import COSTS_NOTHING
    from medley.train.trials import train_best

    asked = {
        "pairs": fingerprint_file(pairs) if pairs.is_file() else "", "base": base, "dev": dev,
        "instruction": instruction, **_plain(settings, COSTS_NOTHING), "seed": seed,
    }  # fmt: skip
    with _claimed(out, force, asked, inputs=(base, pairs)) as checkpoints:
        rows = read_pairs(pairs)
        join()
        stopping = settings.early_stopping
        pools = pools_of(dev, stopping, seed=seed) if stopping else []
        how = _retriever_settings(base, settings)
        retriever = build_retriever(
            base, how, instruction=instruction or rows[0].instruction, device=loading_device(settings)
        )
        identity = base_fingerprint(retriever)
        dev_kept = as_extra([*read_chosen(Path(resolve_base(base))), *stopped_on(pools)])

        def save(folder: Path, training: Training) -> None:
            if settings.lora is not None:
                save_expert(
                    retriever, folder, base=base, base_identity=identity, settings=how, extra=dev_kept
                )
                return
            origin = {"base": base, "base_identity": identity, "retriever": how.model_dump(mode="json")}
            card = f"# Retriever trained from {literal(base)}\n\n{training.pairs} pairs, {training.steps} steps.\n"
            save_retriever(retriever, folder, card=card, extra=origin | dev_kept)

        best = train_best(
            retriever, rows, settings, save, folder=checkpoints, seed=seed, label="train",
            score=score_on(pools) if pools else None, dev=[pool.identity for pool in pools],
        )  # fmt: skip
        if is_first():
            with writing(out) as temporary:
                shutil.copytree(best.result, temporary)
    report = best.report
    result = {"pairs": report["pairs"], "steps": report["steps"], "loss": report["losses"][-1]["loss"]}
    if len(report.get("tried", ())) > 1:
        result["learning_rate"] = best.learning_rate
    return result | ({"dev": report["dev"]["chosen"]} if report["dev"] else {})


def _retriever_settings(base: str, settings: TrainSettings) -> RetrieverSettings:
    """As the base was made, where Medley made it. All weights need float32 to take small steps; an adapter has its
    own."""
    from medley.encoder import RetrieverSettings
    from medley.model_name import location_of
    from medley.traits import describing, published_traits, settings_of

    location = location_of(base)
    own = settings_of(published_traits(location)) if describing(location) else None
    dtype = "bfloat16" if settings.lora else "float32"
    return (own or RetrieverSettings()).model_copy(update={"dtype": dtype})


def _planned(base: str, pairs: Path, settings: TrainSettings, instruction: str, seed: int) -> dict[str, Any]:
    from medley.encoder import build_retriever
    from medley.pairs import read_pairs
    from medley.train.preflight import preflight

    rows = read_pairs(pairs)
    how = _retriever_settings(base, settings)
    retriever = build_retriever(base, how, instruction=instruction or rows[0].instruction)
    return preflight(retriever, rows, settings, seed=seed).as_json()


@contextmanager
def _claimed(
    out: Path, force: bool, asked: Mapping[str, Any], *, inputs: Iterable[Path | str]
) -> Iterator[Path]:
    """Claim the place of the result; give the folder of what a training that was killed goes on from.

    Of several processes the first claims for all.
    """
    from medley.claim import claimed, unfinished
    from medley.train.processes import is_first

    if not is_first():
        yield out.with_name(f"{out.name}.checkpoints")
        return
    with (
        claimed(out, force=force, folder=True, inputs=inputs),
        unfinished(out, "checkpoints", asked, force=force) as checkpoints,
    ):
        yield checkpoints


def _plain(settings: LanguageSettings | TrainSettings, costs_nothing: set[str]) -> dict[str, Any]:
    """What decides a training's result, as JSON has it."""
    plain: dict[str, Any] = settings.model_dump(mode="json", exclude=costs_nothing)
    return plain
