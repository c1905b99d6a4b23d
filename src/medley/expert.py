"""Experts: a base plus a LoRA adapter in a folder, or a full checkpoint of the base's shape.

An adapter folder holds PEFT's `adapter_config.json` and `adapter_model.safetensors`, and `medley.json` with
the template, the instruction, the retriever's settings and the base's fingerprint. Adapters that PEFT saved
from a model with a head, and without medley.json, are read too: layers go by their name inside the backbone
(`layers.0.self_attn.q_proj`). Kinds of LoRA whose delta is not B A times a number are refused, because every
tool that merges them as if it were is silently wrong (PEFT issue 3761).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from medley.adapter_file import ADAPTER_WEIGHTS, check_mergeable, read_layers
from medley.backbone import backbone, plain_name
from medley.encoder import (
    DESCRIPTION,
    Retriever,
    RetrieverSettings,
    build_retriever,
    describe,
    open_retriever,
    with_instruction,
)
from medley.errors import ModelError
from medley.files import explained_write_errors, write_json, writing
from medley.lowrank import LowRank, attach
from medley.model_name import ADAPTER_CONFIG, adapter_base, location_of
from medley.progress import say
from medley.traits import as_a_recipe, check_asked, describing, published_traits

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Expert:
    """An expert as merging needs it.

    `layers` holds the delta of each linear layer by its name inside the backbone; a full checkpoint has none.
    `description` is its medley.json, empty for a foreign folder.
    """

    name: str
    path: Path
    layers: Mapping[str, LowRank]
    description: Mapping[str, Any]
    shrink: float = 0.0
    """How far it is moved toward the base before it is merged: 0 not at all, 1 all the way."""

    @property
    def is_adapter(self) -> bool:
        """Whether it is an adapter; otherwise it is a full checkpoint."""
        return bool(self.layers)

    @property
    def rank(self) -> int:
        """The largest rank among its layers; 0 for a full checkpoint."""
        return max((layer.rank for layer in self.layers.values()), default=0)

    @property
    def instruction(self) -> str:
        """The instruction it was trained under, where it had one for all."""
        return str(self.description.get("instruction", ""))

    @property
    def settings(self) -> RetrieverSettings | None:
        """How its base was made a retriever; None where the folder does not say."""
        return _settings(self.description, self.path)


def save_expert(
    retriever: Retriever,
    folder: Path,
    *,
    base: str,
    base_identity: str,
    settings: RetrieverSettings,
    extra: Mapping[str, Any] | None = None,
) -> None:
    """Write the one PEFT adapter on a retriever's backbone as an expert folder; atomic.

    `base` is the name that the recipe gives, `base_identity` its base_fingerprint. Raises ModelError when the
    backbone carries no adapter, or one of a kind that cannot be merged.
    """
    tensors, config = adapter_content(backbone(retriever))
    description = describe(retriever) | {
        "kind": "expert", "base": base, "base_identity": base_identity,
        "retriever": settings.model_dump(mode="json") | {"max_length": retriever.model.max_seq_length},
    }  # fmt: skip
    write_adapter(
        folder, tensors, config=config | {"base_model_name_or_path": base},
        description=description | dict(extra or {}),
    )  # fmt: skip


def adapter_content(model: Any) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """The tensors and the configuration of the one PEFT adapter on a model, with a head or without.

    Raises ModelError when the model carries no adapter, or more than one.
    """
    from peft.utils import get_peft_model_state_dict

    configs = getattr(model, "peft_config", None) or {}
    if len(configs) != 1:
        raise ModelError(f"the model carries {len(configs)} adapters, an expert has exactly one.")
    adapter_name, config = next(iter(configs.items()))
    tensors = {
        f"base_model.model.{plain_name(name)}": tensor
        for name, tensor in get_peft_model_state_dict(model, adapter_name=adapter_name).items()
    }
    plain_config = {key: _plain(value) for key, value in config.to_dict().items()}
    return tensors, plain_config | {"inference_mode": True}


def write_adapter(
    folder: Path,
    tensors: Mapping[str, torch.Tensor],
    *,
    config: Mapping[str, Any],
    description: Mapping[str, Any],
) -> None:
    """Write an adapter folder in PEFT's layout with its medley.json; atomic."""
    from safetensors.torch import save_file

    check_mergeable(config, str(folder))
    with writing(folder) as temporary, explained_write_errors(folder):
        temporary.mkdir()
        contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in sorted(tensors.items())}
        save_file(contiguous, temporary / ADAPTER_WEIGHTS, metadata={"format": "pt"})
        write_json(temporary / ADAPTER_CONFIG, dict(config))
        write_json(temporary / DESCRIPTION, dict(description))


