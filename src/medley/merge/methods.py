"""Any merge method that mergekit names, on full weights, in memory and one tensor at a time.

For each tensor of the base: the experts' versions (base + delta for an adapter, read from the file for a full
checkpoint) go through mergekit's own kernel in float32 and the result replaces the base's tensor. So pooling,
prompts, tokenizer and attention direction stay those of the retriever, memory holds one tensor a model, and
nothing is written. Only adapters under linear or task arithmetic have a cheaper way (concatenated.py).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from medley.encoder import Retriever
from medley.errors import ModelError, RecipeError
from medley.expert import Expert, base_tensors, plain_name
from medley.merge.coefficients import Layout
from medley.merge.settings import MergeParameters

if TYPE_CHECKING:
    import torch

BASE = "base"


def is_linear_in_deltas(method: str, parameters: MergeParameters, experts: Sequence[Expert]) -> bool:
    """Whether the merge is a weighted sum of adapters, which the concatenated adapter computes exactly."""
    if not all(expert.is_adapter for expert in experts):
        return False
    return sums_deltas(method, parameters)


def sums_deltas(method: str, parameters: MergeParameters) -> bool:
    """Whether a method adds a weighted sum of deltas to the base (true of full checkpoints as well)."""
    return method == "task_arithmetic" or (method == "linear" and parameters.normalize is not False)


def merge_weights(
    retriever: Retriever,
    experts: Sequence[Expert],
    weights_KS: np.ndarray,
    *,
    method: str,
    parameters: MergeParameters,
    layout: Layout | None = None,
) -> None:
    """Merge experts into the retriever's weights by a mergekit method; changes the retriever.

    `weights_KS` are the method's own weights, one per expert and segment. Random methods (DARE, DELLA) draw
    from `parameters.seed` and the tensor's name. Raises RecipeError when the method refuses the experts or
    parameters, ModelError when an expert's tensors do not fit the base.
    """
    import torch
    from mergekit import merge_methods

    layout = layout or Layout()
    kernel = merge_methods.get(method)
    readers = [_Reader(expert) for expert in experts]
    with torch.no_grad():
        for name, tensor in base_tensors(retriever).items():
            base = tensor.detach().float().cpu()
            versions = [reader.tensor(name, base) for reader in readers]
            segment = layout.segment(name)
            if layout.keeps(name):
                merged = base if layout.kept_from is None else versions[layout.kept_from]
            elif segment is None:
                merged = base
            else:
                weights_K = weights_KS[:, segment]
                with torch.random.fork_rng(devices=[]):
                    torch.manual_seed(_tensor_seed(parameters.seed, name))
                    merged = _merge_tensor(kernel, base, versions, weights_K, parameters, name)
            tensor.copy_(merged.to(tensor.dtype))


def _merge_tensor(
    kernel: Any,
    base: torch.Tensor,
    versions: Sequence[torch.Tensor],
    weights_K: np.ndarray,
    parameters: MergeParameters,
    name: str,
) -> torch.Tensor:
    import torch
    from mergekit.merge_methods import BasePolicy
    from mergekit.merge_methods.api import merge_tensors

    contract = kernel.spec.contract
    ids: list[str | int] = list(range(len(versions)))
    tensors = list(versions)
    # of two experts, a method for two models (SLERP) takes the first as its start, not the base
    between_experts = contract.max_inputs == len(versions) == 2
    if contract.base in (BasePolicy.REQUIRED, BasePolicy.OPTIONAL) and not between_experts:
        ids, tensors = [BASE, *ids], [base, *tensors]
    start = 0 if contract.base in (BasePolicy.REQUIRED, BasePolicy.OPTIONAL) else None
    try:
        return merge_tensors(
            tensors, kernel, ids=ids, base_index=start, name=name, dtype=torch.float32,
            parameters=_bind(kernel.spec, weights_K, parameters),
        )  # fmt: skip
    except (ValueError, TypeError) as problem:
        raise RecipeError(
            f"method {kernel.spec.name}: mergekit refuses it for {len(versions)} experts ({problem})."
        ) from problem


def _bind(spec: Any, weights_K: np.ndarray, parameters: MergeParameters) -> dict[str, Any]:
    """The method's parameters; numbers that go by expert become a mapping by the expert's index."""
    known = {parameter.name for parameter in spec.parameters}
    values: dict[str, Any] = {}
    for key, value in parameters.given().items():
        if key not in known:
            names = ", ".join(sorted(known)) or "none"
            raise RecipeError(f"parameters: method {spec.name} has no {key}; it has {names}.")
        values[key] = dict(enumerate(value)) if isinstance(value, tuple) else value
    if "weight" in known:
        values["weight"] = {index: float(weight) for index, weight in enumerate(weights_K)}
    return values


def _tensor_seed(seed: int, name: str) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed} {name}".encode()).digest()[:7], "little")


class _Reader:
    """An expert's version of a tensor: the base's plus its delta, or the one in its checkpoint's files."""

    def __init__(self, expert: Expert) -> None:
        self._expert = expert
        self._files = {} if expert.is_adapter else _checkpoint_index(expert)

    def tensor(self, name: str, base: torch.Tensor) -> torch.Tensor:
        """The tensor in float32, of the base's shape."""
        if self._expert.is_adapter:
            layer = self._expert.layers.get(name.removesuffix(".weight"))
            return base if layer is None else base + layer.matrix()
        if name not in self._files:
            raise ModelError(
                f"{self._expert.path}: expert {self._expert.name!r} has no tensor {name} of the base."
            )
        from safetensors import safe_open

        path, key = self._files[name]
        with safe_open(path, "pt") as stream:
            tensor = stream.get_tensor(key).float()
        if tensor.shape != base.shape:
            raise ModelError(
                f"{self._expert.path}: expert {self._expert.name!r} has {name} as {tuple(tensor.shape)}, "
                f"the base {tuple(base.shape)}; only models of one architecture can be merged."
            )
        return tensor


def _checkpoint_index(expert: Expert) -> dict[str, tuple[str, str]]:
    """File and key of each tensor of a checkpoint, by its name inside the backbone."""
    from safetensors import safe_open

    index = {}
    for path in sorted(expert.path.glob("*.safetensors")):
        with safe_open(path, "pt") as stream:
            for key in stream.keys():  # noqa: SIM118 (safe_open is no mapping)
                index[plain_name(key)] = (str(path), key)
    if not index:
        raise ModelError(
            f"{expert.path}: expert {expert.name!r} holds no safetensors weights; save it as such."
        )
    return index
