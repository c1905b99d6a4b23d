"""Contrastive training of one retriever, in place: training pairs in, a trained model and its loss curve out.

loss_i = -log( exp(q_i . p_i / t) / sum over every positive p_j and negative n_j of the batch of exp(q_i . x / t) )

InfoNCE over cosine similarities at temperature t, with in-batch negatives (STM section 2; sentence-transformers'
MultipleNegativesRankingLoss, its gradient-cached form once a batch exceeds the mini-batch).
`examples/train_loop.py` is the same in fifty lines without abstractions; a test compares the two.
"""

from __future__ import annotations

import math
import random
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medley.encoder import Retriever
from medley.errors import InputError, PairsError
from medley.pairs import TrainingPair
from medley.progress import progress
from medley.train.settings import LoraSettings, TrainSettings
from medley.train.stopping import DevCurve, DevWatch, Score, steps_between, watching

if TYPE_CHECKING:
    import datasets
    from sentence_transformers import SentenceTransformer


@dataclass(frozen=True)
class Training:
    """What a training run reports: pairs seen an epoch, steps made, the loss after each step, wall-clock time.

    `dev` is the curve on dev, where training watched one.
    """

    pairs: int
    steps: int
    seconds: float
    losses: list[dict[str, float]]
    dev: DevCurve | None = None


def train(
    retriever: Retriever,
    pairs: Sequence[TrainingPair],
    settings: TrainSettings,
    *,
    seed: int,
    label: str = "train",
    score: Score | None = None,
) -> Training:
    """Train a retriever's model in place; with `settings.lora` only a new adapter named `default` changes.

    Each pair is encoded under its own instruction (the retriever's where it has none). No batch holds a text
    twice, so that no positive of one query stands as a negative of another with the same text.
    With `settings.early_stopping`, `score` is the retriever's nDCG@10 by dev collection, and the model ends with the
    weights that dev liked best (see stopping.py).
    Raises InputError where early stopping has nothing to score on, PairsError with fewer than two pairs: a
    contrast needs a second passage.
    """
    import torch
    from sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments
    from transformers import TrainerCallback

    if len(pairs) < 2:
        raise PairsError(
            f"{label}: {len(pairs)} training pair is not enough for a contrast; give at least two."
        )
    if settings.early_stopping is not None and score is None:
        raise InputError(
            f"{label}: early stopping needs a dev collection to score; name one, or leave it out."
        )
    torch.manual_seed(seed)
    model = retriever.model
    # the card is Medley's; a filled widget keeps the trainer from looking for examples in private training text
    model.model_card_data.widget = [{"source_sentence": ""}]
    if settings.lora is not None:
        add_adapter(model, settings.lora)
    batch_size = min(settings.batch_size, len(pairs))
    steps_per_epoch = math.ceil(len(pairs) / batch_size)
    steps = settings.max_steps or math.ceil(steps_per_epoch * settings.epochs)

    with tempfile.TemporaryDirectory() as scratch, progress(label, steps) as advance:

        class Progress(TrainerCallback):
            def on_step_end(self, *_: object, **__: object) -> None:
                advance(1)

        trainer = SentenceTransformerTrainer(
            model=model,
            args=SentenceTransformerTrainingArguments(
                output_dir=scratch,
                per_device_train_batch_size=batch_size,
                num_train_epochs=settings.epochs,
                max_steps=settings.max_steps or -1,
                learning_rate=settings.learning_rate,
                warmup_steps=round(settings.warmup * steps),
                weight_decay=settings.weight_decay,
                lr_scheduler_type="linear",
                batch_sampler="no_duplicates",
                seed=seed,
                data_seed=seed,
                logging_steps=1,
                save_strategy="no",
                report_to="none",
                disable_tqdm=True,
                dataloader_pin_memory=torch.cuda.is_available(),
                bf16=False,  # weights keep the dtype that they were loaded in; adapters train in float32
            ),
            train_dataset=training_dataset(retriever, pairs, negatives=settings.negatives, seed=seed),
            loss=contrastive_loss(model, settings, batch_size),
            callbacks=[Progress()],
        )
        trainer.remove_callback(_printer())
        watch = None
        if settings.early_stopping is not None and score is not None:
            watch = DevWatch(
                retriever, score, settings.early_stopping, folder=Path(scratch) / "dev", label=label
            )
            trainer.add_callback(watching(watch, steps_between(settings.early_stopping, steps_per_epoch)))
        outcome = trainer.train()
        curve = watch.finish() if watch else None
    model.eval()
    last_step = curve.last_step if curve else outcome.global_step
    losses = [
        {"step": entry["step"], "loss": entry["loss"]}
        for entry in trainer.state.log_history
        if "loss" in entry and entry["step"] <= last_step
    ]
    return Training(len(pairs), last_step, round(outcome.metrics["train_runtime"], 3), losses, curve)


def _printer() -> type:
    """The callback with which transformers prints each log entry to standard output, which is for results."""
    from transformers import PrinterCallback

    return PrinterCallback


def add_adapter(model: SentenceTransformer, lora: LoraSettings) -> None:
    """Put a fresh LoRA adapter on the decoder inside the model; the base's own weights stay as they are.

    The adapter starts as the identity (B is zero) and trains in float32 whatever the base's dtype.
    """
    from peft import LoraConfig

    config = LoraConfig(
        r=lora.rank, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=lora.targets, bias="none"
    )  # fmt: skip
    model.add_adapter(config)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.data.float()


def training_dataset(
    retriever: Retriever, pairs: Sequence[TrainingPair], *, negatives: int, seed: int
) -> datasets.Dataset:
    """The texts as the model will read them, prompts included, one column each for query, positive, negatives.

    Every row brings the same number of negatives: a pair with more gives the first ones, one with fewer repeats
    its own, one with none takes another pair's positive.
    """
    import datasets

    draw = random.Random(seed)
    document_prompt = retriever.document_prompt
    positives = [pair.positive for pair in pairs]
    columns: dict[str, list[str]] = {
        "query": [retriever.query_prompt(pair.instruction or None) + pair.query for pair in pairs],
        "positive": [document_prompt + text for text in positives],
    }
    for index in range(negatives):
        columns[f"negative_{index + 1}"] = [
            document_prompt
            + (
                pair.negatives[index % len(pair.negatives)]
                if pair.negatives
                else _other_positive(positives, pair, draw)
            )
            for pair in pairs
        ]
    return datasets.Dataset.from_dict(columns)


def _other_positive(positives: Sequence[str], pair: TrainingPair, draw: random.Random) -> str:
    start = draw.randrange(len(positives))
    for offset in range(len(positives)):
        text = positives[(start + offset) % len(positives)]
        if text != pair.positive:
            return text
    raise PairsError("every pair has the same positive; a contrast needs at least two different passages.")


def contrastive_loss(model: SentenceTransformer, settings: TrainSettings, batch_size: int) -> Any:
    """The loss; gradient-cached where the batch is larger than what fits in memory at a time (same value)."""
    from sentence_transformers.sentence_transformer import losses

    scale = 1 / settings.temperature
    if batch_size <= settings.mini_batch_size:
        return losses.MultipleNegativesRankingLoss(model, scale=scale)
    return losses.CachedMultipleNegativesRankingLoss(
        model, scale=scale, mini_batch_size=settings.mini_batch_size
    )
