"""The recipe: what to build, as frozen values. YAML in, checked settings out; a wrong key names its nearest neighbour.

Relative paths are taken from the current folder; `$VARIABLES` in them are expanded when they are read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, Field, ValidationError, model_validator

from medley.collections import split_spec
from medley.encoder import RetrieverSettings
from medley.errors import RecipeError
from medley.evaluate.access import Access, check_server, is_server
from medley.evaluate.suites import suite
from medley.files import json_kind
from medley.llm import LlmSettings
from medley.prompts.settings import Method, PromptSettings
from medley.recipe_data import (
    STM_CONDITIONS,
    STRICT,
    NegativeKind,
    NegativeSettings,
    Source,
    StmCondition,
    check_condition,
    check_stm_condition,
    check_writer,
)
from medley.recipe_merge import MergeSettings
from medley.recipe_places import with_places
from medley.recipe_problems import check_folder_name, explain, nearest
from medley.statistics.demands import Demand
from medley.train.settings import PretrainSettings, TrainSettings
from medley.yaml_file import dump_yaml, parse_yaml, read_yaml

Baseline = Literal["bm25", "base", "experts", "all"]


class Expert(BaseModel):
    """One expert: the sources it is trained on and how."""

    model_config = STRICT

    sources: list[str] = Field(min_length=1, description="names of sources")
    negatives: tuple[NegativeKind, ...] | None = Field(
        None, description="kinds of hard negatives it sees; default the recipe's negatives.kinds"
    )
    prompts: Method | None = Field(None, description="instead of the recipe's prompts.method")
    dev: list[str] | None = Field(None, description="dev collections for its instruction; default merge.dev")


class EvaluateSettings(BaseModel):
    """Test collections by group (any name), and what to stand beside the merged model."""

    model_config = STRICT

    groups: dict[str, list[str]] = Field(min_length=1, description="group name -> test collections")
    suite: str | None = Field(
        None,
        description="tests with groups and instructions: stm12, medical, nano, bmretriever; beside `groups`",
    )
    baselines: list[Baseline] = Field(default=["bm25", "base", "experts", "all"])
    systems: dict[str, str] = Field(
        default={},
        description="further rows: name -> model folder, hub id or URL#MODEL of a server; with +bm25 behind it (also "
        "behind merged, base, all, expert:NAME) fused with BM25 by reciprocal ranks",
    )
    servers: dict[str, Access] = Field(
        default={},
        description="name of a served system -> the variable that holds its key, and further fields of requests",
    )
    instructions: dict[str, str] = Field(
        default={},
        description="collection (any split) -> instruction, the same for every variant; default each model's own",
    )
    demands: list[Demand] = Field(
        default=[],
        description="what the merged model must not lose; a run that breaks one hands over no model",
    )

    @model_validator(mode="after")
    def _demands_can_be_checked(self) -> EvaluateSettings:
        for number, demand in enumerate(self.demands):
            where = f"demands.{number}"
            if demand.group not in self.groups:
                raise ValueError(
                    f"{where}.group: no group {demand.group!r}{nearest(demand.group, self.groups)}"
                )
            if demand.than not in (*self.baselines, *self.systems) and not (
                demand.than.startswith("expert:") and "experts" in self.baselines
            ):
                raise ValueError(
                    f"{where}.than: {demand.than!r} is not evaluated; add it to `baselines`, or name one of them"
                )
        return self

    @model_validator(mode="before")
    @classmethod
    def _groups_by_name(cls, value: Any) -> Any:
        """`medical: [...]` beside `baselines` is a group; lists under any other key are. A suite brings its own."""
        if not isinstance(value, Mapping) or "groups" in value:
            return value
        known = {"baselines", "instructions", "demands"}
        groups = {key: item for key, item in value.items() if key not in known and isinstance(item, list)}
        rest = {key: item for key, item in value.items() if key not in groups}
        if isinstance(value.get("suite"), str):
            named = suite(value["suite"])
            groups = {**named.specs_by_group(), **groups}
            # what the recipe says itself stands above the suite
            own = {split_spec(spec)[0] for spec in rest.get("instructions") or {}}
            suites_own = named.instructions_by_spec().items()
            given = {spec: text for spec, text in suites_own if split_spec(spec)[0] not in own}
            rest["instructions"] = {**given, **(rest.get("instructions") or {})}
        return {**rest, "groups": groups}

    @model_validator(mode="after")
    def _systems_have_names_of_their_own(self) -> EvaluateSettings:
        for name, system in self.systems.items():
            check_folder_name("systems", name)
            if name in ("merged", "base", "bm25", "all", "pretrained") or name.startswith("expert:"):
                raise ValueError(f"systems.{name}: the name is taken; choose another")
            if system in ("bm25", "bm25+bm25"):
                raise ValueError(
                    f"systems.{name}: BM25 is one of `baselines`; name a model, or fuse one with +bm25"
                )
            if is_server(system):
                try:
                    check_server(system.removesuffix("+bm25"))
                except ValueError as problem:
                    raise ValueError(f"systems.{name}: {problem}") from problem
        for name in self.servers:
            if not is_server(self.systems.get(name, "")):
                raise ValueError(
                    f"servers.{name}: no system of that name is URL#MODEL; it says how a served one is asked"
                )
        return self

    @property
    def tasks(self) -> list[str]:
        """All test collections, each once, in order."""
        return list(dict.fromkeys(task for group in self.groups.values() for task in group))


class Recipe(BaseModel):
    """One run, from sources to proof."""

    model_config = STRICT

    name: str = Field(description="of the run, and of its folder")
    base: str = Field(description="hub id, model folder, or `tiny` (bundled)")
    seed: int = Field(13, ge=0, description="of every random choice")
    licence: str = Field("", description="of the merged model, for its card")
    retriever: RetrieverSettings = Field(RetrieverSettings(), description="how the base becomes a retriever")
    llm: LlmSettings | None = Field(
        None, description="a language model; without an endpoint nothing leaves the machine"
    )
    sources: dict[str, Source] = Field(min_length=1, description="name -> training pairs")
    negatives: NegativeSettings = Field(NegativeSettings(), description="hard negatives")
    prompts: PromptSettings = Field(PromptSettings(), description="how the instruction is chosen")
    condition: StmCondition | None = Field(
        None,
        description="one of the paper's conditions, for all experts: FT trains with judged and mined negatives, "
        "SHN with generated ones before them, PO under instructions found by prompts.method, SHN+PO both",
    )
    pretrain: PretrainSettings | None = Field(None, description="contrastive pre-training before the experts")
    experts: dict[str, Expert] = Field(min_length=1, description="name -> expert")
    train: TrainSettings = Field(TrainSettings(), description="how experts are trained")
    merge: MergeSettings = Field(description="how they become one model")
    evaluate: EvaluateSettings = Field(description="tests and baselines")
    empty_passages: Literal["refuse", "keep"] = Field(
        "refuse", description="whether a corpus may hold passages without text, as some classic ones do"
    )
    leaks: Literal["refuse", "drop", "allow"] = Field(
        "refuse",
        description="what to do with training rows whose query is in a dev or test collection, and with dev queries "
        "that are test queries: drop leaves them out; allow is for training rows only",
    )

    @model_validator(mode="after")
    def _names_fit(self) -> Recipe:
        check_folder_name("name", self.name)
        for key, names in (("sources", self.sources), ("experts", self.experts)):
            for name in names:
                check_folder_name(key, name)
        for name, expert in self.experts.items():
            for source in expert.sources:
                if source not in self.sources:
                    raise ValueError(
                        f"experts.{name}.sources: no source is called {source!r}{nearest(source, self.sources)}"
                    )
        if "all" in self.experts:
            raise ValueError(
                "experts.all: the name `all` stands for the model trained on everything; rename it"
            )
        for name, system in self.evaluate.systems.items():
            own = system.removesuffix("+bm25").removeprefix("expert:")
            if system.startswith("expert:") and own not in self.experts:
                raise ValueError(
                    f"evaluate.systems.{name}: no expert is called {own!r}{nearest(own, self.experts)}"
                )
        for name in (*self.experts, *self.sources):
            if "/" in name or name.startswith("."):
                raise ValueError(
                    f"{name}: sources and experts become folder names; leave out / and a leading dot"
                )
        return self

    @model_validator(mode="after")
    def _data_can_be_made(self) -> Recipe:
        check_writer(self.sources, self.negatives, has_llm=self.llm is not None)
        own = [name for name, expert in self.experts.items() if expert.negatives is not None]
        check_condition(self.negatives, own, self.train.negatives)
        return self

    @model_validator(mode="after")
    def _instructions_can_be_found(self) -> Recipe:
        if self.condition is not None:
            own = {name: (expert.negatives, expert.prompts) for name, expert in self.experts.items()}
            check_stm_condition(self.condition, self.negatives, self.prompts.method, own)
        methods = {self.prompt_method(expert) for expert in self.experts.values()} | {
            self.merged_prompt_method
        }
        if "gepa" in methods and self.llm is None:
            raise ValueError(
                "prompts.method: gepa needs a language model to reflect; name one at `llm`, or choose edit or library"
            )
        return self

    @model_validator(mode="after")
    def _experts_can_be_merged(self) -> Recipe:
        """Told here, before hours of training."""
        if self.train.lora is None:
            raise ValueError(
                "train.lora: the experts of a recipe are adapters, which are merged exactly; "
                "for all weights use `medley train --full` and a merge file"
            )
        return self

    @model_validator(mode="after")
    def _judge_can_be_asked(self) -> Recipe:
        if self.negatives.guard.judge is not None and self.llm is None:
            raise ValueError(
                "negatives.guard.judge: the judge is a language model; name an endpoint at `llm`, or take the judge out"
            )
        return self

    @model_validator(mode="after")
    def _demanded_experts_are_there(self) -> Recipe:
        for number, demand in enumerate(self.evaluate.demands):
            name = demand.than.removeprefix("expert:")
            if demand.than.startswith("expert:") and name not in self.experts:
                raise ValueError(
                    f"evaluate.demands.{number}.than: no expert is called {name!r}{nearest(name, self.experts)}"
                )
        return self

    @model_validator(mode="after")
    def _search_can_start(self) -> Recipe:
        """Told here, before hours of training, and not only where the search begins."""
        basis = len(self.experts) * self.merge.segments + 1
        if self.merge.search.strategy == "surrogate" and self.merge.search.encodings < basis + 2:
            raise ValueError(
                f"merge.search.encodings: {self.merge.search.encodings} is too few, since the surrogate's basis "
                f"takes {basis} and verifying at least 2; give {basis + 2} or more"
            )
        return self

    def instruction_for(self, spec: str) -> str | None:
        """The instruction that `evaluate.instructions` gives a collection, whatever the split; None for none."""
        wanted = split_spec(spec)[0]
        given = self.evaluate.instructions.items()
        return next((text for name, text in given if split_spec(name)[0] == wanted), None)

    def kinds_of(self, expert: Expert) -> tuple[NegativeKind, ...]:
        """Kinds of negatives that an expert trains with."""
        if self.condition is not None:
            return STM_CONDITIONS[self.condition].kinds
        return self.negatives.kinds_for(expert.negatives)

    def prompt_method(self, expert: Expert) -> Method:
        """How an expert's instruction is found before it is trained."""
        if self.prompts.when == "after" or not self._optimises_prompts:
            return "none"
        return expert.prompts or self.prompts.method

    @property
    def merged_prompt_method(self) -> Method:
        """How the merged model's instruction is found after the merge; none: it keeps that of `all`."""
        wanted = self.prompts.when in ("after", "both") and self._optimises_prompts
        return self.prompts.method if wanted else "none"

    @property
    def _optimises_prompts(self) -> bool:
        return self.condition is None or STM_CONDITIONS[self.condition].prompts

    @property
    def negatives_by_llm(self) -> bool:
        """Whether the llm writes the generated negatives; perturbation makes them otherwise."""
        return self.llm is not None and not self.negatives.perturbed


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe file, apply `key.sub=value` overrides (values are YAML), and check it.

    Raises RecipeError naming the key, the value and what is allowed.
    """
    raw = read_yaml(path, RecipeError, missing="no such recipe; check the path")
    if not isinstance(raw, dict):
        raise RecipeError(f"{path}: a recipe is a mapping of keys; this file holds {json_kind(raw)}.")
    for override in overrides:
        raw = overridden(raw, override)
    return parse_recipe(raw, str(path))


def overridden(raw: dict[str, Any], override: str, *, example: str = "train.epochs=2") -> dict[str, Any]:
    """Plain settings with one of them changed, as `key.sub=value`; RecipeError where it is not written so."""
    keys, equals, value = override.partition("=")
    if not equals or not keys.strip():
        raise RecipeError(f"--set {override}: write key.sub=value, for example --set {example}.")
    where = f"--set {override}"
    return _with(raw, keys.strip().split("."), parse_yaml(value, where, RecipeError), where)


def _with(raw: dict[str, Any], keys: Sequence[str], value: Any, where: str) -> dict[str, Any]:
    first, *rest = keys
    if not rest:
        return {**raw, first: value}
    inner = raw.get(first) or {}
    if not isinstance(inner, dict):
        raise RecipeError(f"{where}: {first} is not a mapping, so {'.'.join(rest)} cannot be set in it.")
    return {**raw, first: _with(inner, rest, value, where)}


def parse_recipe(raw: Mapping[str, Any], where: str = "recipe") -> Recipe:
    """Check a recipe given as plain data; local paths become absolute so that the run folder can be moved about."""
    try:
        recipe = Recipe.model_validate(raw)
    except ValidationError as problem:
        raise RecipeError(f"{where}: {explain(problem, Recipe)}") from problem
    return with_places(recipe)


def write_recipe(recipe: Recipe) -> str:
    """The recipe as YAML, every default written out."""
    return dump_yaml(recipe.model_dump(mode="json"), width=110)
