"""Any merge method that mergekit names, on full weights, in float32 and a few rows at a time.

Three families. Sums of updates (linear, task arithmetic) and trimmed sums with or without a majority of signs (TIES,
DARE, DELLA, breadcrumbs) are computed here by rows, so memory holds rows and not tensors, and what trimming keeps is
found once (trim.py). All others (SLERP, model stock, SCE, ...) need whole tensors and go through mergekit's own
kernels. Definitions and defaults are mergekit's throughout; tests compare each method with it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from medley.errors import ModelError, RecipeError
from medley.expert import Expert
from medley.merge.checkpoint import row_blocks, row_count
from medley.merge.coefficients import ZERO_SUM
from medley.merge.settings import MergeParameters
from medley.merge.sources import BaseRows, Source
from medley.merge.trim import Kept, TrimSettings, find_kept, flat_starts, trim_seed

if TYPE_CHECKING:
    import torch

BASE = "base"
KEPT_BYTES = 2_000_000_000
"""Memory for the bits of trimmed updates; beyond it the oldest are found again when needed."""


def is_linear_in_deltas(method: str, parameters: MergeParameters, experts: Sequence[Expert]) -> bool:
    """Whether the merge is a weighted sum of adapters, which the concatenated adapter computes exactly."""
    if not all(expert.is_adapter and not expert.shrink for expert in experts):
        return False
    return sums_deltas(method, parameters)


def sums_deltas(method: str, parameters: MergeParameters) -> bool:
    """Whether a method adds a weighted sum of deltas to the base (true of full checkpoints as well)."""
    return method == "task_arithmetic" or (method == "linear" and parameters.normalize is not False)


@dataclass(frozen=True)
class TensorMerge:
    """One tensor's merge: what is merged into what, with which numbers (`weights` of shape (K,))."""

    tensor: str
    shape: tuple[int, ...]
    base: BaseRows
    sources: Sequence[Source]
    weights: np.ndarray
    parameters: MergeParameters

    def delta(self, expert: int, start: int, stop: int) -> torch.Tensor | None:
        """An expert's update of rows [start, stop)."""
        return self.sources[expert].delta(self.tensor, self.shape, self.base, start, stop)

    def with_base_rows(self, start: int, stop: int) -> TensorMerge:
        """The same for rows [start, stop) only, the base's read and made float32 once for all experts."""
        rows = self.base(start, stop)
        return replace(self, base=lambda _start, _stop: rows)


@dataclass(frozen=True)
class KeptEntries:
    """What is kept of trimmed updates, by tensor, expert and settings, up to KEPT_BYTES."""

    found: dict[tuple[str, int, TrimSettings], Kept | None] = field(default_factory=dict)

    def forget(self) -> None:
        """Let go of all of it: after a tensor of a merge that is made once."""
        self.found.clear()

    def of(self, merge: TensorMerge, expert: int, settings: TrimSettings) -> Kept | None:
        """What is kept of an expert's update of a tensor; None where all is."""
        key = (merge.tensor, expert, settings)
        if key not in self.found:

            def blocks() -> Iterator[torch.Tensor]:
                for start, stop in row_blocks(merge.shape):
                    delta = merge.delta(expert, start, stop)
                    assert delta is not None  # asked only where there is an update
                    yield delta

            self.found[key] = find_kept(settings, blocks, merge.shape)
            held = sum(len(kept.bits) for kept in self.found.values() if kept is not None)
            while held > KEPT_BYTES and len(self.found) > 1:
                oldest = self.found.pop(next(iter(self.found)))
                held -= len(oldest.bits) if oldest is not None else 0
        return self.found[key]