def _plain(value: Any) -> Any:
    if isinstance(value, (set, frozenset)):
        return sorted(value)
    return getattr(value, "value", value)


def read_expert(folder: Path, *, name: str | None = None) -> Expert:
    """Read an expert folder, adapter or full checkpoint; `name` is what the recipe calls it.

    Raises ModelError when the folder is neither, is damaged, or holds a kind of adapter that cannot be
    merged.
    """
    name = name or folder.name
    if not folder.is_dir():
        raise ModelError(f"{folder}: expert {name!r} is no folder here; check its path.")
    description = describing(str(folder))
    if not (folder / ADAPTER_CONFIG).is_file():
        if not (folder / "config.json").is_file():
            raise ModelError(
                f"{folder}: expert {name!r} has neither {ADAPTER_CONFIG} nor config.json; check its path."
            )
        return Expert(name, folder, {}, description)
    return Expert(name, folder, read_layers(folder), description)


def open_base(
    base: str,
    experts: Sequence[Expert],
    *,
    settings: RetrieverSettings | None = None,
    settled: Collection[str] = (),
    instruction: str | None = None,
    dtype: str = "float32",
    device: str | None = None,
) -> Retriever:
    """Open the base as the retriever that its experts were trained as.

    `settings` defaults to the experts' own, then to the base's where it is a finished retriever, then to
    RetrieverSettings(). `instruction` defaults to the experts', where all have the same. Raises ModelError where a
    finished retriever has other traits than the settings, but for those that are `settled`.
    """
    location = location_of(base)
    described = (expert.settings for expert in experts)
    settings = settings or next(filter(None, described), None)
    given = instruction is not None
    if instruction is None:
        instructions = {expert.instruction for expert in experts}
        instruction = instructions.pop() if len(instructions) == 1 else ""
        if instructions:
            say("the experts have instructions of their own, so the model that they make together has none")
    finished = published_traits(location) is not None
    if finished and (settings is None or not check_asked(base, location, settings, settled)):
        opened = open_retriever(base, device=device, dtype=dtype)
        takes = given or (instruction and opened.template is not None)
        return with_instruction(opened, instruction) if takes else opened
    settings = settings or RetrieverSettings()
    in_dtype = settings.model_copy(update={"dtype": dtype})
    return build_retriever(base, in_dtype, instruction=instruction, device=device, settled=settled)


def open_expert(
    folder: Path,
    base: str | None = None,
    settings: RetrieverSettings | None = None,
    *,
    device: str | None = None,
    dtype: str | None = None,
) -> Retriever:
    """Open base plus adapter (or a full checkpoint) as a retriever; settings default to medley.json's, the base to the
    one that the folder names.

    The adapter is attached, not folded, so it acts in float32 on a bfloat16 base as in training.
    """
    expert = read_expert(folder)
    if not expert.is_adapter and (folder / "modules.json").is_file():
        return open_retriever(str(folder), device=device, dtype=dtype)
    settings = settings or expert.settings
    dtype = dtype or (settings or RetrieverSettings()).dtype
    base = adapter_base(folder, base) if expert.is_adapter else str(folder)
    if settings is None and published_traits(location_of(base)) is None:
        say(f"{folder}: does not say how text becomes a vector, {as_a_recipe(RetrieverSettings())}")
    retriever = open_base(base, [expert], settings=settings, dtype=dtype, device=device)
    if expert.is_adapter:
        attach(retriever, expert.layers, where=str(folder))
    return retriever


def _settings(description: Mapping[str, Any], path: Path) -> RetrieverSettings | None:
    if "retriever" not in description:
        return None
    try:
        return RetrieverSettings.model_validate(description["retriever"])
    except ValidationError as problem:
        first = problem.errors()[0]
        raise ModelError(
            f"{path / DESCRIPTION}: retriever.{'.'.join(map(str, first['loc']))}: {first['msg']}."
        ) from problem
