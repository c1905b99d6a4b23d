"""A checkpoint's tensors on disk: read by rows, written by rows, never a whole model in memory.

A safetensors file is eight bytes with the length of a JSON header, the header (dtype, shape and place of each
tensor), and the bytes. Rows are read with pread into memory of their own rather than mapped, so that what stays in
memory is what the caller keeps.
"""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medley.backbone import plain_name
from medley.errors import ModelError
from medley.files import explained_write_errors
from medley.finite import is_finite, not_finite_in_words
from medley.model_name import resolve_base

if TYPE_CHECKING:
    import torch

DTYPES = {"F64": "float64", "F32": "float32", "BF16": "bfloat16", "F16": "float16"}
SHARD_BYTES = 5_000_000_000
"""Size at which a written checkpoint goes on in another file, as transformers does."""
ROWS_OF = 1 << 17
"""Elements that are worked on at a time: they stay in a processor's cache."""


@dataclass(frozen=True)
class Stored:
    """Where a tensor lies: its file, its name there, its dtype, its shape and its first byte."""

    path: Path
    key: str
    dtype: str
    shape: tuple[int, ...]
    start: int


class Checkpoint:
    """A model folder's safetensors, by the tensors' names inside the backbone."""

    def __init__(self, folder: Path, *, name: str) -> None:
        """Read the files' headers. Raises ModelError where there is none or one is damaged; `name` is for it."""
        self.folder = folder
        self.name = name
        self.tensors: dict[str, Stored] = {}
        self._files: dict[Path, int] = {}
        for path in weight_files(folder, name=name):
            for stored in read_header(path, name=name):
                self.tensors[plain_name(stored.key)] = stored

    def stored(self, tensor: str, shape: Sequence[int]) -> Stored:
        """Where a tensor of the base lies. Raises ModelError when it is missing, of another shape or quantised."""
        if tensor not in self.tensors:
            raise ModelError(f"{self.folder}: expert {self.name!r} has no tensor {tensor} of the base.")
        stored = self.tensors[tensor]
        if stored.shape != tuple(shape):
            raise ModelError(
                f"{self.folder}: expert {self.name!r} has {tensor} as {stored.shape}, the base {tuple(shape)}; "
                "only models of one architecture and vocabulary can be merged (or `keep` that tensor)."
            )
        if stored.dtype not in DTYPES:
            raise ModelError(
                f"{self.folder}: expert {self.name!r} stores {tensor} as {stored.dtype}; "
                "save it in a floating-point dtype first."
            )
        return stored

    def rows(self, stored: Stored, start: int, stop: int) -> torch.Tensor:
        """Rows [start, stop) of a tensor, in its own dtype, as (rows, ...); a scalar has one row.

        Raises ModelError where one of them is not finite.
        """
        rows = self._read(stored, start, stop)
        if not is_finite(rows):
            whole = self._read(stored, 0, row_count(stored.shape))
            raise ModelError(f"{stored.path}: {not_finite_in_words(stored.key, whole)}.")
        return rows

    def _read(self, stored: Stored, start: int, stop: int) -> torch.Tensor:
        import torch

        inner = stored.shape[1:]
        rows = torch.empty((stop - start, *inner), dtype=getattr(torch, DTYPES[stored.dtype]))
        row_bytes = math.prod(inner) * rows.element_size()
        buffer = rows.view(-1).view(torch.uint8).numpy().data
        read = os.preadv(self._file(stored.path), [buffer], stored.start + start * row_bytes)
        if read != len(buffer):
            raise ModelError(f"{stored.path}: ends within {stored.key}; copy it again.")
        return rows

    def whole(self, stored: Stored) -> torch.Tensor:
        """A whole tensor, in its own dtype."""
        return self.rows(stored, 0, row_count(stored.shape)).reshape(stored.shape)

    def _file(self, path: Path) -> int:
        if path not in self._files:
            self._files[path] = os.open(path, os.O_RDONLY)
        return self._files[path]

    def close(self) -> None:
        """Close the files."""
        for descriptor in self._files.values():
            os.close(descriptor)
        self._files = {}