def merge_tensor(
    method: str, merge: TensorMerge, kept: KeptEntries
) -> Iterator[tuple[int, int, torch.Tensor]]:
    """The merged rows of a tensor as (start, stop, rows in float32), from first to last.

    Random methods (DARE, DELLA) draw from the parameters' seed, the tensor's name and the expert's place. Raises
    RecipeError when the method refuses the experts or parameters, ModelError when an expert does not fit.
    """
    from mergekit import merge_methods
    from mergekit.merge_methods import GeneralizedTaskArithmeticMerge

    kernel: Any = merge_methods.get(method)
    values = resolve_parameters(kernel.spec, merge.weights, merge.parameters)
    if method == "linear":
        yield from _weighted_sum(merge, *_linear(merge.weights, normalize=values["normalize"]))
    elif method == "task_arithmetic":
        coefficients_K = merge.weights * values["lambda"] / _divisor(merge.weights, values)
        yield from _weighted_sum(merge, 1.0, coefficients_K)
    elif isinstance(kernel, GeneralizedTaskArithmeticMerge):
        yield from _trimmed_sum(kernel, merge, values, kept)
    else:
        rows = _by_mergekit(kernel, merge, values)
        yield 0, row_count(merge.shape), rows


def resolve_parameters(spec: Any, weights_K: np.ndarray, parameters: MergeParameters) -> dict[str, Any]:
    """The method's parameters with mergekit's defaults; those that go by expert as a tuple in their order.

    Raises RecipeError naming a parameter that the method has not, or that it lacks.
    """
    known = {parameter.name for parameter in spec.parameters}
    given = parameters.given()
    for key in given:
        if key not in known:
            names = ", ".join(sorted(known)) or "none"
            raise RecipeError(f"parameters: method {spec.name} has no {key}; it has {names}.")
    by_expert = {parameter.name for parameter in spec.input_parameters}
    values: dict[str, Any] = {}
    for parameter in spec.parameters:
        if parameter.name == "weight":
            values["weight"] = tuple(float(weight) for weight in weights_K)
            continue
        if parameter.name not in given and parameter.required:
            raise RecipeError(f"parameters: method {spec.name} needs {parameter.name}; give it.")
        value = given.get(parameter.name, parameter.default)
        if parameter.name in by_expert and not isinstance(value, tuple):
            value = (value,) * len(weights_K)
        values[parameter.name] = value
    return values


def _linear(weights_K: np.ndarray, *, normalize: bool) -> tuple[float, np.ndarray]:
    """The factors of the base and of the deltas of a linear merge."""
    total = float(weights_K.sum())
    if not normalize:
        return total, weights_K
    if abs(total) < ZERO_SUM:
        raise ModelError(
            "weights: a linear merge divides by their sum, which is zero; give one of them a value."
        )
    return 1.0, weights_K / total


def _divisor(weights_K: np.ndarray, values: dict[str, Any]) -> float:
    """What a sum of deltas is divided by."""
    total = float(weights_K.sum())
    return total if values["normalize"] and abs(total) >= ZERO_SUM else 1.0


def _weighted_sum(
    merge: TensorMerge, of_base: float, coefficients_K: np.ndarray
) -> Iterator[tuple[int, int, torch.Tensor]]:
    """of_base theta_0 + sum_k c_k delta_k."""
    for start, stop in row_blocks(merge.shape):
        block = merge.with_base_rows(start, stop)
        rows = block.base(start, stop)
        rows = rows * of_base if of_base != 1.0 else rows.clone()
        for expert, coefficient in enumerate(coefficients_K):
            if coefficient:
                delta = block.delta(expert, start, stop)
                if delta is not None:
                    rows.add_(delta, alpha=float(coefficient))
        yield start, stop, rows


def _trimmed_sum(
    kernel: Any, merge: TensorMerge, values: dict[str, Any], kept: KeptEntries
) -> Iterator[tuple[int, int, torch.Tensor]]:
    """The base plus a sum of trimmed updates, with or without a majority of signs (mergekit's generalised task
    arithmetic)."""
    trims = [trim_settings(kernel, values, merge, expert) for expert in range(len(merge.sources))]
    divisor = _divisor(merge.weights, values)
    for start, stop, first in flat_starts(merge.shape):
        weighted = []
        block = merge.with_base_rows(start, stop)
        for expert, weight in enumerate(values["weight"]):
            delta = block.delta(expert, start, stop)
            if delta is None or not weight:
                continue
            found = kept.of(merge, expert, trims[expert])
            if found is not None:
                found.apply(delta, first)
            weighted.append((delta.mul_(weight), weight))
        rows = block.base(start, stop).clone()
        if weighted and kernel.consensus_method is not None:
            rows.add_(_by_majority(weighted, normalize=values["normalize"]), alpha=values["lambda"])
        else:
            for delta, _ in weighted:
                rows.add_(delta, alpha=values["lambda"] / divisor)
        yield start, stop, rows


