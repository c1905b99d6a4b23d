"""mergekit's configuration files, read into a merge file and written from one.

Read: `models:` with parameters, or `slices:` that put equal layers of the models on one another in order; numbers,
gradients (a list, interpolated over the layers) and filters (`- filter: mlp`, `value: 0.5`) of any parameter, with
mergekit's own precedence. Not read, and refused by name: `modules:`, slices that leave out, repeat or mix layers,
and tokenizer surgery.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from medley.errors import RecipeError
from medley.merge.coefficients import Kind, Layout, before_layers, layer_cuts
from medley.recipe_problems import explain

if TYPE_CHECKING:
    from medley.merge.settings import MergeFile, MergeParameters

KNOWN = {
    "models", "slices", "merge_method", "base_model", "parameters", "dtype", "out_dtype", "tokenizer_source",
    "chat_template",
}  # fmt: skip
FILTERS: dict[Kind, tuple[str, ...]] = {
    "attention": ("self_attn",), "mlp": ("mlp",), "norm": ("norm",), "embedding": ("embed_tokens", "lm_head"),
}  # fmt: skip
"""Parts of tensor names by which mergekit tells kinds apart."""


def read_mergekit(value: Mapping[str, Any], where: str) -> dict[str, Any]:
    """A mergekit configuration in the words of a merge file. Raises RecipeError naming what cannot be read."""
    from mergekit.config import MergeConfiguration

    for key in value:
        if key not in KNOWN:
            raise RecipeError(
                f"{where}: mergekit's {key!r} has no counterpart here; list `models:`, or run mergekit itself."
            )
    if value.get("tokenizer_source") not in (None, "base"):
        raise RecipeError(
            f"{where}: tokenizer_source {value['tokenizer_source']!r} has no counterpart here; use "
            "`keep: {from: NAME, tensors: [embed_tokens, tokenizer]}` in a merge file."
        )
    try:
        MergeConfiguration.model_validate(value)
    except ValidationError as problem:
        raise RecipeError(f"{where}: {explain(problem, MergeConfiguration)}") from problem
    except (RuntimeError, ValueError, TypeError) as problem:
        raise RecipeError(f"{where}: mergekit refuses it ({problem}).") from problem
    slices = _slices(value, where)
    listed = list(dict.fromkeys(location for part in slices for location, _ in part["sources"]))
    base = _location(value.get("base_model")) or (listed[0] if listed else None)
    if base is None:
        raise RecipeError(f"{where}: lists no models; name them under `models:`.")
    method = str(value["merge_method"])
    names: dict[str, str] = {}
    for location in listed:
        # what a method takes updates from is not one of the updates
        if location != base or value.get("base_model") is None or not _uses_base(method):
            names[location] = _unique(Path(location).name, list(names.values()))
    shared = dict(value.get("parameters") or {})
    simple = _simple_parameters(slices, names, shared) if len(slices) == 1 else None
    content: dict[str, Any] = {
        "base": base,
        "experts": {name: location for location, name in names.items()},
        "method": method,
        "dtype": value.get("out_dtype") or value.get("dtype") or "float32",
    }
    if simple is not None:
        weights, parameters = simple
        content |= {"weights": weights, "parameters": parameters}
    else:
        content["mergekit"] = {
            "shared": shared,
            "slices": [
                {
                    "layers": part["layers"],
                    "shared": part["parameters"],
                    "experts": {names[at]: given for at, given in part["sources"] if at in names},
                }
                for part in slices
            ],
        }
    if value.get("base_model") is None and method in ("multislerp", "nuslerp"):
        content.setdefault("parameters", {})["from_base"] = False
    return content


def _uses_base(method: str) -> bool:
    """Whether a method sets its base model apart from the models it merges."""
    from mergekit import merge_methods
    from mergekit.merge_methods import BasePolicy

    try:
        return merge_methods.get(method).spec.contract.base in (BasePolicy.REQUIRED, BasePolicy.OPTIONAL)
    except RuntimeError:
        return True  # an unknown method is refused later, by name


def _slices(value: Mapping[str, Any], where: str) -> list[dict[str, Any]]:
    """The parts in depth: layers [start, stop) or None for all, parameters, and (location, parameters) each."""
    if "slices" not in value:
        sources = [
            (_needed(entry, where), dict(entry.get("parameters") or {}))
            for entry in value.get("models") or []
        ]
        return [{"layers": None, "parameters": {}, "sources": sources}]
    parts: list[dict[str, Any]] = []
    reached = 0
    for entry in value["slices"] or []:
        ranges = {tuple(source.get("layer_range") or ()) for source in entry.get("sources") or []}
        if len(ranges) != 1 or len(next(iter(ranges))) != 2 or next(iter(ranges))[0] != reached:
            raise RecipeError(
                f"{where}: slices must put the same layers of all models on one another, from layer 0 on and "
                "without gaps; models made of other layers have no counterpart here, run mergekit itself."
            )
        start, reached = next(iter(ranges))
        sources = [
            (_needed(source, where), dict(source.get("parameters") or {})) for source in entry["sources"]
        ]
        parts.append(
            {
                "layers": [int(start), int(reached)],
                "parameters": dict(entry.get("parameters") or {}),
                "sources": sources,
            }
        )
    return parts


def _simple_parameters(
    slices: Sequence[Mapping[str, Any]], names: Mapping[str, str], shared: Mapping[str, Any]
) -> tuple[dict[str, float], dict[str, Any]] | None:
    """Weights and parameters where all are plain numbers; None where a gradient or filter is among them."""
    (part,) = slices
    given = {names[location]: settings for location, settings in part["sources"] if location in names}
    every = [shared, part["parameters"], *given.values()]
    if not all(isinstance(setting, (int, float)) for settings in every for setting in settings.values()):
        return None
    overall = {**shared, **part["parameters"]}
    weights: dict[str, float] = {}
    if "weight" in overall:
        weights = dict.fromkeys(given, float(overall["weight"]))
    weights |= {name: float(settings["weight"]) for name, settings in given.items() if "weight" in settings}
    parameters: dict[str, Any] = {key: value for key, value in overall.items() if key != "weight"}
    for key in dict.fromkeys(key for settings in given.values() for key in settings if key != "weight"):
        by_expert = {name: settings.get(key, overall.get(key)) for name, settings in given.items()}
        if None in by_expert.values():
            return None  # only some experts have it: mergekit's default holds for the others
        parameters[key] = by_expert
    return weights, parameters


def _needed(entry: Mapping[str, Any], where: str) -> str:
    location = _location(entry.get("model"))
    if not location:
        raise RecipeError(f"{where}: an entry of `models:` has no model; give its path.")
    return location


def _location(model: Any) -> str | None:
    """mergekit's short form `model+lora` and its long form {model: {path: ...}}."""
    if isinstance(model, dict):
        model = model.get("lora") or model.get("model")
        model = model.get("path") if isinstance(model, dict) else model
    return None if model is None else str(model).rpartition("+")[2]