def weight_files(folder: Path, *, name: str) -> list[Path]:
    """The safetensors files of a model folder; of a sentence-transformers folder, its transformer's."""
    found = sorted(folder.glob("*.safetensors")) or sorted((folder / "0_Transformer").glob("*.safetensors"))
    if not found:
        raise ModelError(f"{folder}: expert {name!r} holds no safetensors weights; save it as such.")
    return found


def read_header(path: Path, *, name: str) -> Iterator[Stored]:
    """What a safetensors file holds. Raises ModelError when it is damaged or cut off."""
    size = path.stat().st_size
    with path.open("rb") as stream:
        raw = stream.read(8)
        length = struct.unpack("<Q", raw)[0] if len(raw) == 8 else size
        if 8 + length > size:
            raise ModelError(f"{path}: expert {name!r} is not a complete safetensors file; copy it again.")
        try:
            header: dict[str, Any] = json.loads(stream.read(length))
        except ValueError as problem:
            raise ModelError(
                f"{path}: expert {name!r} has a damaged header; copy the file again."
            ) from problem
    for key, entry in header.items():
        if key != "__metadata__":
            start, end = entry["data_offsets"]
            if 8 + length + end > size:
                raise ModelError(f"{path}: expert {name!r} ends before {key} does; copy the file again.")
            yield Stored(path, key, entry["dtype"], tuple(entry["shape"]), 8 + length + start)


def row_count(shape: Sequence[int]) -> int:
    """Rows of a tensor; a scalar has one."""
    return shape[0] if shape else 1


def row_blocks(shape: Sequence[int], elements: int = ROWS_OF) -> list[tuple[int, int]]:
    """Row ranges [start, stop) that cover a tensor with about `elements` elements each, at least one row."""
    count = row_count(shape)
    step = max(1, elements // max(1, math.prod(shape[1:])))
    return [(start, min(count, start + step)) for start in range(0, count, step)]


def local_folder(model: str) -> Path:
    """The folder of a model by path or hub id; a hub model is fetched."""
    location = Path(resolve_base(model))
    if location.is_dir():
        return location
    import huggingface_hub

    patterns = ["*.safetensors", "*.json", "*.txt", "*.model"]
    return Path(huggingface_hub.snapshot_download(model, allow_patterns=patterns))


def write_checkpoint(
    folder: Path,
    tensors: Mapping[str, tuple[str, tuple[int, ...]]],
    rows_of: Callable[[str], Iterator[torch.Tensor]],
    *,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Write tensors (dtype and shape by name) to safetensors files in a folder, their rows as they come.

    `rows_of` gives a tensor's rows in order, in its dtype. More than one file gets transformers' index.
    """
    import torch

    shards: list[list[str]] = [[]]
    sizes = {
        name: math.prod(shape) * getattr(torch, dtype).itemsize for name, (dtype, shape) in tensors.items()
    }
    filled = 0
    for name in tensors:
        if shards[-1] and filled + sizes[name] > shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += sizes[name]
    files = ["model.safetensors"]
    if len(shards) > 1:
        files = [f"model-{i:05}-of-{len(shards):05}.safetensors" for i in range(1, len(shards) + 1)]
    codes = {dtype: code for code, dtype in DTYPES.items()}
    for file, names in zip(files, shards, strict=True):
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        place = 0
        for name in names:
            dtype, shape = tensors[name]
            header[name] = {
                "dtype": codes[dtype], "shape": list(shape), "data_offsets": [place, place + sizes[name]],
            }  # fmt: skip
            place += sizes[name]
        encoded = json.dumps(header, separators=(",", ":")).encode()
        encoded += b" " * (-len(encoded) % 8)
        with explained_write_errors(folder / file), (folder / file).open("wb") as stream:
            stream.write(struct.pack("<Q", len(encoded)) + encoded)
            for name in names:
                written = 0
                for rows in rows_of(name):
                    written += stream.write(rows.contiguous().view(-1).view(torch.uint8).numpy().data)
                if written != sizes[name]:
                    raise ValueError(f"{name}: {written} bytes came, {sizes[name]} were announced")
    if len(shards) > 1:
        where = {name: file for file, names in zip(files, shards, strict=True) for name in names}
        index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": where}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1), encoding="utf-8")
