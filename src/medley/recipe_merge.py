"""The merging part of a recipe: methods, their parameters, the search, and the dev collections that decide."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field, model_validator

from medley.merge.settings import SUMS, MergeParameters, SearchSettings
from medley.recipe_data import STRICT, refuse_elsewhere

MergeMethod = Literal[
    "linear", "task_arithmetic", "ties", "dare_linear", "dare_ties", "della", "della_linear", "breadcrumbs",
    "breadcrumbs_ties",
]  # fmt: skip
"""mergekit's methods that take a weight for each expert, so that there is something to search."""


class MergeSettings(BaseModel):
    """How experts are merged and the coefficients found."""

    model_config = STRICT

    methods: list[MergeMethod] = Field(
        default=["linear"],
        min_length=1,
        description="by mergekit's names; each is searched and the best on dev is taken",
    )
    parameters: MergeParameters = Field(
        MergeParameters.model_validate({}),
        description="of the methods that have them, as in a merge file: `{density: 0.5}` for ties",
    )
    segments: int = Field(1, ge=1, description="depth segments with coefficients of their own")
    search: SearchSettings = Field(SearchSettings(), description="how coefficients are looked for")
    dev: list[str] = Field(min_length=1, description="dev collections, SPEC:SPLIT")
    dtype: Literal["float32", "bfloat16", "float16"] = Field(
        "bfloat16", description="of the saved weights; float32 loses nothing of a small update"
    )

    @model_validator(mode="after")
    def _said_once(self) -> MergeSettings:
        refuse_elsewhere(self.search, "search", {"dev": "merge.dev", "seed": "seed"})
        refuse_elsewhere(self.parameters, "parameters", {"seed": "seed"})
        self.search.check_dev(self.dev, "merge.dev")
        if self.search.shrink:
            raise ValueError(
                "search.shrink: only `medley search-merge` shrinks experts; a recipe merges them whole"
            )
        return self

    @model_validator(mode="after")
    def _fits_the_methods(self) -> MergeSettings:
        sums = [method for method in self.methods if method in SUMS]
        if self.search.strategy == "learned" and len(sums) < len(self.methods):
            raise ValueError(
                "search.strategy: learned follows a gradient that only sums have; merge by linear or task_arithmetic"
            )
        if len(sums) == len(self.methods):
            unused = sorted(set(self.parameters.given()) - frozenset().union(*SUMS.values()))
            if unused:
                raise ValueError(
                    f"parameters.{unused[0]}: neither linear nor task_arithmetic has it; take it out"
                )
        return self

    def parameters_of(self, method: str, seed: int) -> MergeParameters:
        """The parameters of one of the methods: a sum has a factor and is normalised, and that is all."""
        own = self.parameters.model_copy(update={"seed": seed})
        if method not in SUMS:
            return own
        taken = {key: value for key, value in own.given().items() if key in SUMS[method]}
        return MergeParameters.model_validate({**taken, "seed": seed})
