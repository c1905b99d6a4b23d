"""What the training stage can be told (the recipe's `train:` and `pretrain:`)."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class LoraSettings(BaseModel):
    """Shape of an expert's adapter. Defaults are STM's: rank 16, alpha 32, all linear layers."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    rank: int = Field(16, ge=1, description="rank of the low-rank update")
    alpha: int = Field(32, ge=1, description="the update is scaled by alpha / rank")
    dropout: float = Field(0.0, ge=0.0, lt=1.0, description="dropout before the update")
    targets: str | list[str] = Field("all-linear", description="PEFT target modules")


class TrainSettings(BaseModel):
    """How an expert is fine-tuned. Defaults are STM's for a 0.6B base."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    lora: LoraSettings | None = Field(LoraSettings(), description="null trains all weights")
    learning_rate: float = Field(5e-5, gt=0, description="peak of the linear schedule")
    batch_size: int = Field(256, ge=2, description="pairs a step; each is a negative for the others")
    mini_batch_size: int = Field(
        32, ge=1, description="texts in memory at a time; changes memory, not the loss"
    )
    epochs: float = Field(1.0, gt=0, description="passes over the pairs")
    max_steps: int | None = Field(None, ge=1, description="stop after so many steps, whatever the epochs")
    warmup: float = Field(0.1, ge=0, lt=1, description="share of the steps in which the rate rises")
    temperature: float = Field(0.02, gt=0, description="of the softmax over cosine similarities")
    weight_decay: float = Field(0.0, ge=0, description="of AdamW")
    negatives: int = Field(1, ge=0, description="explicit negatives a pair brings into its batch")


class PretrainSettings(BaseModel):
    """Contrastive pre-training on unlabelled text (BMRetriever's first stage); all weights are trained."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    collections: list[str] = Field(min_length=1, description="whose corpora are read; queries are not")
    titles: bool = Field(True, description="title -> text pairs, where a passage has a title")
    spans: bool = Field(True, description="pairs of two adjacent spans of one passage")
    max_pairs: int = Field(100_000, ge=2, description="at most so many pairs, drawn at random")
    train: TrainSettings = Field(
        TrainSettings(lora=None, learning_rate=1e-4, negatives=0), description="as in the recipe's `train`"
    )