def trim_settings(kernel: Any, values: dict[str, Any], merge: TensorMerge, expert: int) -> TrimSettings:
    """How an expert's update of a tensor is trimmed under a method."""
    return TrimSettings(
        kind=kernel.sparsification_method.value,
        density=values["density"][expert],
        gamma=values["gamma"][expert] if "gamma" in values else 0.0,
        epsilon=values["epsilon"][expert] if "epsilon" in values else 0.0,
        rescale=bool(values["rescale"]),
        seed=trim_seed(merge.parameters.seed, merge.tensor, expert),
    )


def _by_majority(weighted: Sequence[tuple[torch.Tensor, float]], *, normalize: bool) -> torch.Tensor:
    """Sum of the weighted updates whose sign is that of the sum of all, entry by entry (TIES, section 3).

    With `normalize` divided by the weights of those that took part. Zero counts as a positive sum. In terms of
    the sign s: s sum_k max(0, s x_k), which needs no masks. The blocks are changed.
    """
    import torch

    total = weighted[0][0].clone()
    for delta, _ in weighted[1:]:
        total.add_(delta)
    sign = torch.ge(total, 0, out=total).mul_(2).sub_(1)
    mixed, divisor = torch.zeros_like(sign), torch.zeros_like(sign)
    for delta, weight in weighted:
        agreeing = delta.mul_(sign).clamp_(min=0)
        mixed.add_(agreeing)
        if normalize:
            divisor.add_(agreeing.sign_(), alpha=weight)
    mixed.mul_(sign)
    if normalize:
        divisor.add_(torch.eq(divisor, 0, out=sign))
        mixed.div_(divisor)
    return mixed


def _by_mergekit(kernel: Any, merge: TensorMerge, values: dict[str, Any]) -> torch.Tensor:
    """The whole tensor through mergekit's kernel."""
    import torch
    from mergekit.merge_methods import BasePolicy
    from mergekit.merge_methods.api import merge_tensors

    stop = row_count(merge.shape)
    base = merge.base(0, stop).reshape(merge.shape)
    versions = []
    for expert in range(len(merge.sources)):
        delta = merge.delta(expert, 0, stop)
        versions.append(base if delta is None else base + delta.reshape(merge.shape))
    contract = kernel.spec.contract
    ids: list[str | int] = list(range(len(versions)))
    tensors = list(versions)
    # of two experts, a method for two models (SLERP) takes the first as its start, not the base
    between_experts = contract.max_inputs == len(versions) == 2
    based = contract.base == BasePolicy.REQUIRED or (
        contract.base == BasePolicy.OPTIONAL and merge.parameters.from_base
    )
    if based and not between_experts:
        ids, tensors = [BASE, *ids], [base, *tensors]
    given = {
        key: dict(enumerate(value)) if isinstance(value, tuple) else value for key, value in values.items()
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_tensor_seed(merge.parameters.seed, merge.tensor))
        try:
            return merge_tensors(
                tensors, kernel, ids=ids, base_index=0 if based else None, name=merge.tensor,
                dtype=torch.float32, parameters=given,
            )  # fmt: skip
        except (ValueError, TypeError) as problem:
            raise RecipeError(
                f"method {kernel.spec.name}: mergekit refuses it for {len(versions)} experts ({problem})."
            ) from problem


def _tensor_seed(seed: int, name: str) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed} {name}".encode()).digest()[:7], "little")
