"""What keeps false negatives out: the recipe's `negatives.guard` and the options of `medley guard`."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from medley.origins import Origin

STRICT = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class JudgeSettings(BaseModel):
    """A language model that grades whether a negative answers the query: 0 no, 1 related, 2 in part, 3 fully."""

    model_config = STRICT

    asked: Literal["all", "suspected", "left"] = Field(
        "all",
        description="about which negatives: all, those that the retriever would drop, or those that it leaves; "
        "where the judge is asked, it decides",
    )
    drop_from: int = Field(2, ge=1, le=3, description="grade from which a passage is no longer a negative")
    promote_from: int | None = Field(
        3, ge=1, le=3, description="grade from which it becomes a positive of a new row; null: never"
    )
    prompt: Path | None = Field(None, description="a prompt file instead of the bundled one")
    temperature: float = Field(0.0, ge=0, le=2, description="of the sampling")
    max_tokens: int = Field(300, ge=1, description="longest reply in tokens")
    max_bad: float = Field(
        0.5, ge=0, le=1, description="share of unreadable replies above which the work stops with an error"
    )

    @model_validator(mode="after")
    def _in_order(self) -> JudgeSettings:
        if self.promote_from is not None and self.promote_from < self.drop_from:
            raise ValueError("promote_from must be at least drop_from")
        return self


class GuardSettings(BaseModel):
    """What keeps false negatives out. A text equal to a positive of its query never stays a negative."""

    model_config = STRICT

    margin: float | None = Field(
        0.95,
        gt=0,
        le=1,
        description="a negative must score below margin x the positive's score; null: no margin",
    )
    retriever: str | None = Field(
        None,
        description="`bm25`, a model folder or hub id that scores every negative again; null: mining's own margin only",
    )
    closeness: float | None = Field(
        0.8,
        gt=0,
        le=1,
        description="with a retriever: limit on the score against query and positive together, as a share of the "
        "positive's own; null: not looked at",
    )
    similarity: float | None = Field(
        None,
        gt=0,
        le=1,
        description="with a retriever: limit on the similarity to a positive; null: not looked at",
    )
    left: float | None = Field(
        1.0,
        gt=0,
        description="with a retriever: limit on what a rewritten negative left of its positive, as a share of what it "
        "changed there, both scored for the query; null: not looked at",
    )
    near_duplicate: float = Field(
        0.9,
        gt=0,
        le=1,
        description="overlap with a positive (3-word shingles: Jaccard, or the share of the positive's own) from "
        "which a negative is one",
    )
    scored: tuple[Origin, ...] = Field(
        ("mined", "generated", "unknown"), description="origins of negatives whose own score may drop them"
    )
    judge: JudgeSettings | None = Field(
        None, description="ask the recipe's llm too; `true` for the defaults, null or `false`: no"
    )

    @field_validator("judge", mode="before")
    @classmethod
    def _yes_or_no(cls, value: Any) -> Any:
        return {} if value is True else None if value is False else value
