"""What the recipe can say about instructions (`prompts:`), and how much each of gepa's budgets is."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

Method = Literal["none", "library", "generic", "gepa", "edit"]


class PromptSettings(BaseModel):
    """How instructions are chosen (the recipe's `prompts:`)."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    method: Method = Field(
        "library",
        description="none keeps the sources' instruction; library tries a list; edit changes its phrases one by one; "
        "gepa lets the llm learn from failed queries; generic trains under many, drawn at random",
    )
    when: Literal["before", "after", "both"] = Field(
        "before",
        description="before training, so that experts train under the choice; after, for the merged model; or both",
    )
    budget: Literal["light", "medium", "heavy"] = Field(
        "light", description="of gepa: 100, 200 or 300 queries to learn from, and as many to select by"
    )
    count: int = Field(
        20, ge=2, description="instructions that `generic` draws from (the paper: 10, 20, 50, 100)"
    )
    library: Path | None = Field(None, description="a list of your own instead of the bundled one (YAML)")
    queries: int | None = Field(
        None,
        ge=2,
        description="queries taken of each dev collection, half to choose and half to confirm; default "
        "merge.search.queries",
    )
    alpha: float = Field(
        0.05,
        gt=0,
        lt=1,
        description="the seed instruction stays unless the paired test's p-value is below this",
    )


@dataclass(frozen=True)
class Budget:
    """One of GEPA's budgets: queries for learning and as many for selection, queries in one reflection (STM, 1.2).

    `reflections` is ours, the paper gives none: questions to the language model.
    """

    queries: int
    minibatch: int
    reflections: int


BUDGETS = {"light": Budget(100, 3, 16), "medium": Budget(200, 5, 32), "heavy": Budget(300, 8, 48)}
