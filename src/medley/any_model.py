"""A model wherever a model is asked for: a retriever, an adapter on its base, or a bare language model.

In: a folder or hub id as commands and recipes name it. Out: an open retriever. What its files do not say, and is
therefore chosen here, is told.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from medley.encoder import Retriever, RetrieverSettings, build_retriever, open_retriever
from medley.errors import ModelError
from medley.expert import open_expert
from medley.files import read_json
from medley.model_name import ADAPTER_CONFIG, adapter_base, check_decoder, file_of, is_adapter, location_of
from medley.progress import say
from medley.traits import as_a_recipe


def open_model(
    name: str, *, base: str | None = None, dtype: str | None = None, device: str | None = None
) -> Retriever:
    """Open a retriever by folder or hub id, an adapter folder, or a language model as a recipe's base is opened.

    `base` is an adapter's, where it does not lie where the folder says. Raises ModelError where nothing can be opened.
    """
    if is_adapter(name):
        folder = Path(name).expanduser()
        if not (folder / "modules.json").is_file():
            return open_expert(folder, base, dtype=dtype, device=device)
        with _on_base(folder, adapter_base(folder, base)) as whole:
            return open_retriever(str(whole), device=device, dtype=dtype)
    location = location_of(name)
    if file_of(location, "modules.json") is not None:
        return open_retriever(name, dtype=dtype, device=device)
    if _is_decoder(name):
        settings = RetrieverSettings()
        settings = settings.model_copy(update={"dtype": dtype or settings.dtype})
        say(f"{name}: is a language model, no retriever, {as_a_recipe(settings)}")
        return build_retriever(name, settings, device=device)
    say(f"{name}: does not say how text becomes a vector, so its tokens are averaged, without prompts")
    return open_retriever(name, dtype=dtype, device=device)


def _is_decoder(name: str) -> bool:
    try:
        check_decoder(name)
    except ModelError:
        return False
    return True


@contextmanager
def _on_base(folder: Path, base: str) -> Iterator[Path]:
    """The folder of a sentence-transformers model that is an adapter, as a folder that names its base's place."""
    with tempfile.TemporaryDirectory() as place:
        whole = Path(place) / folder.resolve().name
        whole.mkdir()
        for path in folder.resolve().iterdir():
            if path.name != ADAPTER_CONFIG:
                (whole / path.name).symlink_to(path)
        config = read_json(folder / ADAPTER_CONFIG, ModelError) | {
            "base_model_name_or_path": location_of(base)
        }
        (whole / ADAPTER_CONFIG).write_text(json.dumps(config), encoding="utf-8")
        yield whole
