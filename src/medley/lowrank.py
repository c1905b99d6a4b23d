"""Low-rank deltas on the linear layers of a backbone: attach, rescale, detach, fold.

A delta on a layer is B diag(scale) A, so the layer computes y = W x + B (scale * (A x)). It is added by a
forward hook; A, B and scale are buffers of the layer, so they follow its device and count in a retriever's
identity(). Detaching removes both and leaves the layer exactly as it was. The order and the dtypes are
PEFT's: the delta is computed in its own dtype (float32) and the sum is cast back to the layer's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from medley.backbone import backbone
from medley.encoder import Retriever
from medley.errors import ModelError

if TYPE_CHECKING:
    import torch

DOWN, UP, SCALE = "medley_down", "medley_up", "medley_scale"


@dataclass(frozen=True)
class LowRank:
    """The delta of one linear layer: `down` (R, I) is LoRA's A, `up` (O, R) its B, `scale` (R,) a factor per
    rank."""

    down: torch.Tensor
    up: torch.Tensor
    scale: torch.Tensor

    @property
    def rank(self) -> int:
        """Number of ranks."""
        return self.down.shape[0]

    def matrix(self) -> torch.Tensor:
        """The full matrix (O, I), in float32."""
        return (self.up.float() * self.scale.float()) @ self.down.float()


def attach(retriever: Retriever, deltas: Mapping[str, LowRank], *, where: str = "the adapter") -> None:
    """Add a delta to each named linear layer, in the dtype of that layer's weights.

    A bfloat16 base computes its deltas in bfloat16 too: each is off by 2^-9 of itself, for less float32
    work. Open the base in float32 where that matters (the export gate does).

    Raises ModelError when a layer is missing, not linear, of another size, or carries a delta already.
    """

    modules = linear_layers(retriever, deltas, where=where)
    for name, module in modules.items():
        if hasattr(module, SCALE):
            raise ModelError(f"{where}: layer {name} carries a delta already; detach that first.")
        weight, delta = module.weight, deltas[name]
        for buffer, tensor in ((DOWN, delta.down), (UP, delta.up), (SCALE, delta.scale)):
            module.register_buffer(buffer, tensor.to(weight.device, weight.dtype, copy=True).contiguous())
        module.medley_hook = module.register_forward_hook(_add_delta)


def linear_layers(retriever: Retriever, deltas: Mapping[str, LowRank], *, where: str) -> dict[str, Any]:
    """The layers that deltas belong to, by name. Raises ModelError where one does not fit."""
    import torch

    modules = dict(backbone(retriever).named_modules())
    found = {}
    for name, delta in deltas.items():
        module = modules.get(name)
        if module is None:
            raise ModelError(
                f"{where}: the base has no layer {name}; use the base that the expert was trained on."
            )
        if not isinstance(module, torch.nn.Linear):
            raise ModelError(
                f"{where}: layer {name} is a {type(module).__name__}, only nn.Linear can be merged."
            )
        shape = (delta.up.shape[0], delta.down.shape[1])
        if tuple(module.weight.shape) != shape:
            raise ModelError(
                f"{where}: layer {name} has weights {tuple(module.weight.shape)} in the base, {shape} in the "
                "adapter; use the base that the expert was trained on."
            )
        found[name] = module
    return found


def _add_delta(module: Any, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
    import torch.nn.functional as F  # noqa: N812 (its usual name)

    ranks = F.linear(inputs[0].to(module.medley_down.dtype), module.medley_down) * module.medley_scale
    return (output + F.linear(ranks, module.medley_up)).to(output.dtype)


def rescale(module: Any, scale_R: torch.Tensor) -> None:
    """Set the factors of an attached layer's ranks."""
    module.medley_scale.copy_(scale_R)


def attached(retriever: Retriever) -> list[str]:
    """Names of the layers that carry a delta."""
    return [name for name, module in backbone(retriever).named_modules() if hasattr(module, SCALE)]


def detach(retriever: Retriever, names: Iterable[str] | None = None) -> None:
    """Take the deltas away (of all layers where no names are given); the model is exactly what it was
    before."""
    modules = dict(backbone(retriever).named_modules())
    for name in attached(retriever) if names is None else names:
        module = modules[name]
        module.medley_hook.remove()
        del module.medley_hook
        for buffer in (DOWN, UP, SCALE):
            delattr(module, buffer)


def fold(retriever: Retriever, deltas: Mapping[str, LowRank], *, where: str = "the adapter") -> None:
    """Add each delta to its layer's weights, in float32, then cast to the weights' dtype; changes the
    retriever."""
    import torch

    with torch.no_grad():
        for name, module in linear_layers(retriever, deltas, where=where).items():
            weight = module.weight
            weight.copy_((weight.float() + deltas[name].matrix().to(weight.device)).to(weight.dtype))
