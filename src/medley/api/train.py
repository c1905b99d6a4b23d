"""`medley.train` and `medley.train_on_text`: one expert from a pairs file, or a domain base from raw text.

Under a launcher (torchrun, accelerate launch) the same call is made once on every device; the first writes the result.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medley.api.frames import frame
from medley.backbone import base_fingerprint
from medley.claim import claimed, unfinished
from medley.documents import shards_of
from medley.encoder import RetrieverSettings, build_retriever, save_retriever
from medley.expert import save_expert
from medley.files import writing
from medley.leaks.chosen import as_extra, read_chosen
from medley.markdown import literal
from medley.model_name import location_of, resolve_base
from medley.noticed import telling
from medley.pairs import fingerprint_pairs, read_pairs
from medley.pipeline.training import pools_of, score_on, stopped_on
from medley.train import language, trainer
from medley.train.contrastive import Training
from medley.train.preflight import preflight
from medley.train.processes import is_first, join
from medley.train.settings import LanguageSettings, TrainSettings
from medley.train.sharded import loading_device
from medley.train.trials import train_best
from medley.traits import describing, published_traits, settings_of

if TYPE_CHECKING:
    import pandas


@dataclass(frozen=True)
class TrainedExpert:
    """Where the expert is, and what its training reports; `learning_rate` is the one that dev chose of several."""

    path: Path
    pairs: int
    steps: int
    losses: Sequence[Mapping[str, float]]
    learning_rate: float
    tried: Sequence[Mapping[str, Any]] = ()
    dev: Mapping[str, Any] | None = None

    def as_json(self) -> dict[str, Any]:
        """What the command prints."""
        said: dict[str, Any] = {"pairs": self.pairs, "steps": self.steps, "loss": self.losses[-1]["loss"]}
        if len(self.tried) > 1:
            said["learning_rate"] = self.learning_rate
        return said | ({"dev": self.dev["chosen"]} if self.dev else {})

    def to_frame(self) -> pandas.DataFrame:
        """A row for each step: `step`, `loss`, and what else was logged."""
        return frame(self.losses)


@dataclass(frozen=True)
class TrainedOnText:
    """Where the domain base is, and what its training reports: losses in nats a token."""

    path: Path
    tokens: int
    steps: int
    losses: Sequence[Mapping[str, float]]
    held_out_loss_before: float | None
    held_out_loss_after: float | None

    def as_json(self) -> dict[str, Any]:
        """What the command prints."""
        return {
            "tokens": self.tokens, "steps": self.steps, "loss": self.losses[-1]["loss"],
            "held_out_loss_before": self.held_out_loss_before, "held_out_loss_after": self.held_out_loss_after,
        }  # fmt: skip

    def to_frame(self) -> pandas.DataFrame:
        """A row for each step: `step`, `loss`, and what else was logged."""
        return frame(self.losses)


@telling()
def train(
    base: str,
    pairs: Path | str,
    out: Path | str,
    *,
    settings: TrainSettings | None = None,
    dev: str | Sequence[str] = (),
    instruction: str = "",
    seed: int = 13,
    force: bool = False,
) -> TrainedExpert:
    """Train one expert of `base` on a pairs file: an adapter, or all weights where `settings.lora` is None.

    With `dev` collections (`SPEC:SPLIT`) training stops where they gain no more. `instruction` is the task sentence of
    rows that have none. A call that was killed goes on from its last checkpoint; an existing `out` is replaced with
    `force` only, and only where Medley made it. Raises PairsError with file:line, ModelError for the base, LeakError
    where dev is a test set, DivergedError, and OutputError before anything is written.
    """
    settings, out = settings or TrainSettings(), Path(out)
    dev = [dev] if isinstance(dev, str) else dev
    if dev and settings.early_stopping is None:
        settings = TrainSettings.model_validate({**settings.model_dump(), "early_stopping": {}})
    rows = read_pairs(Path(pairs))
    asked = {
        "pairs": fingerprint_pairs(rows), "base": base, "dev": list(dev), "instruction": instruction,
        **_plain(settings, trainer.COSTS_NOTHING), "seed": seed,
    }  # fmt: skip
    with _claimed(out, force, asked, inputs=(base, pairs, *dev)) as checkpoints:
        join()
        stopping = settings.early_stopping
        pools = pools_of(list(dev), stopping, seed=seed) if stopping else []
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
    return TrainedExpert(
        out, report["pairs"], report["steps"], report["losses"], best.learning_rate, report.get("tried", ()),
        report["dev"],
    )  # fmt: skip


def plan_training(
    base: str,
    pairs: Path | str,
    *,
    settings: TrainSettings | None = None,
    instruction: str = "",
    seed: int = 13,
) -> dict[str, Any]:
    """What a training will take (steps, memory, time), from a few measured passes; trains nothing."""
    settings, rows = settings or TrainSettings(), read_pairs(Path(pairs))
    retriever = build_retriever(
        base, _retriever_settings(base, settings), instruction=instruction or rows[0].instruction
    )
    return preflight(retriever, rows, settings, seed=seed).as_json()


@telling()
def train_on_text(
    base: str,
    text: Sequence[Path | str],
    out: Path | str,
    *,
    settings: LanguageSettings | None = None,
    seed: int = 13,
    force: bool = False,
) -> TrainedOnText:
    """Train a base on raw text (files or folders) by the next-token loss: no retriever, but what one is merged with.

    Raises what `train` raises.
    """
    settings, out = settings or LanguageSettings(), Path(out)
    asked = {
        "text": [str(one) for one in text], "base": base, **_plain(settings, language.COSTS_NOTHING), "seed": seed,
    }  # fmt: skip
    with _claimed(out, force, asked, inputs=(base, *text)) as checkpoints:
        shards = [shard for source in text for shard in shards_of(Path(source))]
        report = language.train_language(base, shards, settings, out, seed=seed, checkpoints=checkpoints)
    return TrainedOnText(
        out, report.tokens, report.steps, report.losses, report.loss_before, report.loss_after
    )


def _retriever_settings(base: str, settings: TrainSettings) -> RetrieverSettings:
    """As the base was made, where Medley made it. All weights need float32 to take small steps; an adapter has its
    own."""
    location = location_of(base)
    own = settings_of(published_traits(location)) if describing(location) else None
    dtype = "bfloat16" if settings.lora else "float32"
    return (own or RetrieverSettings()).model_copy(update={"dtype": dtype})


@contextmanager
def _claimed(
    out: Path, force: bool, asked: Mapping[str, Any], *, inputs: Iterable[Path | str]
) -> Iterator[Path]:
    """Claim the place of the result; give the folder of what a training that was killed goes on from.

    Of several processes the first claims for all.
    """
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
