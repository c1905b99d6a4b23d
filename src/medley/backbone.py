"""The decoder inside a retriever: its own weights by name, and the fingerprint by which experts know their base."""

from __future__ import annotations

import hashlib
import re
from typing import TYPE_CHECKING, Any

from medley.encoder import Retriever, whole
from medley.fingerprint import fingerprint

if TYPE_CHECKING:
    import torch


def backbone(retriever: Retriever) -> Any:
    """The decoder inside a retriever: a transformers model without a head."""
    return retriever.model[0].model


def base_fingerprint(retriever: Retriever) -> str:
    """Fingerprint of a retriever's backbone: its weights without adapters, prompts or pooling."""
    return backbone_fingerprint(backbone(retriever))


def backbone_fingerprint(model: Any) -> str:
    """Fingerprint of the weights of a decoder without a head.

    Weights are hashed as bfloat16, so opening the same base in float32 or bfloat16 gives the same value.
    """
    import torch

    digest = hashlib.sha256()
    for name, tensor in sorted(_own_tensors(model).items()):
        data = whole(tensor).detach().to(torch.bfloat16).contiguous().cpu()
        digest.update(f"{name} {tuple(data.shape)}".encode())
        digest.update(data.view(torch.uint8).numpy().data if data.ndim else data.float().numpy().tobytes())
    return fingerprint(digest.hexdigest())


def base_tensors(retriever: Retriever) -> dict[str, torch.Tensor]:
    """The backbone's own floating-point weights by name, whatever adapter sits on it."""
    return _own_tensors(backbone(retriever))


def _own_tensors(model: Any) -> dict[str, torch.Tensor]:
    tensors = {}
    for name, tensor in model.named_parameters():
        if ".lora_" not in name:
            tensors[plain_name(name).replace(".base_layer.", ".")] = tensor
    return tensors


def plain_name(name: str) -> str:
    """A tensor's name inside the backbone: PEFT's prefix and the head model's `model.` are taken off."""
    return re.sub(r"^(base_model\.model\.)?(model\.)*", "", name)
