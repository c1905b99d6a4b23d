"""Whether the model hub has a model, asked once and quickly: the libraries that load one try for a minute and more.

In: a hub id. Out: nothing, or one sentence. A model in the hub's cache needs no network.
"""

from __future__ import annotations

from medley.errors import ModelError

TIMEOUT_S = 10.0
"""How long the hub may take to answer."""


def check_hub_model(name: str) -> None:
    """Return if a model is in the hub's cache or on the hub.

    Raises ModelError, within seconds also without a network, when the hub has no such model or cannot be reached.
    """
    import huggingface_hub
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
    )

    try:
        if isinstance(huggingface_hub.try_to_load_from_cache(name, "config.json"), str):
            return
        huggingface_hub.HfApi().model_info(name, timeout=TIMEOUT_S)
    except GatedRepoError as problem:
        raise ModelError(
            f"{name}: its owners ask you to accept their terms; do so on the model's page and log in (`hf auth login`)."
        ) from problem
    except (RepositoryNotFoundError, HFValidationError) as problem:
        raise ModelError(
            f"{name}: no folder here and no public model on the hub has that name; check it, or log in."
        ) from problem
    except OfflineModeIsEnabled as problem:
        raise ModelError(
            f"{name}: is no folder here and not in the hub's cache, and HF_HUB_OFFLINE is set; unset it, or check the "
            "name."
        ) from problem
    except Exception as problem:  # the HTTP library's own errors, whichever it is (requests, httpx)
        reason = (str(problem) or type(problem).__name__).splitlines()[0]
        raise ModelError(
            f"{name}: is no folder here and not in the hub's cache, and the hub cannot be reached ({reason}); "
            "check the path, or go online."
        ) from problem
