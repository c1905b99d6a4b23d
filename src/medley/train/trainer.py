"""sentence-transformers' trainer with batches of our own and checkpoints that resume to the bit.

A checkpoint holds what training changes (the adapter, or all weights) in the dtype it has, optimiser, schedule, random
states and step; the batches of a step follow from the seed. It is finished when `finished.json` stands in it, which
is written last and says what was being trained: one that a killed process left half-written, or one of other
data or settings, is never resumed from.
"""

from __future__ import annotations

import contextlib
import math
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medley.durable import flush
from medley.errors import DivergedError, InputError, ModelError
from medley.files import explained_write_errors, read_json, write_json
from medley.fingerprint import fingerprint
from medley.pairs import TrainingPair
from medley.train.gradient_cache import GradientCache
from medley.train.processes import is_first, shared
from medley.train.settings import TrainSettings

if TYPE_CHECKING:
    import torch
    from transformers import TrainerCallback

FINISHED = "finished.json"
WEIGHTS = "trained.safetensors"
COSTS_NOTHING = {"mini_batch_size", "activation_memory_gb", "checkpoint_minutes", "report_to", "shard_base"}
"""Settings that may change between a kill and the resume: they change memory and time, not the training."""
LOGGED = {"loss": "loss", "grad_norm": "gradient's norm", "eval_loss": "loss on held-out text"}
"""What the trainer logs that has to be finite, in words."""


def training_identity(base: str, pairs: Sequence[TrainingPair], settings: TrainSettings, *, seed: int) -> str:
    """Fingerprint of everything that decides a training's result; `base` is the retriever's identity."""
    from medley.fingerprint import fingerprint_texts

    texts = fingerprint_texts(
        text
        for pair in pairs
        for text in (pair.query, pair.positive, pair.instruction, pair.source, *pair.negatives, "")
    )
    return fingerprint([base, texts, settings.model_dump(mode="json", exclude=COSTS_NOTHING), seed])


def last_checkpoint(folder: Path, identity: str) -> Path | None:
    """The latest finished checkpoint of this very training; None where there is none."""
    found = [
        path.parent
        for path in folder.glob(f"checkpoint-*/{FINISHED}")
        if read_json(path, ModelError)["identity"] == identity
    ]
    return max(found, key=lambda path: int(path.name.rpartition("-")[2]), default=None)


def build_trainer(
    *, model: Any, args: Any, batches: torch.utils.data.DataLoader[Any], cache: GradientCache, identity: str
) -> Any:
    """The trainer; `batches` yields what the collator makes, `cache` is the loss.

    Every process goes through all batches; the collator has dealt out their texts.
    """
    import datasets
    import torch
    from sentence_transformers import SentenceTransformerTrainer
    from transformers import PrinterCallback

    class Loss(torch.nn.Module):
        """What the trainer calls, and where it puts the wrapped model."""

        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, features: list[dict[str, torch.Tensor]], _: object = None) -> torch.Tensor:
            return cache(self.model, features[0])

    trained = model  # the methods below have parameters of that name

    class Trainer(SentenceTransformerTrainer):  # type: ignore[misc, unused-ignore]
        def get_train_dataloader(self) -> Any:
            return batches

        def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
            from safetensors.torch import save_file

            folder = Path(output_dir or str(self.args.output_dir))
            folder.mkdir(parents=True, exist_ok=True)
            save_file({n: p.detach().cpu().contiguous() for n, p in _trained(model)}, folder / WEIGHTS)

        def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
            from safetensors.torch import load_file

            shrunk = read_json(Path(resume_from_checkpoint) / FINISHED, ModelError)["max_tokens"]
            cache.max_tokens = min(cache.max_tokens, shrunk)
            weights = load_file(Path(resume_from_checkpoint) / WEIGHTS)
            with torch.no_grad():
                for name, parameter in _trained(trained):
                    parameter.copy_(weights[name])

        def _save_checkpoint(self, model: Any, trial: Any) -> None:
            with explained_write_errors(Path(str(self.args.output_dir))):
                super()._save_checkpoint(model, trial)
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                folder = Path(str(self.args.output_dir)) / f"checkpoint-{self.state.global_step}"
                flush(folder)
                # where memory ran out before, it need not run out again
                write_json(folder / FINISHED, {"identity": identity, "max_tokens": cache.max_tokens})

    # the cache adds up gradients once a step: accelerate need not wrap the model, and cannot where it is sharded
    model._is_accelerate_prepared = True
    collate: Any = batches.collate_fn
    trainer = Trainer(
        model=model,
        args=args,
        train_dataset=datasets.Dataset.from_dict({"row": [0]}),  # the batches know the rows
        data_collator=collate,
        loss=Loss(),
    )
    trainer.remove_callback(PrinterCallback)  # prints to standard output, which is for results
    return trainer


