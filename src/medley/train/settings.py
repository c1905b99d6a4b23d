"""What the training stage can be told (the recipe's `train:` and `pretrain:`)."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator


class LoraSettings(BaseModel):
    """Shape of an expert's adapter. Defaults are STM's: rank 16, alpha 32, all linear layers."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    rank: int = Field(16, ge=1, description="rank of the low-rank update")
    alpha: int = Field(32, ge=1, description="the update is scaled by alpha / rank")
    dropout: float = Field(0.0, ge=0.0, lt=1.0, description="dropout before the update")
    targets: str | list[str] = Field("all-linear", description="PEFT target modules")
    options: dict[str, Any] = Field(
        {}, description="further options of PEFT's LoraConfig, such as {use_rslora: true}"
    )


class FalseNegatives(BaseModel):
    """Which passages of a batch do not count as negatives of a query; the query's positive always counts."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    known: bool = Field(
        True,
        description="passages equal, but for case and punctuation, to a positive that the query has in any row",
    )
    near: float | None = Field(
        0.8,
        gt=0,
        le=1,
        description="passages whose word shingles overlap with the positive's so much (Jaccard); own negatives stay",
    )
    margin: float | None = Field(
        None,
        ge=0,
        description="passages that the model now scores above the positive by more than this; own negatives stay",
    )


class EarlyStopping(BaseModel):
    """Scoring on dev while a model trains; the best step is kept, the untouched base (step 0) among them."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    dev: Literal["own", "all"] = Field(
        "own",
        description="`own`: an expert's `dev` where it has one, else merge.dev; `all`: merge.dev",
    )
    every_epochs: float = Field(0.25, gt=0, description="epochs between two scores")
    every_steps: int | None = Field(None, ge=1, description="steps between two scores, instead")
    patience: int = Field(3, ge=1, description="scores in a row without a gain after which training stops")
    scales: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = Field(
        (0.25, 0.5, 0.75),
        description="parts of the best and of the last update that are scored too, at the end; [] for none",
    )
    learning_rates: tuple[Annotated[float, Field(gt=0)], ...] = Field(
        (),
        description="train once with each of these instead of `learning_rate`; dev says which result is kept",
    )
    pool_size: int = Field(500, ge=10, description="passages of each dev collection, at most")
    queries: int = Field(100, ge=1, description="queries of each dev collection, at most")


