"""What the name of a model stands for: the bundled base, a folder or a hub id; what it is, and what it is made of.

In: a name as recipes and commands give it. Out: what transformers opens, a fingerprint, or one sentence why not.
"""

from __future__ import annotations

from pathlib import Path

from medley.collections import BUNDLED
from medley.errors import ModelError
from medley.fingerprint import fingerprint, fingerprint_folder
from medley.hub import check_hub_model


def resolve_base(base: str) -> str:
    """Turn a recipe's `base` into what transformers opens: `tiny` is the bundled one, a path is expanded.

    Raises ModelError for a path that does not exist.
    """
    if base == "tiny":
        return str(BUNDLED / "tiny")
    path = Path(base).expanduser()
    if path.exists():
        if not (path / "config.json").is_file() and not (path / "modules.json").is_file():
            raise ModelError(
                f"{base}: the folder has no config.json, so it is no model; point at a model folder."
            )
        return str(path)
    if base.startswith((".", "/", "~")) or base.count("/") > 1:
        raise ModelError(f"{base}: no such model folder; check the path of the base.")
    return base


def location_of(name: str) -> str:
    """`resolve_base`, and for a hub id the certainty that it can be had. Raises ModelError."""
    location = resolve_base(name)
    if not Path(location).is_dir():
        check_hub_model(location)
    return location


def model_identity(name: str) -> str:
    """Fingerprint of a model that is not loaded yet: a folder's content, or a hub id with its commit.

    Raises ModelError when a hub model can neither be asked for nor is in the cache.
    """
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


def check_decoder(base: str) -> None:
    """Refuse a base that is no decoder-only language model (an encoder such as BERT, or T5).

    Raises ModelError naming the architecture; also for a hub id that cannot be fetched.
    """
    location = location_of(base)
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    )

    try:
        config = AutoConfig.from_pretrained(location)
    except (OSError, ValueError) as problem:
        reason = str(problem).splitlines()[0]
        raise ModelError(
            f"{base}: cannot be opened as a language model ({reason}); check its name."
        ) from problem
    kind = config.model_type
    if (
        config.is_encoder_decoder
        or kind not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
        or kind in MODEL_FOR_MASKED_LM_MAPPING_NAMES
    ):
        raise ModelError(
            f"{base}: is a {kind} model, which is no decoder-only language model; "
            "choose a base such as Qwen3, Llama, Mistral, Gemma, Phi-3 or `tiny`."
        )
