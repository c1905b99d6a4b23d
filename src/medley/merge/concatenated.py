"""Experts' adapters on one base as one concatenated adapter: a candidate costs a rescale and writes nothing.

sum_k c_k s_k B_k A_k = [B_1 ... B_K] diag(c_1 s_1, ..., c_K s_K) [A_1; ...; A_K], so the merge is exactly an
adapter of rank sum(r_k) whose per-rank factors carry the coefficients. (Adding the A's and the B's
separately, as PEFT's `linear` combination does, is another matrix.) The same sum can be folded into the
weights or written as an adapter.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from medley.backbone import backbone
from medley.encoder import FORMAT, Retriever
from medley.expert import Expert, write_adapter
from medley.lowrank import LowRank, attach, detach, fold, rescale
from medley.merge.coefficients import Layout

if TYPE_CHECKING:
    import torch


class ConcatenatedAdapter:
    """All experts attached to a retriever at once; coefficients (of the deltas) start at zero.

    A context manager; leaving it restores the retriever exactly.
    """

    def __init__(
        self, retriever: Retriever, experts: Sequence[Expert], *, layout: Layout | None = None
    ) -> None:
        self.experts = tuple(experts)
        self.layout = layout or Layout()
        self._retriever = retriever
        self._layers = layer_names(experts)
        zeros_KS = np.zeros((len(experts), self.layout.segment_count))
        attach(retriever, concatenate(experts, zeros_KS, layout=self.layout), where="the merged experts")
        modules = dict(backbone(retriever).named_modules())
        self._modules: dict[str, Any] = {name: modules[name] for name in self._layers}

    def set_coefficients(self, coefficients_KS: np.ndarray) -> None:
        """Rescale to other coefficients of the deltas, shape (K, S)."""
        _check_shape(coefficients_KS, self.experts, self.layout)
        for name, module in self._modules.items():
            rescale(
                module, _scale(self.experts, name, self.layout.of_tensor(f"{name}.weight", coefficients_KS))
            )

    def remove(self) -> None:
        """Take the adapter away; a second call does nothing."""
        detach(self._retriever, self._modules)
        self._modules = {}

    def __enter__(self) -> ConcatenatedAdapter:
        """The adapter itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Take the adapter away."""
        self.remove()


def layer_names(experts: Sequence[Expert]) -> list[str]:
    """Every layer that an expert changes, in the order of the first expert that does."""
    return list(dict.fromkeys(name for expert in experts for name in expert.layers))


def concatenate(
    experts: Sequence[Expert], coefficients_KS: np.ndarray, *, layout: Layout | None = None
) -> dict[str, LowRank]:
    """The concatenated adapter of each layer, with coefficients of the deltas of shape (K, S)."""
    import torch

    layout = layout or Layout()
    _check_shape(coefficients_KS, experts, layout)
    merged = {}
    for name in layer_names(experts):
        parts = [expert.layers[name] for expert in experts if name in expert.layers]
        merged[name] = LowRank(
            down=torch.cat([part.down.float() for part in parts], dim=0),
            up=torch.cat([part.up.float() for part in parts], dim=1),
            scale=_scale(experts, name, layout.of_tensor(f"{name}.weight", coefficients_KS)),
        )
    return merged


def _scale(experts: Sequence[Expert], name: str, coefficients_K: np.ndarray) -> torch.Tensor:
    import torch

    pairs = zip(experts, coefficients_K, strict=True)
    return torch.cat([e.layers[name].scale.float() * float(value) for e, value in pairs if name in e.layers])


def _check_shape(coefficients_KS: np.ndarray, experts: Sequence[Expert], layout: Layout) -> None:
    expected = (len(experts), layout.segment_count)
    if coefficients_KS.shape != expected:
        raise ValueError(
            f"coefficients have shape {coefficients_KS.shape}, expected (experts, segments) = {expected}"
        )


def dense_merge(
    retriever: Retriever,
    experts: Sequence[Expert],
    coefficients_KS: np.ndarray,
    *,
    layout: Layout | None = None,
) -> None:
    """Fold the merged deltas into the retriever's weights, in float32 before the cast; changes the
    retriever."""
    fold(retriever, concatenate(experts, coefficients_KS, layout=layout), where="the merged experts")


def merge_adapters(
    experts: Sequence[Expert],
    coefficients_KS: np.ndarray,
    folder: Path,
    *,
    layout: Layout | None = None,
    extra: Mapping[str, Any] | None = None,
) -> None:
    """Write the merge as one PEFT adapter folder of rank sum(r_k), an expert folder itself.

    The factors are multiplied into B, so alpha equals the rank and every loader computes B A as it stands.
    """
    tensors = {}
    rank_pattern: dict[str, int] = {}
    for name, layer in concatenate(experts, coefficients_KS, layout=layout).items():
        tensors[f"base_model.model.{name}.lora_A.weight"] = layer.down
        tensors[f"base_model.model.{name}.lora_B.weight"] = layer.up * layer.scale
        rank_pattern[name] = layer.rank
    rank = max(rank_pattern.values())
    patterns = {name: value for name, value in rank_pattern.items() if value != rank}
    first = experts[0].description
    config = {
        "peft_type": "LORA", "task_type": None, "base_model_name_or_path": first.get("base"),
        "inference_mode": True,
        "r": rank, "lora_alpha": rank, "lora_dropout": 0.0, "bias": "none", "fan_in_fan_out": False,
        "use_rslora": False, "use_dora": False, "init_lora_weights": True, "modules_to_save": None,
        "target_modules": sorted(rank_pattern), "rank_pattern": patterns, "alpha_pattern": patterns,
    }  # fmt: skip
    shared = {key: first[key] for key in ("template", "base", "base_identity", "retriever") if key in first}
    instructions = {expert.instruction for expert in experts}
    instruction = instructions.pop() if len(instructions) == 1 else ""
    description = {"format": FORMAT, "kind": "expert", **shared, "instruction": instruction, **(extra or {})}
    write_adapter(folder, tensors, config=config, description=description)