class TrainSettings(BaseModel):
    """How an expert is fine-tuned. Defaults are STM's for a 0.6B base."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    lora: LoraSettings | None = Field(LoraSettings(), description="null trains all weights")
    learning_rate: float = Field(5e-5, gt=0, description="peak of the linear schedule")
    batch_size: int = Field(256, ge=2, description="pairs a step; each is a negative for the others")
    mini_batch_size: int = Field(
        32,
        ge=1,
        description="texts of full length (retriever.max_length) in memory at a time, or as many tokens of shorter "
        "ones; changes memory and time, not the loss",
    )
    activation_memory_gb: float | None = Field(
        None,
        ge=0,
        description="activations kept rather than computed twice; null: half of what is free on the device, a quarter "
        "on a CPU. Changes memory and time, not the loss",
    )
    gradient_checkpointing: bool = Field(
        False, description="compute activations again layer by layer; for texts that do not fit one by one"
    )
    shard_base: bool = Field(
        False,
        description="divide the base under an adapter among a launcher's devices (FSDP), where one does not hold it",
    )
    bf16: bool = Field(
        False, description="compute in bfloat16 also where weights (an adapter's, or all) are float32"
    )
    epochs: float = Field(1.0, gt=0, description="passes over the pairs")
    max_steps: int | None = Field(None, ge=1, description="stop after this many steps, whatever the epochs")
    warmup: float = Field(0.1, ge=0, lt=1, description="share of the steps in which the rate rises")
    temperature: float = Field(0.02, gt=0, description="of the softmax over cosine similarities")
    weight_decay: float = Field(0.0, ge=0, description="of AdamW")
    negatives: int = Field(1, ge=0, description="explicit negatives a pair brings into its batch, at most")
    hard_negatives: Literal["all", "own"] = Field(
        "all",
        description="whether a query is compared with all explicit negatives of the batch or with its own",
    )
    false_negatives: FalseNegatives = Field(
        FalseNegatives(), description="passages of the batch that do not count as negatives"
    )
    batches: Literal["mixed", "one_source"] = Field(
        "mixed", description="whether sources meet in a batch or each batch holds pairs of one"
    )
    source_temperature: float = Field(
        1.0, gt=0, description="a source of n pairs is drawn with weight n^(1/T): above 1 small ones gain"
    )
    matryoshka: tuple[Annotated[int, Field(gt=0)], ...] = Field(
        (), description="sizes to which vectors can be cut later; each is trained beside the full size"
    )
    checkpoint_minutes: float = Field(
        10.0, ge=0, description="time between two checkpoints from which a killed training resumes"
    )
    early_stopping: EarlyStopping | None = Field(
        None, description="stop where dev gains no more and keep the best step; null trains to the end"
    )
    report_to: tuple[str, ...] = Field(
        (), description="trackers that transformers knows: tensorboard, wandb, mlflow"
    )

    @model_validator(mode="after")
    def _divides_only_what_is_frozen(self) -> TrainSettings:
        if self.shard_base and self.lora is None:
            raise ValueError("shard_base divides only the base under an adapter; set lora, or leave it out")
        return self

    def steps_of(self, pairs: int) -> tuple[int, int]:
        """How many steps a training on so many pairs makes, and how many see every pair once."""
        per_epoch = math.ceil(pairs / min(self.batch_size, pairs))
        return self.max_steps or math.ceil(per_epoch * self.epochs), per_epoch


class PretrainSettings(BaseModel):
    """Contrastive pre-training on unlabelled text (BMRetriever's first stage); all weights are trained."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    collections: list[str] = Field([], description="whose corpora are read; queries are not")
    documents: list[str] = Field(
        [], description="files or folders of raw text: .jsonl, .jsonl.gz, .parquet, .txt, .md"
    )
    titles: bool = Field(True, description="title -> text pairs, where a document has a title")
    sections: bool = Field(True, description="heading -> section pairs, where a document has headings")
    spans: bool = Field(True, description="pairs of two spans of one document that do not overlap")
    span_characters: int = Field(800, ge=40, description="characters of a span, at most")
    max_pairs: int | None = Field(
        100_000, ge=2, description="at most this many pairs, drawn at random; null for all"
    )
    train: TrainSettings = Field(
        TrainSettings(lora=None, learning_rate=1e-4, negatives=0), description="as in the recipe's `train`"
    )

    @model_validator(mode="after")
    def _reads_something(self) -> PretrainSettings:
        if not self.collections and not self.documents:
            raise ValueError("name `collections` or `documents` to read")
        return self


class LanguageSettings(BaseModel):
    """Language-model training on raw text (`medley train --objective language`)."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    lora: LoraSettings | None = Field(LoraSettings(), description="null trains all weights")
    learning_rate: float = Field(1e-4, gt=0, description="peak of the cosine schedule")
    block_tokens: int = Field(512, ge=8, description="tokens of a block; documents follow one another in it")
    batch_size: int = Field(32, ge=1, description="blocks a step, over all devices")
    mini_batch_size: int = Field(4, ge=1, description="blocks in memory at a time on a device")
    epochs: float = Field(1.0, gt=0, description="passes over the text")
    max_steps: int | None = Field(None, ge=1, description="stop after this many steps, whatever the epochs")
    warmup: float = Field(0.03, ge=0, lt=1, description="share of the steps in which the rate rises")
    weight_decay: float = Field(0.0, ge=0, description="of AdamW")
    held_out: float = Field(0.01, ge=0, lt=1, description="share of the blocks on which the loss is measured")
    gradient_checkpointing: bool = Field(False, description="compute activations again layer by layer")
    dtype: Literal["bfloat16", "float32", "float16"] = Field(
        "bfloat16",
        description="of the base under an adapter, and of saved full weights (these train in float32)",
    )
    checkpoint_minutes: float = Field(10.0, ge=0, description="time between two checkpoints")
    report_to: tuple[str, ...] = Field(
        (), description="trackers that transformers knows: tensorboard, wandb, mlflow"
    )
