"""MERGE.yaml: what to merge, how, and where the coefficients come from.

mergekit's own files are read too (mergekit_file.py).
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from medley.encoder import RetrieverSettings
from medley.errors import RecipeError
from medley.merge.coefficients import Kind, Segments, Weight
from medley.merge.mergekit_file import MergekitSettings, read_mergekit
from medley.recipe_problems import explain
from medley.text_file import as_path

METHODS = (
    "linear", "task_arithmetic", "ties", "dare_ties", "dare_linear", "della", "della_linear", "breadcrumbs",
    "breadcrumbs_ties", "slerp", "nuslerp", "multislerp", "karcher", "model_stock", "nearswap", "ram",
    "ramplus_tl", "sce", "arcee_fusion",
)  # fmt: skip
"""Every method of mergekit 0.1.5 that merges (a test compares); `passthrough` only copies layers."""

TOKENIZER = "tokenizer"
"""The word in `keep.tensors` for the tokenizer itself."""
Ratio = Annotated[float, Field(ge=0, le=1)]
PerExpert = float | tuple[float, ...] | dict[str, float]


SUMS = {"linear": frozenset({"normalize"}), "task_arithmetic": frozenset({"normalize", "lambda"})}
"""Methods that add up the experts' updates, and the parameters that they have."""


class MergeParameters(BaseModel):
    """The method's parameters by mergekit's names; what is null keeps mergekit's default."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, populate_by_name=True)

    normalize: bool | None = Field(None, description="divide by the sum of the weights")
    lambda_: float | None = Field(None, alias="lambda", description="factor on the merged delta")
    density: PerExpert | None = Field(
        None, description="share of each delta kept (TIES, DARE): one, or one an expert"
    )
    gamma: PerExpert | None = Field(None, description="share of the largest entries dropped (breadcrumbs)")
    epsilon: PerExpert | None = Field(
        None, description="spread of the drop rates (DELLA), or RAM's threshold"
    )
    rescale: bool | None = Field(None, description="rescale a sparsified delta to its old norm")
    int8_mask: bool | None = Field(None, description="keep masks in int8")
    t: float | None = Field(None, description="position between two models (SLERP, NearSwap)")
    select_topk: float | None = Field(None, description="share of entries with the largest variance (SCE)")
    filter_wise: bool | None = Field(None, description="model stock by filter")
    nuslerp_row_wise: bool | None = Field(None, description="NuSLERP by row")
    nuslerp_flatten: bool | None = Field(None, description="NuSLERP on flattened tensors")
    normalize_weights: bool | None = Field(None, description="multi-SLERP: divide by the sum of the weights")
    eps: float | None = Field(None, description="multi-SLERP: smallest norm")
    max_iter: int | None = Field(None, description="Karcher mean: iterations")
    tol: float | None = Field(None, description="Karcher mean: tolerance")
    r: float | None = Field(None, description="RAM+ rescaling strength")
    alpha: float | None = Field(None, description="RAM+ rescaling cap")
    from_base: bool = Field(
        True, description="multi-SLERP and NuSLERP: merge updates of the base rather than whole weights"
    )
    seed: int = Field(13, description="for methods that draw at random (DARE, DELLA)")

    def given(self) -> dict[str, Any]:
        """The parameters that were given, by mergekit's names."""
        return self.model_dump(by_alias=True, exclude_none=True, exclude={"seed", "from_base"})

    def in_order(self, names: list[str]) -> MergeParameters:
        """The same with each mapping by expert turned into a tuple in the experts' order."""
        changes: dict[str, Any] = {}
        for key in ("density", "gamma", "epsilon"):
            value = getattr(self, key)
            if isinstance(value, dict):
                if mistake := _name_mistake(value, names):
                    raise RecipeError(f"parameters.{key}: {mistake}.")
                changes[key] = tuple(value[name] for name in names)
            elif isinstance(value, tuple) and len(value) != len(names):
                raise RecipeError(
                    f"parameters.{key}: has {len(value)} numbers for {len(names)} experts; give one each."
                )
        return self.model_copy(update=changes)