def _unique(name: str, taken: Sequence[str]) -> str:
    count, candidate = 2, name
    while candidate in taken:
        candidate, count = f"{name}-{count}", count + 1
    return candidate


def write_mergekit(file: MergeFile, layer_count: int, adapters: Sequence[str] = ()) -> dict[str, Any]:
    """A merge file as mergekit's configuration of a model with `layer_count` layers.

    `adapters` are the experts that are adapters; mergekit folds each into the base (`base+adapter`). Parts in
    depth become slices, kinds of tensors and `keep` become filters. Raises RecipeError where mergekit has no
    counterpart.
    """
    for key in ("shrink", "mergekit"):
        if getattr(file, key):
            raise RecipeError(f"{key}: has no counterpart in mergekit's files.")
    layout = Layout(layer_cuts(file.segments, layer_count), kinds=file.kinds)
    names = list(file.experts)
    parameters = file.parameters.in_order(names)
    references = {
        name: f"{file.base}+{path}" if name in adapters else path for name, path in file.experts.items()
    }
    by_expert = {key: value for key, value in parameters.given().items() if isinstance(value, tuple)}
    edges = [0, *layout.cuts, layer_count]
    slices = []
    for part, (start, stop) in enumerate(itertools.pairwise(edges)):
        sources = []
        if _uses_base(file.method) and file.base not in references.values():
            sources.append({"model": file.base, "layer_range": [start, stop]})
        for index, name in enumerate(names):
            settings = {key: value[index] for key, value in by_expert.items()}
            if name in file.weights:
                settings["weight"] = _by_filter(file, layout, name, part)
            source: dict[str, Any] = {"model": references[name], "layer_range": [start, stop]}
            sources.append(source | ({"parameters": settings} if settings else {}))
        slices.append({"sources": sources})
    shared = {key: value for key, value in parameters.given().items() if not isinstance(value, tuple)}
    whole = {
        "merge_method": file.method, "base_model": file.base, "parameters": shared, "dtype": "float32",
        "out_dtype": file.dtype,
    }  # fmt: skip
    if not _uses_base(file.method):
        whole.pop("base_model")
    if len(slices) > 1:
        return {"slices": slices} | whole
    models = [
        {key: value for key, value in source.items() if key != "layer_range"}
        for source in slices[0]["sources"]
    ]
    return {"models": models} | whole


