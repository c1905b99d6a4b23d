"""What a recipe says about training data: sources, and hard negatives with the conditions they are compared under.

In: parts of a recipe as plain data. Out: frozen values, checked against each other. recipe.py puts them into the whole.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, model_validator

from medley.guard.settings import GuardSettings
from medley.mine import MiningSettings
from medley.synthesize.negatives import GenerationSettings
from medley.synthesize.perturb import PerturbationSettings
from medley.synthesize.queries import QuerySettings

STRICT = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
NegativeKind = Literal["judged", "mined", "generated"]
Condition = Literal["none", "mined", "generated", "mixed", "perturbed"]
CONDITIONS: Mapping[Condition, tuple[NegativeKind, ...]] = {
    "none": (),
    "mined": ("mined",),
    "generated": ("generated",),
    "mixed": ("mined", "generated"),
    "perturbed": ("generated",),
}
"""The kinds of negatives that every expert trains with under a condition; `perturbed` also says what makes them."""


class Stm(NamedTuple):
    """What one of the paper's conditions is: kinds of negatives in order, and whether instructions are optimised."""

    kinds: tuple[NegativeKind, ...]
    prompts: bool


StmCondition = Literal["FT", "SHN", "PO", "SHN+PO"]
STM_CONDITIONS: Mapping[StmCondition, Stm] = {
    "FT": Stm(("judged", "mined"), prompts=False),
    "SHN": Stm(("generated", "judged", "mined"), prompts=False),
    "PO": Stm(("judged", "mined"), prompts=True),
    "SHN+PO": Stm(("generated", "judged", "mined"), prompts=True),
}
"""STM (arXiv 2602.04731), section 2. A generated negative stands before the data's own, so it is the one that is seen
where a pair brings one; a pair for which none could be made keeps the data's."""


def refuse_elsewhere(settings: BaseModel, name: str, homes: Mapping[str, str]) -> None:
    """Refuse a value that the recipe says at another place, so that no key is silently ignored."""
    for key, home in homes.items():
        if getattr(settings, key) != type(settings).model_fields[key].get_default(call_default_factory=True):
            raise ValueError(f"{name}.{key}: a recipe says this once, at `{home}`; set it there")


class Source(BaseModel):
    """Where training pairs come from: a pairs file, a collection's judgements, or queries written for a corpus.

    Beside `pairs` a `corpus` is where their negatives are mined; without it, among their own positives.
    """

    model_config = STRICT

    pairs: str | None = Field(
        None, description="a pairs file: JSON Lines, Parquet, CSV or a saved data set (FOLDER:SPLIT)"
    )
    collection: str | None = Field(None, description="a collection folder, task or hub id")
    corpus: str | None = Field(
        None,
        description="a collection or a corpus.jsonl: beside `pairs`, where negatives are mined; alone, its passages "
        "get queries, written by the recipe's llm",
    )
    queries: QuerySettings | None = Field(
        None, description="with `corpus`: how they are written, and which are kept"
    )
    split: str = Field("train", description="of the collection")
    instruction: str = Field("", description="the task sentence put before its queries")
    limit: int | None = Field(None, ge=2, description="how many pairs to keep, drawn at random")
    licence: str = Field("", description="of the data, for the model card")

    @model_validator(mode="after")
    def _one_of_three(self) -> Source:
        given = {name for name in ("pairs", "collection", "corpus") if getattr(self, name) is not None}
        if len(given) != 1 and given != {"pairs", "corpus"}:
            raise ValueError(
                "give one of `pairs`, `collection` and `corpus`; only `pairs` may have a `corpus` beside it"
            )
        if self.queries is not None and not self.writes_queries:
            raise ValueError(
                "`queries` says how queries are written for a `corpus` without `pairs`; name one, or take it out"
            )
        return self

    @property
    def writes_queries(self) -> bool:
        """Whether the recipe's llm writes the queries, for passages of the corpus."""
        return self.corpus is not None and self.pairs is None

    @property
    def written(self) -> QuerySettings:
        """How queries are written for the corpus."""
        return self.queries or QuerySettings()


class GeneratedSettings(BaseModel):
    """Generated hard negatives: by the recipe's llm where it names one, by perturbing positives otherwise."""

    model_config = STRICT

    per_query: int = Field(1, ge=1, description="negatives made for each pair")
    by: Literal["auto", "llm", "perturbation"] = Field(
        "auto",
        description="what makes them: the recipe's llm, or perturbation, which needs none; auto: the llm, where there "
        "is one",
    )
    llm: GenerationSettings = Field(GenerationSettings(), description="how a language model is asked")
    perturbation: PerturbationSettings = Field(
        PerturbationSettings(), description="how positives are rewritten"
    )

    @model_validator(mode="before")
    @classmethod
    def _asked_alike(cls, value: Any) -> Any:
        """How a language model is asked is the same for all that it writes."""
        own = value.get("llm") if isinstance(value, Mapping) else None
        for key in ("concurrency", "temperature", "max_tokens"):
            if isinstance(own, Mapping) and key in own:
                raise ValueError(f"llm.{key}: a recipe says this once, at `llm.{key}`; set it there")
        return value

    @model_validator(mode="after")
    def _said_once(self) -> GeneratedSettings:
        per_query = {"per_query": "negatives.generated.per_query"}
        refuse_elsewhere(self.llm, "llm", per_query)
        refuse_elsewhere(self.perturbation, "perturbation", per_query)
        return self

    @property
    def files(self) -> list[str]:
        """Files of the user's own whose content decides what is generated."""
        given = (*self.llm.files, self.perturbation.siblings, self.perturbation.antonyms)
        return [str(path) for path in given if path is not None]


