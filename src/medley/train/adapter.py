"""Putting a fresh LoRA adapter on a retriever's decoder, and taking it off: one base serves all experts in turn."""

from __future__ import annotations

from typing import TYPE_CHECKING

from medley.adapter_file import check_mergeable
from medley.backbone import backbone
from medley.encoder import Retriever
from medley.errors import InputError
from medley.train.settings import LoraSettings

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer


def add_adapter(model: SentenceTransformer, lora: LoraSettings) -> None:
    """Put a fresh LoRA adapter on the decoder inside the model; the base's own weights stay as they are.

    The adapter starts as the identity (B is zero) and trains in float32 whatever the base's dtype.
    """
    from peft import LoraConfig

    given = {
        "r": lora.rank, "lora_alpha": lora.alpha, "lora_dropout": lora.dropout, "target_modules": lora.targets,
        "bias": "none",
    }  # fmt: skip
    try:
        config = LoraConfig(**(given | lora.options))
    except (TypeError, ValueError) as problem:
        raise InputError(
            f"train.lora.options: PEFT's LoraConfig refuses them ({problem}); see its documentation."
        ) from problem
    check_mergeable(config.to_dict(), "train.lora.options")
    model.add_adapter(config)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.data.float()


def remove_adapter(retriever: Retriever) -> None:
    """Take every PEFT adapter off a retriever's decoder; its own weights are what they were before."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    decoder = backbone(retriever)
    for name, module in list(decoder.named_modules()):
        if isinstance(module, BaseTunerLayer):
            parent, _, own = name.rpartition(".")
            setattr(decoder.get_submodule(parent), own, module.get_base_layer())
    if hasattr(decoder, "peft_config"):
        del decoder.peft_config
        decoder._hf_peft_config_loaded = False
