"""Contrastive training of one retriever, in place: training pairs in, a trained model and its loss curve out.

loss_i = -log( exp(q_i . p_i / t) / sum over every positive p_j and negative n_j of the batch of exp(q_i . x / t) )

Which pairs meet is said in batches.py, who counts as a negative in collate.py, the loss in loss.py, how it fits into
memory in gradient_cache.py, how training resumes in trainer.py. `examples/train_loop.py` is the same in fifty lines
without abstractions; a test compares the two.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medley.backbone import backbone
from medley.encoder import Retriever, encode_passages, whole
from medley.errors import InputError, PairsError, VectorError
from medley.finite import is_finite
from medley.noticed import count_as, noticing
from medley.pairs import TrainingPair
from medley.progress import progress, say
from medley.train.adapter import add_adapter
from medley.train.batches import Batches, Keys, keys_of, text_key
from medley.train.collate import Collator
from medley.train.gradient_cache import GradientCache
from medley.train.loss import InfoNCE
from medley.train.processes import is_first, join
from medley.train.settings import TrainSettings
from medley.train.sharded import is_sharded, shard_base
from medley.train.stopping import DevCurve, DevWatch, Score, steps_between, watching
from medley.train.trainer import (
    advancing,
    build_trainer,
    checkpoint_folder,
    diverged,
    last_checkpoint,
    saving_every,
    stopping_where_not_finite,
    trackers,
    training_identity,
)

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Training:
    """What a training run reports: pairs seen an epoch, steps made, the loss after each step, wall-clock time.

    `dev` is the curve on dev, where training watched one. `tokens` counts those computed on since the start or the last
    resume, each once a step and without padding; `padding` is the share of padding beside them; `cut` says by kind how
    many of the texts since then were longer than the model reads.
    """

    pairs: int
    steps: int
    seconds: float
    losses: list[dict[str, float]]
    dev: DevCurve | None = None
    tokens: int = 0
    padding: float = 0.0
    cut: dict[str, dict[str, float]] = field(default_factory=dict)


def train(
    retriever: Retriever,
    pairs: Sequence[TrainingPair],
    settings: TrainSettings,
    *,
    seed: int,
    label: str = "train",
    score: Score | None = None,
    checkpoints: Path | None = None,
) -> Training:
    """Train a retriever's model in place; with `settings.lora` only a new adapter named `default` changes.

    Each pair is encoded under its own instruction (the retriever's where it has none). A batch holds each text once.
    With `checkpoints`, a folder, a training that was killed goes on from its last checkpoint there and ends with
    the weights that it would have had; the caller removes the folder when what was trained is saved.
    With `settings.early_stopping`, `score` is the retriever's nDCG@10 by dev collection, and the model ends with the
    weights that dev liked best (see stopping.py).
    Raises InputError where early stopping has nothing to score on, PairsError with fewer than two pairs (a contrast
    needs a second passage), DivergedError at the first loss or gradient that is not a finite number, and where the
    trained weights or a vector are not.
    """
    import torch
    from sentence_transformers import SentenceTransformerTrainingArguments

    if len(pairs) < 2:
        raise PairsError(
            f"{label}: {len(pairs)} training pair is not enough for a contrast; give at least two."
        )
    if settings.early_stopping is not None and score is None:
        raise InputError(
            f"{label}: early stopping needs a dev collection to score; name one, or leave it out."
        )
    join()
    torch.manual_seed(seed)
    model = retriever.model
    # the card is Medley's; a filled widget keeps the trainer from looking for examples in private training text
    model.model_card_data.widget = [{"source_sentence": ""}]
    identity = training_identity(retriever.identity(), pairs, settings, seed=seed) if checkpoints else ""
    if is_sharded(settings):
        shard_base(retriever)
    if settings.lora is not None:
        add_adapter(model, settings.lora)
    steps, steps_per_epoch = settings.steps_of(len(pairs))
    batches = loader(retriever, pairs, settings, steps=steps, seed=seed)
    cache = gradient_cache(retriever, settings)
    started = time.monotonic()

    with (
        checkpoint_folder(checkpoints) as folder,
        progress(label, steps) as advance,
        computing(retriever, settings),
    ):
        trainer = build_trainer(
            model=model,
            args=SentenceTransformerTrainingArguments(
                output_dir=str(folder),
                per_device_train_batch_size=min(settings.batch_size, len(pairs)),
                max_steps=steps,
                learning_rate=settings.learning_rate,
                warmup_steps=round(settings.warmup * steps),
                weight_decay=settings.weight_decay,
                lr_scheduler_type="linear",
                seed=seed,
                data_seed=seed,
                logging_steps=1,
                logging_nan_inf_filter=False,  # it would log 0.0 for a loss that is not a number
                save_strategy="steps" if checkpoints else "no",
                save_steps=steps,
                save_total_limit=2,
                report_to=trackers(settings.report_to),
                run_name=label,
                disable_tqdm=True,
                dataloader_drop_last=True,  # of a loader that is not used; without it DDP is warned of
                bf16=False,  # weights keep the dtype that they were loaded in; the cache knows what to compute in
            ),
            batches=batches,
            cache=cache,
            identity=identity,
        )
        trainer.add_callback(advancing(advance))
        dtype = str(backbone(retriever).dtype).removeprefix("torch.")
        trainer.add_callback(stopping_where_not_finite(label, dtype=dtype))
        watch = None
        if settings.early_stopping is not None and score is not None:
            watch = DevWatch(retriever, score, settings.early_stopping, folder=folder / "dev", label=label)
            trainer.add_callback(watching(watch, steps_between(settings.early_stopping, steps_per_epoch)))
        resumed = None
        if checkpoints:
            trainer.add_callback(saving_every(settings.checkpoint_minutes))
            resumed = last_checkpoint(checkpoints, identity)
            if resumed:
                say(f"{label}: continues from step {resumed.name.rpartition('-')[2]} of {steps}")
        outcome = trainer.train(resume_from_checkpoint=str(resumed) if resumed else None)
        curve = watch.finish() if watch else None
        # what the last step made of the weights has not been through a loss
        if not all(
            is_finite(whole(parameter)) for parameter in model.parameters() if parameter.requires_grad
        ):
            raise diverged(label, "the trained weights are not finite numbers", step=steps, dtype=dtype)
        try:
            with noticing():  # a text that is counted already
                alive = bool(encode_passages(retriever, [pairs[0].positive]).any())
        except VectorError:
            alive = False
        if not alive:  # infinity inside a normalisation makes zeros
            what = "the trained model gives no vectors but zeros or what is no number"
            raise diverged(label, what, step=steps, dtype=dtype)
    model.eval()
    last_step = curve.last_step if curve else outcome.global_step
    losses = [
        {"step": entry["step"], "loss": entry["loss"]}
        for entry in trainer.state.log_history
        if "loss" in entry and entry["step"] <= last_step
    ]
    assert isinstance(batches.collate_fn, Collator)
    counts = batches.collate_fn.counts()
    for kind, count in counts.items():
        count_as(kind, count, max_tokens=model.max_seq_length)
    return Training(
        len(pairs),
        last_step,
        round(time.monotonic() - started, 3),
        losses,
        curve,
        cache.counts.useful,
        round(cache.counts.padding, 4),
        {kind: count.as_json() for kind, count in counts.items()},
    )


def loader(
    retriever: Retriever, pairs: Sequence[TrainingPair], settings: TrainSettings, *, steps: int, seed: int
) -> torch.utils.data.DataLoader[Any]:
    """The batches of a training as tensors, in every process its share of the texts.

    Raises PairsError where there is nothing to tell apart: one positive and no negatives.
    """
    import torch
    import torch.distributed as dist

    keys = keys_of(pairs)
    one_positive = len(set(keys.positive_N.tolist())) == 1
    if one_positive and not (settings.negatives and any(pair.negatives for pair in pairs)):
        raise PairsError(
            "every pair has the same positive; a contrast needs at least two different passages."
        )
    if is_first():
        _tell_what_does_not_bite(pairs, settings, keys)
    rows: Any = _Rows(len(pairs))
    several = dist.is_available() and dist.is_initialized()
    return torch.utils.data.DataLoader(
        rows,
        batch_sampler=Batches(
            keys,
            batch_size=min(settings.batch_size, len(pairs)),
            steps=steps,
            seed=seed,
            mode=settings.batches,
            temperature=settings.source_temperature,
        ),
        collate_fn=Collator(
            retriever,
            pairs,
            settings,
            keys,
            rank=dist.get_rank() if several else 0,
            world=dist.get_world_size() if several else 1,
        ),
    )


def _tell_what_does_not_bite(pairs: Sequence[TrainingPair], settings: TrainSettings, keys: Keys) -> None:
    """Say which settings the pairs leave without effect, and which negatives teach nothing."""
    count = len(pairs)
    if settings.batch_size > count:
        say(
            f"batch_size {settings.batch_size} is more than the {count} pairs, so a batch holds {count} at most"
        )
    if (
        settings.max_steps is None
        and settings.epochs * math.ceil(count / min(settings.batch_size, count)) < 1
    ):
        say(f"epochs {settings.epochs:g} of {count} pairs is less than a step; one step is made")
    if settings.negatives:
        with_negatives = [
            (row, pair.negatives[: settings.negatives]) for row, pair in enumerate(pairs) if pair.negatives
        ]
        idle = sum(
            all(not text.strip() or text_key(text) == int(keys.positive_N[row]) for text in negatives)
            for row, negatives in with_negatives
        )
        if idle:
            say(f"{idle:,} of {len(with_negatives):,} pairs with negatives have only such as are empty or equal their "
                "positive, which teach nothing; mine others.")  # fmt: skip


class _Rows:
    """Row numbers as the data set that a loader wants."""

    def __init__(self, count: int) -> None:
        self._count = count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, row: int) -> dict[str, int]:
        return {"row": row}


def gradient_cache(retriever: Retriever, settings: TrainSettings) -> GradientCache:
    """The loss of a training, with the memory that its settings allow."""
    rules = settings.false_negatives
    keep_bytes = allowed_bytes(settings.activation_memory_gb, retriever.model.device)
    sharded = is_sharded(settings)
    computed_twice = settings.gradient_checkpointing or sharded
    return GradientCache(
        InfoNCE(settings.temperature, settings.hard_negatives, rules.margin, settings.matryoshka),
        pad_token_id=retriever.model.tokenizer.pad_token_id,
        max_tokens=settings.mini_batch_size * int(retriever.model.max_seq_length or 512),
        # who computes again keeps nothing; nor does who puts every layer together anew
        keep_bytes=0 if computed_twice else keep_bytes,
        bf16=settings.bf16,
        in_step=sharded,
    )


def allowed_bytes(activation_memory_gb: float | None, device: torch.device) -> int:
    """Bytes of activations that may be kept: what the settings say, or half of a GPU's free memory, a quarter of a
    CPU's."""
    import torch

    if activation_memory_gb is not None:
        return int(activation_memory_gb * 1e9)
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] // 2
    import psutil

    return int(psutil.virtual_memory().available) // 4


@contextlib.contextmanager
def computing(retriever: Retriever, settings: TrainSettings) -> Iterator[None]:
    """Gradient checkpointing while a model trains, where the settings want it."""
    decoder = backbone(retriever)
    if settings.gradient_checkpointing:
        decoder.gradient_checkpointing_enable({"use_reentrant": False})
    try:
        yield
    finally:
        if settings.gradient_checkpointing:
            decoder.gradient_checkpointing_disable()
