"""How hard negatives are mined."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator


class MiningSettings(BaseModel):
    """How hard negatives are mined (the recipe's `negatives: mined:`)."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    retriever: str = Field("bm25", description="`bm25`, or a model folder or hub id")
    depth: int = Field(100, ge=1, description="ranks looked at for each query; its known positives have none")
    per_query: int = Field(1, ge=1, description="negatives kept for each pair, if that many pass")
    skip_top: int = Field(0, ge=0, description="ranks left out at the top, where false negatives crowd")
    margin: float | None = Field(
        0.95,
        gt=0,
        le=1,
        description="keep candidates scoring below margin x the positive's score; null: keep all",
    )
    absolute_margin: float | None = Field(
        None, ge=0, description="keep candidates scoring more than this below the positive; null: keep all"
    )
    min_score: float | None = Field(None, description="keep candidates scoring at least this; null: keep all")
    max_score: float | None = Field(None, description="keep candidates scoring at most this; null: keep all")
    sampling: Literal["top", "random"] = Field("top", description="the best-ranked that pass, or any of them")
    near_duplicate: float = Field(
        0.9,
        gt=0,
        le=1,
        description="overlap (Jaccard of 3-word shingles) with a positive at which a passage counts as that positive",
    )

    @model_validator(mode="after")
    def _window_is_open(self) -> MiningSettings:
        if self.skip_top >= self.depth:
            raise ValueError(
                f"skip_top {self.skip_top} leaves no rank of depth {self.depth}; make depth larger than skip_top"
            )
        return self