class KeepSettings(BaseModel):
    """Tensors that are taken unmerged from one expert, or from the base."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    source: str = Field(alias="from", description="name of an expert, or `base`")
    tensors: tuple[str, ...] = Field(
        description="parts of tensor names, such as embed_tokens; `tokenizer` is the tokenizer itself",
        min_length=1,
    )

    @property
    def parts(self) -> tuple[str, ...]:
        """The parts of tensor names."""
        return tuple(part for part in self.tensors if part != TOKENIZER)

    @property
    def tokenizer(self) -> bool:
        """Whether the tokenizer is taken from there too."""
        return TOKENIZER in self.tensors


class SearchSettings(BaseModel):
    """How coefficients are searched for (search-merge only)."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    strategy: Literal["surrogate", "random", "grid", "tpe", "cmaes", "learned"] = Field(
        "surrogate",
        description="surrogate: score the grid on interpolated vectors, verify the best; grid: all; random, tpe, "
        "cmaes: sample; learned: by gradient",
    )
    encodings: int = Field(12, ge=1, description="how often the dev pool may be encoded")
    grid: tuple[float, ...] = Field(
        (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9), min_length=2, description="values of each weight"
    )
    dev: tuple[str, ...] = Field((), description="collections that candidates are scored on")
    objective: Literal["mean", "worst"] = Field(
        "mean", description="what the dev collections' scores make: their mean by weight, or the lowest"
    )
    weights: dict[str, float] = Field(
        default_factory=dict, description="weight of a dev collection in the mean, where it is not 1"
    )
    general: tuple[str, ...] = Field(
        (),
        description="dev collections that are not of the domain, for the Pareto front of domain against general",
    )
    confirm: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="share of the dev queries held out from the search to choose among its best",
    )
    choose: Literal["best", "simplest"] = Field(
        "best",
        description="best: the highest dev score; simplest: the simplest (uniform, fewer experts) within one "
        "standard error of it",
    )
    patience: int = Field(
        6, ge=1, description="surrogate: encodings without a gain after which it stops before the budget"
    )
    continuous: bool = Field(
        True,
        description="tpe and cmaes: draw between the smallest and largest value of the grid, not from the grid",
    )
    penalty: float = Field(
        0.1,
        ge=0,
        description="learned: factor of the weights' variance around their mean, which is added to the loss",
    )
    storage: str | None = Field(
        None,
        description="tpe and cmaes: a journal file, or a database URL, that several processes or machines share",
    )
    shrink: tuple[Ratio, ...] = Field(
        (),
        description="how far each expert may be moved toward the base before the search; dev chooses among them",
    )
    rankers: tuple[Literal["bm25", "base", "experts"], ...] = Field(
        ("bm25",), description="what decides which passages of a large corpus are hard enough for the pool"
    )
    pool_size: int = Field(2000, ge=10, description="passages of a dev collection that are encoded")
    queries: int = Field(200, ge=1, description="queries of a dev collection that are encoded, at most")
    seed: int = Field(13, description="for sampling queries, passages and candidates")

    def check_dev(self, dev: Sequence[str], where: str) -> None:
        """Raise ValueError where `weights` or `general` name what is no dev collection, or weigh it below zero."""
        for key, named in (("weights", self.weights), ("general", self.general)):
            for spec in named:
                if spec not in dev:
                    raise ValueError(
                        f"search.{key}: {spec!r} is no collection of {where}{_nearest(spec, dev)}"
                    )
        if any(weight <= 0 for weight in self.weights.values()):
            raise ValueError("search.weights: must be above 0; leave a collection out of `dev` instead")


