"""A merge from checkpoints on disk to a checkpoint on disk: rows are read, merged and written, no model is loaded.

The result is a folder like the base's: its configuration, tokenizer, prompts and modules are copied, its tensors are
the merged ones under the same names. There is no gate, as nothing is known to encode; a retriever's merge goes
through model.py.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from medley.errors import ModelError
from medley.files import explained_write_errors, read_json, writing
from medley.finite import check_finite
from medley.loading import check_whole
from medley.merge.checkpoint import DTYPES, Checkpoint, local_folder, row_blocks, write_checkpoint
from medley.merge.coefficients import weights_array
from medley.merge.compatible import check_experts, check_layers
from medley.merge.fullweights import Streamed
from medley.merge.mergekit_file import settings_by_tensor
from medley.merge.opening import check_kinds, lay_out, read_experts, resolved
from medley.merge.settings import MergeFile
from medley.merge.sources import open_sources
from medley.traits import published_traits

if TYPE_CHECKING:
    import torch

WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".onnx", ".gguf", ".h5", ".msgpack", ".index.json")
"""Endings of files that hold weights, or say which file holds them: not copied."""
TOKENIZER_FILES = (
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "*.model",
)


def merge_to_checkpoint(file: MergeFile, folder: Path, *, card: str) -> None:
    """Write the merged checkpoint; atomic. `card` becomes README.md.

    Raises ModelError and RecipeError as open_merge does, except that base fingerprints are not compared: the base is
    never loaded.
    """
    import torch

    base_folder = local_folder(file.base)
    base = Checkpoint(base_folder, name="base")
    names = list(file.experts)
    experts = read_experts(file)
    check_whole(base_folder, file.base)
    target = published_traits(str(base_folder))  # its modules are copied
    check_experts(file.base, base_folder, experts, resolved(file), base_identity="", target=target)
    check_layers(file.base, {name: stored.shape for name, stored in base.tensors.items()}, experts)
    layer_count = int(read_json(base_folder / "config.json", ModelError)["num_hidden_layers"])
    layout = lay_out(file, list(base.tensors), layer_count)
    if layout.kinds:
        check_kinds(layout, experts, list(base.tensors))
    parameters = file.parameters.in_order(names)
    settings_of = None
    if file.mergekit is not None:
        settings_of = settings_by_tensor(file.mergekit, file.method, names, layer_count, seed=parameters.seed)
    weights_KS = np.ones((len(names), layout.segment_count))
    if file.weights:
        flat = {name: layout.flat(weight, f"weights.{name}") for name, weight in file.weights.items()}
        weights_KS = weights_array(flat, names, layout.segment_count)
    kept = None if layout.kept_from is None else experts[layout.kept_from]
    kept_files = Checkpoint(kept.path, name=kept.name) if kept is not None and not kept.is_adapter else None
    by_key = {stored.key: name for name, stored in base.tensors.items()}
    target = getattr(torch, file.dtype)

    def origin(name: str) -> Checkpoint:
        """Whose tensor it is where it is taken unmerged; otherwise the base's."""
        return kept_files if kept_files is not None and layout.keeps(name) else base

    def saved(key: str, rows: torch.Tensor) -> torch.Tensor:
        """Rows in the dtype of the file, which may not hold them."""
        rows = rows.to(target)
        check_finite([(key, rows)], f"{folder}: as merged")
        return rows

    with open_sources(experts) as sources, writing(folder) as temporary:
        temporary.mkdir()
        merge = Streamed(file.method, parameters, layout, sources, settings_of=settings_of)

        def rows_of(key: str) -> Iterator[torch.Tensor]:
            name = by_key[key]
            source = origin(name)
            stored = source.tensors[name]
            if stored.dtype not in DTYPES:
                raise ModelError(
                    f"{source.folder}: {name} is stored as {stored.dtype}; save it as floats first."
                )
            merged = None
            if source is base:

                def base_rows(start: int, stop: int) -> torch.Tensor:
                    return base.rows(stored, start, stop).float()

                merged = merge.rows(name, stored.shape, base_rows, weights_KS)
            if merged is None:
                blocks = row_blocks(stored.shape)
                yield from (saved(key, source.rows(stored, start, stop)) for start, stop in blocks)
            else:
                yield from (saved(key, rows) for _, _, rows in merged)
                merge.kept.forget()

        tensors = {key: (file.dtype, origin(name).tensors[name].shape) for key, name in by_key.items()}
        write_checkpoint(temporary, tensors, rows_of)
        _copy_rest(base_folder, temporary, file)
        if kept is not None and file.keep is not None and file.keep.tokenizer:
            _copy_tokenizer(kept.path, temporary)
        (temporary / "README.md").write_text(card, encoding="utf-8")
    base.close()


def _copy_rest(base_folder: Path, folder: Path, file: MergeFile) -> None:
    """Everything of the base but its weights and card; config.json says the dtype that was written."""
    with explained_write_errors(folder):
        for path in sorted(base_folder.rglob("*")):
            relative = path.relative_to(base_folder)
            hidden = any(part.startswith(".") for part in relative.parts)
            if path.is_file() and not hidden and not path.name.endswith(WEIGHTS) and path.name != "README.md":
                (folder / relative).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, folder / relative)
        config: dict[str, Any] = read_json(folder / "config.json", ModelError)
        config.pop("torch_dtype", None)
        _write_config(folder, config | {"dtype": file.dtype})


def _copy_tokenizer(expert: Path, folder: Path) -> None:
    """An expert's tokenizer, and the size of its vocabulary."""
    for pattern in TOKENIZER_FILES:
        for path in folder.glob(pattern):
            path.unlink()
        for path in expert.glob(pattern):
            shutil.copyfile(path, folder / path.name)
    config = read_json(folder / "config.json", ModelError)
    theirs = read_json(expert / "config.json", ModelError)
    _write_config(folder, config | {key: theirs[key] for key in ("vocab_size",) if key in theirs})


def _write_config(folder: Path, config: dict[str, Any]) -> None:
    (folder / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
