"""The files of a LoRA adapter, read and checked: adapter_config.json and adapter_model.safetensors.

In: a folder as PEFT writes it. Out: for each layer, by its name inside the backbone, A, B and the factor of B A.
What is not a plain delta, or does not fit together, is refused in one sentence.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medley.backbone import plain_name
from medley.errors import ModelError
from medley.files import read_json
from medley.finite import check_finite
from medley.lowrank import LowRank
from medley.model_name import ADAPTER_CONFIG

if TYPE_CHECKING:
    import torch

ADAPTER_WEIGHTS = "adapter_model.safetensors"
LARGEST_FACTOR = 1e4
"""Most that an update may be multiplied by: alpha / r is 1 or 2 as a rule, and float16 ends at 65,504."""
PATTERN_SECONDS = 2.0
"""How long an adapter's patterns may take: a nested quantifier, which PEFT would follow for hours, ends here."""
REFUSED = (
    "use_dora", "lora_bias", "modules_to_save", "fan_in_fan_out", "layer_replication", "target_parameters",
    "trainable_token_indices", "alora_invocation_tokens", "use_qalora", "use_bdlora", "arrow_config",
    "kasa_config", "velora_config", "monteclora_config",
)  # fmt: skip
"""Options of PEFT's LoRA under which the delta is not B A times a number."""
REFUSED_INITS = ("pissa", "olora", "corda", "loftq", "lora_ga", "eva_base")
"""Initialisations that change the base's weights, so the adapter is no delta to the base as published."""


def read_layers(folder: Path) -> dict[str, LowRank]:
    """The deltas of an adapter folder. Raises ModelError naming the file and what in it is wrong."""
    config = read_json(folder / ADAPTER_CONFIG, ModelError)
    if not isinstance(config, dict):
        raise ModelError(f"{folder / ADAPTER_CONFIG}: is no JSON object; save the adapter again.")
    check_mergeable(config, str(folder))
    path = folder / ADAPTER_WEIGHTS
    pairs = _pairs(_tensors(path), path)
    factors = _factors(
        config, {module: down.shape[0] for module, (down, _) in pairs.items()}, folder / ADAPTER_CONFIG
    )
    import torch

    return {
        plain_name(module): LowRank(down, up, torch.full((down.shape[0],), factors[module]))
        for module, (down, up) in pairs.items()
    }


def check_mergeable(config: Mapping[str, Any], where: str) -> None:
    """Refuse adapters whose delta is not B A times a number. Raises ModelError naming the option."""
    if config.get("peft_type") != "LORA":
        raise ModelError(
            f"{where}: is a {config.get('peft_type')} adapter; only LoRA adapters can be merged."
        )
    if config.get("bias", "none") != "none":
        raise ModelError(
            f"{where}: was trained with bias={config['bias']!r}, which no low-rank merge can hold."
        )
    for option in REFUSED:
        if config.get(option):
            raise ModelError(
                f"{where}: was trained with {option}, so its effect is not a low-rank delta; "
                "train it without that option, or fold it into full weights with PEFT and merge those."
            )
    start = config.get("init_lora_weights", True)
    if isinstance(start, str) and start.startswith(REFUSED_INITS):
        raise ModelError(
            f"{where}: was initialised by {start}, which changes the base; "
            "convert it to plain LoRA with PEFT first."
        )