def _trained(model: Any) -> list[tuple[str, Any]]:
    return [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]


@contextlib.contextmanager
def checkpoint_folder(given: Path | None) -> Iterator[Path]:
    """Where a training's checkpoints go; a folder that is gone afterwards where none are to be kept."""
    if given is not None:
        yield given
        return
    with tempfile.TemporaryDirectory() as scratch:
        yield Path(scratch)


def saving_every(minutes: float) -> TrainerCallback:
    """A callback that asks for a checkpoint when so much time has gone by since the last, and flushes it to disk."""
    from transformers import TrainerCallback

    class Saving(TrainerCallback):
        def __init__(self) -> None:
            self._last = time.monotonic()

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            # clocks differ from process to process, and a checkpoint needs all of them
            if shared(lambda: time.monotonic() - self._last >= 60 * minutes):
                self._last = time.monotonic()
                control.should_save = True

        def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if is_first():
                flush(Path(args.output_dir) / f"checkpoint-{state.global_step}")

    return Saving()


def advancing(advance: Callable[[int], None]) -> TrainerCallback:
    """A callback that tells how many steps are done, those before a resume at once."""
    from transformers import TrainerCallback

    class Advancing(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            advance(state.global_step)

        def on_step_end(self, *_: object, **__: object) -> None:
            advance(1)

    return Advancing()


def stopping_where_not_finite(label: str, *, dtype: str) -> TrainerCallback:
    """A callback that ends the training at the first loss or gradient that is not a finite number.

    It reads what the trainer logs after each step and before a checkpoint of it is written: numbers that are the same
    in all processes, so all end together. `dtype` is that of the base's weights. Raises DivergedError.
    """
    from transformers import TrainerCallback

    class Finite(TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            for key, what in LOGGED.items():
                value = logs.get(key)
                if value is not None and not math.isfinite(value):
                    unchanged = state.global_step == (0 if key == "eval_loss" else 1)
                    raise diverged(
                        label, f"the {what} is {value}", step=0 if unchanged else state.global_step, dtype=dtype,
                        rate=logs.get("learning_rate"),
                    )  # fmt: skip

    return Finite()


def diverged(label: str, what: str, *, step: int, dtype: str, rate: float | None = None) -> DivergedError:
    """The error of a training that diverged: what is not finite, where, and what to try; step 0: before any update."""
    if step == 0:
        remedy = "check the texts and the base's weights" + (
            "" if dtype == "float32" else ", or load it in float32"
        )
        return DivergedError(f"{label}: {what} before any weight has changed; {remedy}. Nothing was saved.")
    where = f"at step {step}" + ("" if rate is None else f", where the learning rate was {rate:.3g}")
    remedy = "lower the learning rate or make the warmup longer"
    if dtype != "float32":
        remedy += f", or load the base in float32 instead of {dtype}"
    return DivergedError(f"{label}: {what} {where}; {remedy}. Nothing was saved.")


def trackers(names: Sequence[str]) -> list[str]:
    """What the trainer reports to, checked before anything is trained.

    Raises InputError for a tracker that transformers doesn't know or that is not installed, and for TensorBoard without
    a place of its own: its default is a folder that is removed at the end.
    """
    if not names:
        return ["none"]
    from transformers.integrations.integration_utils import get_reporting_integration_callbacks

    try:
        for callback in get_reporting_integration_callbacks(list(names)):
            callback()
    except (ValueError, RuntimeError, ImportError) as problem:
        raise InputError(
            f"report_to: {', '.join(names)} cannot be reported to ({problem}); install it or leave it out."
        ) from problem
    if "tensorboard" in names and "TENSORBOARD_LOGGING_DIR" not in os.environ:
        raise InputError(
            "report_to: say where TensorBoard's files go, in the variable TENSORBOARD_LOGGING_DIR."
        )
    return list(names)
