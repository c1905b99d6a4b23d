"""Vectors by text, on disk: a text is encoded once for a model and a prompt, whatever collections share it.

In: texts and a function that encodes them. Out: their vectors, read from memory-mapped files on demand. A key is
the hash of role, prompt and text; the folder is named by the fingerprint of the model, so a vector is only found by
what decides it. Vectors come in segments, `<name>.vectors.npy` (n, H) float32 and then `<name>.keys.npy`; a segment
whose keys are there is whole, so killed work loses at most one, and two processes can write beside each other.
shards.py keeps the vectors of one corpus in its order; this keeps texts that come in any.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from medley.errors import ModelError
from medley.fingerprint import fingerprint_texts
from medley.noticed import LENGTH_UNKNOWN, notice, noticing
from medley.progress import progress
from medley.search.shards import is_kept, open_array, open_vectors, write_array

SEGMENT_ROWS = 8_192
"""Vectors a segment holds: what a kill can cost."""
CHUNK = 2_048
"""Texts that are in memory at once."""
REMEDY = "remove the folder"
KEY = np.dtype("S16")
"""The first 128 bits of a SHA-256; a billion texts share one with a probability of 1e-21."""

EncodeChunks = Callable[[Iterable[list[str]]], Iterator[np.ndarray]]
"""Chunks of texts to float32 vectors of shape (N, H), in their order; several may be under way at once."""


@dataclass(frozen=True)
class StoredVectors:
    """The vectors of some texts, in their order, read from segments on demand: float32 of shape (N, H)."""

    segments: tuple[Path, ...]
    starts: np.ndarray
    """The first row of each segment, and the number of all rows."""
    rows: np.ndarray
    """For each text its row, counted over all segments."""
    dimension: int

    @property
    def shape(self) -> tuple[int, int]:
        """(N, H)."""
        return len(self.rows), self.dimension

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, places: slice | np.ndarray) -> np.ndarray:
        """Vectors at these places. Raises ModelError for a segment that is missing or damaged."""
        rows = self.rows[places]
        vectors = np.empty((len(rows), self.dimension), dtype=np.float32)
        of = np.searchsorted(self.starts, rows, side="right") - 1
        for segment in np.unique(of).tolist():
            here = of == segment
            vectors[here] = self._open(segment)[rows[here] - self.starts[segment]]
        return vectors

    def _open(self, segment: int) -> np.ndarray:
        rows = int(self.starts[segment + 1] - self.starts[segment])
        return open_vectors(self.segments[segment], (rows, self.dimension), remedy=REMEDY)


def stored_vectors(
    folder: Path,
    context: str,
    texts: Sequence[str],
    encode: EncodeChunks,
    *,
    label: str = "texts",
    kind: str = "passages",
) -> StoredVectors:
    """Vectors of texts, those that `folder` does not hold yet encoded and written there first.

    `folder` belongs to one model; `context` is what else decides a vector beside the text (role and prompt). A text
    that comes twice is encoded once. What was noticed of a text (noticed.py, under `kind`) is kept with its vector, so
    it counts whenever the vector is read. `texts` may read from disk: it is gone through once, and missing ones again.
    """
    wanted = np.concatenate(
        [np.zeros(0, KEY), *(_keys(context, texts[i : i + CHUNK]) for i in range(0, len(texts), CHUNK))]
    )
    segments, starts, known = _known(folder)
    limits: set[int] = set()
    new = np.setdiff1d(wanted, known)
    if len(new):
        firsts = np.unique(wanted, return_index=True)
        missing = np.sort(firsts[1][np.isin(firsts[0], new, assume_unique=True)])
        chunks = [missing[start : start + CHUNK] for start in range(0, len(missing), CHUNK)]
        waiting: list[np.ndarray] = []
        written = encoded = 0
        with progress(f"encoding {label}", len(missing)) as advance, noticing() as noticed:
            for vectors in encode([texts[int(row)] for row in chunk] for chunk in chunks):
                waiting.append(np.asarray(vectors, dtype=np.float32))
                encoded += len(vectors)
                advance(len(vectors))
                if encoded - written >= SEGMENT_ROWS or encoded == len(missing):
                    flags = noticed.flags(kind)
                    if len(flags) != encoded:  # encoded elsewhere
                        flags = np.full(encoded, LENGTH_UNKNOWN, np.uint8)
                    _write(
                        folder,
                        wanted[missing[written:encoded]],
                        np.concatenate(waiting),
                        flags[written:encoded],
                    )
                    waiting, written = [], encoded
        limits = noticed.max_tokens
        segments, starts, known = _known(folder)
    order = np.argsort(known, kind="stable")
    rows = order[np.searchsorted(known, wanted, sorter=order)] if len(wanted) else np.zeros(0, np.int64)
    # of what is no table any number: opening it as vectors says so
    dimension = sum(open_array(segments[0], remedy=REMEDY).shape[1:]) if segments else 0
    flags = np.concatenate([np.zeros(0, np.uint8), *map(_flags, segments, np.diff(starts).tolist())])
    notice(kind, flags[rows], max_tokens=limits.pop() if len(limits) == 1 else None)
    return StoredVectors(segments, starts, rows, dimension)


def _keys(context: str, texts: Sequence[str]) -> np.ndarray:
    start = hashlib.sha256(f"{len(context)}:{context}".encode("utf-8", "surrogatepass"))
    keys = []
    for text in texts:
        digest = start.copy()
        digest.update(text.encode("utf-8", "surrogatepass"))
        keys.append(digest.digest()[: KEY.itemsize])
    return np.frombuffer(b"".join(keys), dtype=KEY)


def _known(folder: Path) -> tuple[tuple[Path, ...], np.ndarray, np.ndarray]:
    """The segments of a folder, the first row of each, and the keys of all rows."""
    key_files = [file for file in sorted(folder.glob("[0-9a-f]*.keys.npy")) if _is_whole(file)]
    keys = [_read_keys(file) for file in key_files]
    starts = np.concatenate([[0], np.cumsum([len(own) for own in keys])]).astype(np.int64)
    segments = tuple(map(_vectors_of, key_files))
    return segments, starts, np.concatenate([np.zeros(0, KEY), *keys])


def _vectors_of(keys: Path) -> Path:
    return keys.with_name(keys.name.replace(".keys.", ".vectors."))


def _is_whole(keys: Path) -> bool:
    """Whether keys and vectors are as they were written. Raises ModelError where either was changed."""
    return is_kept(keys, remedy=REMEDY) and is_kept(_vectors_of(keys), remedy=REMEDY)


def _read_keys(path: Path) -> np.ndarray:
    keys = open_array(path, remedy=REMEDY)
    if keys.dtype != np.uint8 or keys.ndim != 2 or keys.shape[1] != KEY.itemsize:
        raise ModelError(f"{path}: holds no keys of texts; {REMEDY} and encode again.")
    return np.ascontiguousarray(keys).view(KEY).reshape(-1)


def _flags(segment: Path, rows: int) -> np.ndarray:
    """What was noticed of a segment's texts (rows,); nothing is known of one that another version wrote."""
    path = segment.with_name(segment.name.replace(".vectors.", ".noticed."))
    return open_array(path, remedy=REMEDY) if path.is_file() else np.full(rows, LENGTH_UNKNOWN, np.uint8)


def _write(folder: Path, keys: np.ndarray, vectors: np.ndarray, flags: np.ndarray) -> None:
    name = fingerprint_texts([keys.tobytes().hex()])
    key_bytes = keys.view(np.uint8).reshape(len(keys), -1)
    for part, values in (("vectors", vectors), ("noticed", flags), ("keys", key_bytes)):
        write_array(folder / f"{name}.{part}.npy", values)