def _tensors(path: Path) -> dict[str, torch.Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.is_file():
        raise ModelError(f"{path}: no such file; save the adapter as safetensors.")
    try:
        tensors = load_file(path)
    except SafetensorError as problem:
        raise ModelError(f"{path}: not a complete safetensors file ({problem}); copy it again.") from problem
    check_finite(tensors.items(), str(path))
    return tensors


def _pairs(tensors: Mapping[str, torch.Tensor], path: Path) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """A (R, I) and B (O, R) of each module, by PEFT's name of it."""
    found: dict[str, dict[str, torch.Tensor]] = {}
    for key in sorted(tensors):
        module, side, rest = key.partition(".lora_A") if ".lora_A" in key else key.partition(".lora_B")
        if rest not in (".weight", ".default.weight"):
            raise ModelError(f"{path}: {_other_tensor(key)}")
        found.setdefault(module.removeprefix("base_model.model."), {})[side] = tensors[key]
    if not found:
        raise ModelError(f"{path}: holds no LoRA layer.")
    for module, sides in found.items():
        for side, other in ((".lora_A", ".lora_B"), (".lora_B", ".lora_A")):
            if side not in sides:
                raise ModelError(
                    f"{path}: has {module}{other} without its {side[1:]}; the file is incomplete; "
                    "save the adapter again."
                )
        down, up = sides[".lora_A"], sides[".lora_B"]
        if not (
            down.ndim == up.ndim == 2 and down.shape[0] == up.shape[1] and 0 not in (*down.shape, *up.shape)
        ):
            raise ModelError(
                f"{path}: {module} has lora_A {tuple(down.shape)} and lora_B {tuple(up.shape)}, which are not "
                "(rank, inputs) and (outputs, rank); save the adapter again."
            )
        if not (down.is_floating_point() and up.is_floating_point()):
            raise ModelError(
                f"{path}: {module} is not stored as floating-point numbers; save the adapter again."
            )
    return {module: (sides[".lora_A"], sides[".lora_B"]) for module, sides in found.items()}


def _other_tensor(key: str) -> str:
    """What a tensor that is no LoRA layer's is doing in the file, and what to do."""
    whole = "fold the adapter into full weights with PEFT (`merge_and_unload`) and merge those"
    if "lora_embedding_" in key:
        return f"holds {key}, an update of the embeddings, which cannot be merged as a layer's; {whole}."
    if ".lora_" not in key and ("embed" in key or "lm_head" in key or "wte" in key):
        return (
            f"holds {key} whole, as PEFT saves it where embeddings were resized for new tokens or trained; {whole}, "
            "with `keep` for its tokenizer and embeddings."
        )
    return f"holds {key}, which belongs to no plain LoRA layer, so it cannot be merged."


def _factors(config: Mapping[str, Any], ranks: Mapping[str, int], where: Path) -> dict[str, float]:
    """PEFT's factor of each module: alpha / r, or alpha / sqrt(r) with rsLoRA (arXiv 2312.03732); alpha and r may
    differ by module. Raises ModelError where the file's ranks are not the configuration's."""
    modules = list(ranks)
    alphas = _by_module(config, "lora_alpha", "alpha_pattern", 8, modules, where)
    expected = _by_module(config, "r", "rank_pattern", 8, modules, where)
    factors = {}
    for module, rank in ranks.items():
        if expected[module] != rank:
            raise ModelError(
                f"{where}: says rank {expected[module]:g} for {module}, and its weights have rank {rank}; "
                "take both files from one saved adapter."
            )
        factors[module] = alphas[module] / (math.sqrt(rank) if config.get("use_rslora") else rank)
        if factors[module] > LARGEST_FACTOR:
            raise ModelError(
                f"{where}: lora_alpha {alphas[module]:g} with rank {rank} multiplies the update of {module} by "
                f"{factors[module]:.3g}, more than {LARGEST_FACTOR:g}; correct it."
            )
    return factors


def _by_module(
    config: Mapping[str, Any],
    key: str,
    patterns_key: str,
    default: float,
    modules: Sequence[str],
    where: Path,
) -> dict[str, float]:
    """A setting of each module: that of the first pattern that matches its name or its end, as in PEFT."""
    import regex

    plain = _positive(config.get(key, default), f"{where}: {key}")
    patterns = config.get(patterns_key) or {}
    if not isinstance(patterns, Mapping):
        raise ModelError(f"{where}: {patterns_key} must give a number for each pattern.")
    values = {
        pattern: _positive(value, f"{where}: {patterns_key}.{pattern}") for pattern, value in patterns.items()
    }
    deadline = time.monotonic() + PATTERN_SECONDS
    found = {}
    for module in modules:
        found[module] = plain
        for pattern, value in values.items():
            left = max(1e-3, deadline - time.monotonic())
            try:
                matches = regex.match(rf"(.*\.)?({pattern})$", module, timeout=left)
            except TimeoutError as problem:
                raise ModelError(
                    f"{where}: {patterns_key}: {pattern!r} takes longer than {PATTERN_SECONDS:g} s to compare with the "
                    "layers' names; write it without nested repetitions."
                ) from problem
            except regex.error as problem:
                raise ModelError(
                    f"{where}: {patterns_key}: {pattern!r} is no regular expression ({problem})."
                ) from problem
            if matches:
                found[module] = value
                break
    return found


def _positive(value: Any, what: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 1e30:
        raise ModelError(
            f"{what} must be a number above 0, not {value!r:.40}; correct it, or save the adapter again."
        )
    return float(value)
