"""What the name of a model stands for: the bundled base, a folder or a hub id; what it is, and what it is made of.

In: a name as recipes and commands give it. Out: what transformers opens, a fingerprint, or one sentence why not.
"""

from __future__ import annotations

from pathlib import Path

from medley.collections import BUNDLED
from medley.errors import ModelError
from medley.files import read_json
from medley.fingerprint import fingerprint, fingerprint_folder
from medley.hub import check_hub_model
from medley.loading import opening
from medley.text_file import as_path

ADAPTER_CONFIG = "adapter_config.json"


def resolve_base(base: str) -> str:
    """Turn a recipe's `base` into what transformers opens: `tiny` is the bundled one, a path is expanded.

    Raises ModelError for a path that does not exist.
    """
    if base == "tiny":
        return str(BUNDLED / "tiny")
    path = as_path(base, ModelError)
    if path.exists():
        if not (path / "config.json").is_file() and not (path / "modules.json").is_file():
            if is_adapter(base):
                raise ModelError(f"{base}: is an adapter, no whole model; give the base that it belongs to.")
            raise ModelError(
                f"{base}: the folder has no config.json, so it is no model; point at a model folder."
            )
        return str(path)
    if base.startswith((".", "/", "~")) or base.count("/") > 1:
        raise ModelError(f"{base}: no such model folder; check the path of the base.")
    return base


def adapter_base(folder: Path, base: str | None = None) -> str:
    """The base of an adapter folder: `base` where it is given, or else the one that its adapter_config.json names.

    A relative path counts from the folder, then from the working directory. Raises ModelError where there is none.
    """
    if base:
        return base
    config = read_json(folder / ADAPTER_CONFIG, ModelError)
    named = config.get("base_model_name_or_path") if isinstance(config, dict) else None
    if not named or not isinstance(named, str):
        raise ModelError(f"{folder}: its {ADAPTER_CONFIG} names no base; say which with --base.")
    beside = folder / Path(named).expanduser()
    if (beside / "config.json").is_file():
        return str(beside)
    try:
        resolve_base(named)
    except ModelError as problem:
        raise ModelError(
            f"{folder}: its {ADAPTER_CONFIG} names the base {named}, and no model lies there; "
            "say where it is with --base."
        ) from problem
    return named


def is_adapter(name: str) -> bool:
    """Whether a name stands for a folder with an adapter in it."""
    return (Path(name).expanduser() / ADAPTER_CONFIG).is_file()


def location_of(name: str) -> str:
    """`resolve_base`, and for a hub id the certainty that it can be had. Raises ModelError."""
    location = resolve_base(name)
    if not Path(location).is_dir():
        check_hub_model(location)
    return location


def model_identity(name: str, base: str | None = None) -> str:
    """Fingerprint of a model that is not loaded yet: a folder's content, or a hub id with its commit.

    An adapter's base counts too: `base`, or the one that its folder names.

    Raises ModelError when a hub model can neither be asked for nor is in the cache.
    """
    if is_adapter(name):
        folder = Path(name).expanduser()
        return fingerprint([fingerprint_folder(folder), model_identity(adapter_base(folder, base))])
    location = Path(resolve_base(name))
    if location.is_dir():
        return fingerprint_folder(location)
    import huggingface_hub

    try:
        return fingerprint([name, huggingface_hub.model_info(name, timeout=10).sha])
    except Exception as problem:  # the hub client raises many kinds; offline, the cached copy's commit counts
        config = huggingface_hub.try_to_load_from_cache(name, "config.json")
        if not isinstance(config, str):
            raise ModelError(
                f"{name}: is no folder here and the model hub cannot be asked; check the name or the network."
            ) from problem
        return fingerprint([name, Path(config).parent.name])


def file_of(location: str, name: str) -> Path | None:
    """A file of a model by its place there, None where it has none; a hub model's is fetched, or its cached copy."""
    folder = Path(location)
    if folder.is_dir():
        path = folder / name
        return path if path.is_file() else None
    from transformers.utils import cached_file

    fetched = cached_file(location, name, _raise_exceptions_for_missing_entries=False)
    return None if fetched is None else Path(fetched)


def is_decoder_type(model_type: str) -> bool:
    """Whether transformers knows a `model_type` as a decoder-only language model, causal unless it is told."""
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    )

    return (
        model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
        and model_type not in MODEL_FOR_MASKED_LM_MAPPING_NAMES
    )


def check_decoder(base: str) -> None:
    """Refuse a base that is no decoder-only language model (an encoder such as BERT, or T5).

    Raises ModelError naming the architecture; also for a hub id that cannot be fetched.
    """
    location = location_of(base)
    from transformers import AutoConfig

    with opening(base, "a language model"):
        config = AutoConfig.from_pretrained(location, trust_remote_code=False)
    if config.is_encoder_decoder or not is_decoder_type(config.model_type):
        raise ModelError(
            f"{base}: is a {config.model_type} model, which is no decoder-only language model; "
            "choose a base such as Qwen3, Llama, Mistral, Gemma, Phi-3 or `tiny`."
        )