def _by_filter(file: MergeFile, layout: Layout, name: str, part: int) -> Any:
    """An expert's weight in one part: a number, or a list of filters where kinds differ or tensors are kept."""
    flat = layout.flat(file.weights[name], f"weights.{name}")
    row = [flat] * layout.segment_count if isinstance(flat, (int, float)) else list(flat)
    filters: list[dict[str, Any]] = []
    if file.keep is not None:
        if file.keep.source == "base" and not _uses_base(file.method):
            raise RecipeError("keep.from: mergekit cannot keep the base's tensors in a linear merge.")
        kept = [tensor for tensor in file.keep.tensors if tensor != "tokenizer"]
        filters += [{"filter": tensor, "value": float(name == file.keep.source)} for tensor in kept]
    values = {place: row[index] for index, place in enumerate(layout.parts)}
    if not layout.kinds:
        rest = values[None, part]
    else:
        named = sorted((kind for kind in layout.kinds if kind != "other"), key=lambda kind: kind != "norm")
        for kind in named:  # a norm inside attention is a norm, so norms come first
            value = values.get((kind, 0 if kind == "embedding" else part))
            filters += [{"filter": mark, "value": value} for mark in FILTERS[kind]]
        rest = values.get(("other", part), 0.0)
    return [*filters, {"value": rest}] if filters else rest


class MergekitSlice(BaseModel):
    """Layers [start, stop) of the result (None: all), with parameters for all models and by expert."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    layers: tuple[int, int] | None = None
    shared: dict[str, Any] = Field(default_factory=dict)
    experts: dict[str, dict[str, Any]] = Field(default_factory=dict)


class MergekitSettings(BaseModel):
    """Gradients and filters of a mergekit file, which follow neither segments nor kinds of tensors."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    shared: dict[str, Any] = Field(default_factory=dict)
    slices: tuple[MergekitSlice, ...] = Field(min_length=1)


def settings_by_tensor(
    settings: MergekitSettings, method: str, names: Sequence[str], layer_count: int, *, seed: int
) -> Callable[[str], tuple[np.ndarray, MergeParameters]]:
    """A function from a tensor's name to its weights (K,) and parameters, resolved as mergekit resolves them.

    Tensors before the layers belong to the first slice, those after to the last, both at the start of a gradient.
    Raises RecipeError where the slices do not end with the model, or a parameter is missing.
    """
    from mergekit import merge_methods
    from mergekit.config import ParameterSetting
    from mergekit.parameter_resolver import resolve_parameter
    from pydantic import TypeAdapter

    from medley.merge.settings import MergeParameters

    spec: Any = merge_methods.get(method).spec
    ends = [part.layers or (0, layer_count) for part in settings.slices]
    if ends[-1][1] != layer_count:
        raise RecipeError(f"slices: end at layer {ends[-1][1]}, but the model has {layer_count} layers.")
    parse = TypeAdapter(dict[str, ParameterSetting]).validate_python
    shared = parse(settings.shared)
    parts = [
        (parse(part.shared), {name: parse(part.experts.get(name, {})) for name in names})
        for part in settings.slices
    ]

    def of_tensor(tensor: str) -> tuple[np.ndarray, MergeParameters]:
        layer = re.search(r"(?:^|\.)(?:layers|h|blocks)\.(\d+)\.", tensor)
        index, position = (0 if before_layers(tensor) else len(ends) - 1), 0.0
        if layer:
            number = int(layer.group(1))
            index = next(i for i, (_, stop) in enumerate(ends) if number < stop)
            start, stop = ends[index]
            position = (number - start) / (stop - start - 1) if stop - start > 1 else 1.0
        of_slice, by_expert = parts[index]
        values: dict[str, Any] = {}
        try:
            for parameter in spec.shared_parameters:
                scopes = [of_slice, shared]
                values[parameter.name] = resolve_parameter(
                    parameter, scopes, tensor_name=f"model.{tensor}", t=position
                )
            for parameter in spec.input_parameters:
                values[parameter.name] = tuple(
                    resolve_parameter(
                        parameter,
                        [by_expert[name], of_slice, shared],
                        tensor_name=f"model.{tensor}",
                        t=position,
                    )
                    for name in names
                )
        except RuntimeError as problem:
            raise RecipeError(f"method {method}: {problem}; give it for every tensor.") from problem
        weights = values.pop("weight", (1.0,) * len(names))
        return np.array(weights, dtype=np.float64), MergeParameters.model_validate(values | {"seed": seed})

    return of_tensor