class MergeFile(BaseModel):
    """A merge file."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    base: str = Field(description="path or hub id")
    experts: dict[str, str] = Field(min_length=1, description="path of each expert by name")
    method: str = Field("linear", description="any method mergekit names")
    weights: dict[str, Weight] = Field(
        default_factory=dict,
        description="by expert: a number, or a list with one per segment, or either by kind of tensor",
    )
    segments: Segments = Field(1, description="parts in depth: a number, cut points in layers, or `layers`")
    kinds: tuple[Kind, ...] = Field(
        (), description="kinds of tensors with weights of their own; `other` is all that are not named"
    )
    parameters: MergeParameters = Field(default_factory=MergeParameters)  # type: ignore[arg-type]
    keep: KeepSettings | None = Field(None, description="what is taken unmerged")
    templates: Literal["same", "first"] = Field(
        "same",
        description="same: experts whose templates differ are refused; first: they are merged under the first one's",
    )
    shrink: Ratio | dict[str, Ratio] = Field(
        default_factory=dict,
        description="how far each expert is moved toward the base first, by SLERP: 0 not at all, 1 all the way",
    )
    output: Literal["weights", "adapter", "checkpoint"] = Field(
        "weights",
        description="a retriever with whole weights, an adapter of rank sum(r), or a plain checkpoint like the "
        "base's, streamed to disk without a gate (for language models that are no retrievers)",
    )
    dtype: Literal["float32", "bfloat16", "float16"] = Field(
        "float32",
        description="of the saved weights; half precision rounds small deltas away, the gate says when",
    )
    search: SearchSettings | None = Field(None, description="search-merge only")
    retriever: RetrieverSettings | None = Field(None, description="default: as the experts were trained")
    instruction: str | None = Field(
        None, description="default: the experts', where all have one and the same"
    )
    mergekit: MergekitSettings | None = Field(
        None, description="gradients and filters of a mergekit file; its reader fills this in"
    )

    def shrunk(self, name: str) -> float:
        """How far an expert is moved toward the base first."""
        return self.shrink.get(name, 0.0) if isinstance(self.shrink, dict) else self.shrink

    @model_validator(mode="after")
    def _names_agree(self) -> Self:
        if self.method not in METHODS:
            raise ValueError(f"method: there is no {self.method!r}{_nearest(self.method, METHODS)}")
        if self.search is not None:
            self.search.check_dev(self.search.dev, "search.dev")
        if self.weights and (mistake := _name_mistake(self.weights, list(self.experts))):
            raise ValueError(f"weights: {mistake}")
        if self.keep is not None and self.keep.source not in ("base", *self.experts):
            raise ValueError(
                f"keep.from: {self.keep.source!r} is no expert{_nearest(self.keep.source, self.experts)}"
            )
        unknown = (
            [name for name in self.shrink if name not in self.experts]
            if isinstance(self.shrink, dict)
            else []
        )
        if unknown:
            raise ValueError(f"shrink: {unknown[0]!r} is no expert{_nearest(unknown[0], self.experts)}")
        if self.output == "adapter" and self.shrink:
            raise ValueError("shrink: SLERP changes the base's part too, so the result is no adapter")
        if self.output == "adapter" and (self.method not in SUMS or self.parameters.normalize is False):
            raise ValueError(
                "output: only normalised linear and task_arithmetic merges of adapters are an adapter"
            )
        return self


def _name_mistake(given: Mapping[str, Any], names: list[str]) -> str | None:
    """What is wrong with a mapping that should name each expert once."""
    for name in given:
        if name not in names:
            return f"{name!r} is no expert{_nearest(name, names)}"
    missing = [name for name in names if name not in given]
    return f"has nothing for expert {missing[0]!r}; add it" if missing else None


def read_merge_file(path: Path) -> MergeFile:
    """Read a merge file, Medley's or mergekit's. Relative paths of experts and base count from the file's
    folder.

    Raises RecipeError naming the key, and the nearest known one where it is unknown.
    """
    from medley.yaml_file import read_yaml  # not at import: `medley --help` needs these settings and no YAML

    value = read_yaml(path, RecipeError)
    if not isinstance(value, dict):
        raise RecipeError(f"{path}: expected keys and values; see `medley merge --help`.")
    if "merge_method" in value:
        value = read_mergekit(value, str(path))
    return parse_merge_file(_with_paths(value, path.parent), str(path))


def parse_merge_file(value: Mapping[str, Any], where: str) -> MergeFile:
    """Check a merge file's content. Raises RecipeError in one sentence."""
    try:
        return MergeFile.model_validate(value)
    except ValidationError as problem:
        raise RecipeError(f"{where}: {explain(problem, MergeFile)}") from problem


def _nearest(word: str, known: Any) -> str:
    names = [str(name) for name in known]
    close = difflib.get_close_matches(word, names, n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else f"; known are {', '.join(names)}"


def _with_paths(value: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Paths written relative to the file; a hub id stays, as nothing of that name lies beside the file."""

    def located(path: Any) -> Any:
        expanded = as_path(str(path), RecipeError)
        beside = as_path(str(folder / expanded), RecipeError)
        return str(beside) if not expanded.is_absolute() and beside.exists() else str(expanded)

    changed = dict(value)
    if isinstance(value.get("base"), str) and value["base"] != "tiny":
        changed["base"] = located(value["base"])
    if isinstance(value.get("experts"), dict):
        changed["experts"] = {str(name): located(path) for name, path in value["experts"].items()}
    return changed
