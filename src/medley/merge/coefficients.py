"""Merge coefficients as arrays: one per expert K and segment S, and which of them a tensor gets.

A segment is a part of the model in depth, or, where kinds of tensors are told apart, a part in depth and a kind.
Weights are what a merge file says (`med: 0.6`, `search: [0.2, 0.8]`, `general: {attention: 0.3, mlp: 1}`).
The coefficients of the deltas follow from them by the method: with theta_k = theta_0 + delta_k, a linear merge
sum_k a_k theta_k / sum_k a_k adds
sum_k (a_k / sum a) delta_k to the base; task arithmetic adds lambda sum_k a_k delta_k. Linear normalises by
default, as mergekit's does; without it the base itself is scaled by sum a, which no adapter can hold.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from medley.errors import ModelError, RecipeError

Segments = int | tuple[int, ...] | Literal["layers"]
ByDepth = float | tuple[float, ...]
Weight = ByDepth | dict[str, ByDepth]
"""One number for all segments, or one a segment from the first layer to the last, or these by kind of tensor."""
Kind = Literal["attention", "mlp", "norm", "embedding", "other"]

ZERO_SUM = 1e-8
KIND_MARKS: tuple[tuple[str, Kind], ...] = (
    (r"norm|(?:^|\.)ln_", "norm"),
    (r"attn|attention", "attention"),
    (r"mlp|feed_forward|ffn|experts", "mlp"),
    (r"embed|wte|wpe|lm_head", "embedding"),
)
"""What in a tensor's name tells its kind; the first that is found counts, so a norm inside attention is a norm."""


@dataclass(frozen=True)
class Layout:
    """Which coefficients a tensor gets.

    `cuts` are the layers at which a new part begins. With `kinds`, each kind named has coefficients of its own
    in each part (embeddings have no depth, so one), `other` standing for all kinds not named; without, kinds are
    not told apart. Tensors whose name contains one of `kept` are not merged but taken from expert number
    `kept_from`, or from the base where that is None.
    """

    cuts: tuple[int, ...] = ()
    kept: tuple[str, ...] = ()
    kept_from: int | None = None
    kinds: tuple[Kind, ...] = ()

    @property
    def parts(self) -> tuple[tuple[Kind | None, int], ...]:
        """The segments in the order of the coefficients: kind (None: all) and part in depth."""
        depth = range(len(self.cuts) + 1)
        if not self.kinds:
            return tuple((None, part) for part in depth)
        return tuple(
            (kind, part) for kind in self.kinds for part in (range(1) if kind == "embedding" else depth)
        )

    @property
    def segment_count(self) -> int:
        """Number of segments."""
        return len(self.parts)

    def keeps(self, name: str) -> bool:
        """Whether a tensor is taken unmerged."""
        return any(part in name for part in self.kept)

    def segment(self, name: str) -> int | None:
        """The segment of a tensor or layer, by its kind and layer number; None where its kind has none.

        Input embeddings belong to the first part in depth, what else has no layer number to the last.
        """
        match = re.search(r"(?:^|\.)(?:layers|h|blocks)\.(\d+)\.", name + ".")
        kind = kind_of(name)
        outside = 0 if before_layers(name) else len(self.cuts)
        part = bisect_right(self.cuts, int(match.group(1))) if match else outside
        if not self.kinds:
            return part
        wanted: Kind = kind if kind in self.kinds else "other"
        position = {place: index for index, place in enumerate(self.parts)}
        return position.get((wanted, 0 if wanted == "embedding" else part))

    def of_tensor(self, name: str, coefficients_KS: np.ndarray) -> np.ndarray:
        """The coefficients (K,) of a tensor's deltas; zero where its kind has none."""
        if self.keeps(name):
            kept_K = np.zeros(len(coefficients_KS))
            if self.kept_from is not None:
                kept_K[self.kept_from] = 1.0
            return kept_K
        segment = self.segment(name)
        return np.zeros(len(coefficients_KS)) if segment is None else coefficients_KS[:, segment]

    def flat(self, weight: Weight, where: str) -> ByDepth:
        """A weight as one number, or one a segment. Raises RecipeError where kinds or lengths do not fit."""
        if not isinstance(weight, dict):
            return weight
        unknown = [kind for kind in weight if kind not in self.kinds]
        missing = [kind for kind in self.kinds if kind not in weight]
        if unknown or missing:
            problem = f"names {unknown[0]!r}" if unknown else f"has nothing for {missing[0]!r}"
            raise RecipeError(
                f"{where}: {problem}, but the kinds told apart are {', '.join(self.kinds) or 'none'}; "
                "make it agree with `kinds`."
            )
        row: list[float] = []
        for kind in self.kinds:
            by_depth, count = weight[kind], sum(place[0] == kind for place in self.parts)
            values = [by_depth] * count if isinstance(by_depth, (int, float)) else list(by_depth)
            if len(values) != count:
                raise RecipeError(
                    f"{where}.{kind}: has {len(values)} numbers for {count} segments; give one each."
                )
            row += values
        return tuple(row)