class NegativeSettings(BaseModel):
    """Hard negatives: how they are mined and generated; each expert says which kinds it trains with."""

    model_config = STRICT

    mined: MiningSettings | None = Field(MiningSettings(), description="from a corpus, by a retriever")
    generated: GeneratedSettings | None = Field(
        GeneratedSettings(), description="written by the recipe's llm, or by perturbation without one"
    )
    guard: GuardSettings = Field(GuardSettings(), description="against false negatives")
    kinds: tuple[NegativeKind, ...] | None = Field(
        None,
        description="what experts train with unless they say otherwise; null: judged, mined and generated ones",
    )
    condition: Condition | None = Field(
        None,
        description="instead of `kinds`, to compare: all experts train with no negatives, with mined ones, with those "
        "that the llm generates, with both (mixed), or with perturbed positives, whether there is an llm or not; "
        "judged ones are left out",
    )

    @model_validator(mode="after")
    def _said_once(self) -> NegativeSettings:
        if self.mined is not None:
            refuse_elsewhere(self.mined, "mined", {"margin": "negatives.guard.margin"})
        if self.condition is not None and self.kinds is not None:
            raise ValueError("`condition` says which kinds; take out `kinds`, or set it to null")
        return self

    @model_validator(mode="after")
    def _condition_can_be_met(self) -> NegativeSettings:
        """Told here, since experts would train without the negatives and the comparison would say nothing."""
        wanted = CONDITIONS[self.condition] if self.condition else ()
        for kind in wanted:
            if getattr(self, kind) is None:
                raise ValueError(
                    f"condition: {self.condition!r} needs {kind} negatives, and `{kind}` is null; set it"
                )
        if self.condition == "generated" and self.generated and self.generated.by == "perturbation":
            raise ValueError(
                "condition: 'generated' is by the llm, and `generated.by` is perturbation; that is 'perturbed'"
            )
        if self.condition == "perturbed" and self.generated and self.generated.by == "llm":
            raise ValueError("condition: 'perturbed' needs no llm, and `generated.by` is llm; take that out")
        return self

    def kinds_for(self, own: tuple[NegativeKind, ...] | None) -> tuple[NegativeKind, ...]:
        """What an expert trains with that says `own` for itself, or None."""
        if self.condition is not None:
            return CONDITIONS[self.condition]
        kinds = self.kinds if own is None else own
        return ("judged", "mined", "generated") if kinds is None else kinds

    @property
    def perturbed(self) -> bool:
        """Whether generated negatives are made by perturbation even where there is a language model."""
        return self.condition == "perturbed" or (
            self.generated is not None and self.generated.by == "perturbation"
        )


def check_writer(sources: Mapping[str, Source], negatives: NegativeSettings, *, has_llm: bool) -> None:
    """What only a language model can write needs one. Raises ValueError naming the key."""
    if has_llm:
        return
    for name, source in sources.items():
        if source.writes_queries:
            raise ValueError(
                f"sources.{name}.corpus: queries are written by a language model; name one at `llm`"
            )
    by = negatives.generated.by if negatives.generated else "auto"
    if by == "llm":
        raise ValueError("negatives.generated.by: is llm, and the recipe names none; name one at `llm`")
    condition = negatives.condition
    if condition == "generated" or (condition == "mixed" and by == "auto"):
        raise ValueError(
            f"negatives.condition: {condition!r} needs a language model; name one at `llm`, or choose 'perturbed'"
            + (", or set negatives.generated.by to perturbation" if condition == "mixed" else "")
        )


def check_condition(negatives: NegativeSettings, own: Sequence[str], used: int) -> None:
    """A condition decides for all experts, and training must see its negatives. Raises ValueError naming the key.

    `own` are experts that say for themselves what they train with; `used` is how many negatives a pair brings.
    """
    condition = negatives.condition
    if condition is None:
        return
    for name in own:
        raise ValueError(
            f"experts.{name}.negatives: negatives.condition says it for all experts; take one of the two out"
        )
    if used < len(CONDITIONS[condition]):
        raise ValueError(
            f"train.negatives: {used} is too few for the condition {condition!r}, which needs "
            f"{len(CONDITIONS[condition])} for a pair, one of each kind"
        )


def check_stm_condition(
    condition: StmCondition,
    negatives: NegativeSettings,
    method: str,
    own: Mapping[str, tuple[object, object]],
) -> None:
    """A condition decides kinds of negatives and prompts for all experts. Raises ValueError naming the other key.

    `method` is prompts.method; `own` has what each expert says of its negatives and prompts, None for nothing.
    """
    for key, given in (("kinds", negatives.kinds), ("condition", negatives.condition)):
        if given is not None:
            raise ValueError(
                f"negatives.{key}: `condition` says which negatives are used; set one of the two to null"
            )
    for name, said in own.items():
        for key, value in zip(("negatives", "prompts"), said, strict=True):
            if value is not None:
                raise ValueError(
                    f"experts.{name}.{key}: `condition` says it for all experts; take one of the two out"
                )
    wanted = STM_CONDITIONS[condition]
    if "generated" in wanted.kinds and negatives.generated is None:
        raise ValueError(
            f"condition: {condition!r} needs generated negatives, and `negatives.generated` is null; set it"
        )
    if wanted.prompts and method == "none":
        raise ValueError(
            f"condition: {condition!r} optimises instructions, and prompts.method is none; choose one"
        )