def before_layers(name: str) -> bool:
    """Whether a tensor is used before the first layer: an input embedding, and no head."""
    return kind_of(name) == "embedding" and "lm_head" not in name


def kind_of(name: str) -> Kind:
    """The kind of a tensor or layer, by its name."""
    return next((kind for marks, kind in KIND_MARKS if re.search(marks, name)), "other")


def layer_cuts(segments: Segments, layer_count: int) -> tuple[int, ...]:
    """The layers at which a new segment begins: a number of equal parts, given cuts, or every layer.

    Raises RecipeError when they do not fit into the model's layers.
    """
    if segments == "layers":
        return tuple(range(1, layer_count))
    if isinstance(segments, int):
        if not 1 <= segments <= layer_count:
            raise RecipeError(
                f"segments: {segments} do not fit the model's {layer_count} layers; use 1 to {layer_count}."
            )
        return tuple(layer_count * part // segments for part in range(1, segments))
    cuts = tuple(int(cut) for cut in segments)
    if list(cuts) != sorted(set(cuts)) or not all(0 < cut < layer_count for cut in cuts):
        raise RecipeError(
            f"segments: cuts {list(cuts)} must rise and lie between 1 and {layer_count - 1}, "
            f"as the model has {layer_count} layers."
        )
    return cuts


def weights_array(weights: Mapping[str, ByDepth], names: Sequence[str], segment_count: int = 1) -> np.ndarray:
    """Weights (K, S) in the order of `names`. Raises RecipeError on a missing or unknown expert or a wrong
    length."""
    unknown = sorted(set(weights) - set(names))
    missing = [name for name in names if name not in weights]
    if unknown or missing:
        problem = f"names {unknown[0]!r}, which is no expert" if unknown else f"has none for {missing[0]!r}"
        raise RecipeError(f"weights: {problem}; give one for each of {', '.join(names)}.")
    rows = []
    for name in names:
        weight = weights[name]
        row = [weight] * segment_count if isinstance(weight, (int, float)) else list(weight)
        if len(row) != segment_count:
            raise RecipeError(
                f"weights.{name}: has {len(row)} numbers for {segment_count} segments; give one each."
            )
        rows.append(row)
    return np.array(rows, dtype=np.float64)


def weights_mapping(weights_KS: np.ndarray, names: Sequence[str]) -> dict[str, float | list[float]]:
    """Weights as a merge file writes them: a number where there is one segment, a list elsewhere."""
    rows = {name: [float(value) for value in row] for name, row in zip(names, weights_KS, strict=True)}
    return {name: row[0] if len(row) == 1 else row for name, row in rows.items()}


def delta_coefficients(
    method: str, weights_KS: np.ndarray, *, normalize: bool | None = None, scale: float = 1.0
) -> np.ndarray:
    """The coefficients (K, S) of the deltas for `linear` and `task_arithmetic`; `scale` is the latter's
    lambda.

    Raises ModelError when a linear merge's weights sum to zero in a segment.
    """
    if normalize is None:
        normalize = method == "linear"
    sums_S = weights_KS.sum(axis=0)
    if method == "linear":
        if not normalize:
            raise ValueError("a linear merge that is not normalised scales the base and is no sum of deltas")
        if np.abs(sums_S).min() < ZERO_SUM:
            raise ModelError(
                "weights: a linear merge divides by their sum, which is zero; give one of them a value."
            )
        return weights_KS / sums_S
    if method == "task_arithmetic":
        divisor_S = np.where(np.abs(sums_S) < ZERO_SUM, 1.0, sums_S) if normalize else np.ones_like(sums_S)
        return weights_KS / divisor_S * scale
    raise ValueError(f"{method} is not linear in the deltas")
