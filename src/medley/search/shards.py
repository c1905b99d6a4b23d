"""Vectors of a corpus on disk: a folder of shards, written one by one, so that killed work goes on where it was.

In: a retriever and a corpus. Out: the corpus' vectors, in memory or as `Shards`. A shard is a .npy file (float32)
named by the rows it holds, `<start>-<stop>.npy`; it is written to a temporary name and renamed, so a shard that is
there is whole. The folder's name is the fingerprint of all that decides the vectors (`passages_key`): a shard can
only be found by the model and the texts that it belongs to, and what is found is never encoded again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from medley.artefact import Mark
from medley.collections import FolderCorpus, Passage
from medley.errors import ModelError
from medley.files import write_text, writing
from medley.fingerprint import fingerprint, fingerprint_texts
from medley.noticed import LENGTH_UNKNOWN, notice, noticing
from medley.progress import progress

if TYPE_CHECKING:
    from medley.encoder import Retriever

SHARD_ROWS = 8_192
"""Passages a shard holds: what a kill can cost. 32 MiB with 1,024 dimensions."""
ENCODING_CHUNK = 2_048
"""Passages whose texts are in memory at once while a corpus is encoded."""


@dataclass(frozen=True)
class Shards:
    """The vectors of a whole corpus, read from its shards on demand: float32 of shape (D, H)."""

    folder: Path
    shape: tuple[int, int]
    rows: int = SHARD_ROWS

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice | np.ndarray) -> np.ndarray:
        """Vectors of the positions in a slice or an array; memory-mapped where one shard holds a whole slice.

        Raises ModelError for a shard that is missing or has another shape.
        """
        if isinstance(rows, slice):
            start, stop, step = rows.indices(len(self))
            if step != 1:
                rows = np.arange(start, stop, step)
            else:
                parts = [
                    self._open(shard)[max(start - shard.start, 0) : stop - shard.start]
                    for shard in shards_of(len(self), self.rows)[start // self.rows : -(-stop // self.rows)]
                ]
                return parts[0] if len(parts) == 1 else np.concatenate([self._none(), *parts])
        positions = np.asarray(rows)
        vectors = np.empty((len(positions), self.shape[1]), dtype=np.float32)
        for number in np.unique(positions // self.rows).tolist():
            here = positions // self.rows == number
            shard = self._open(shards_of(len(self), self.rows)[number])
            vectors[here] = shard[positions[here] - number * self.rows]
        return vectors

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """All vectors in memory."""
        return np.asarray(self[:], dtype=dtype)

    def _none(self) -> np.ndarray:
        return np.empty((0, self.shape[1]), dtype=np.float32)

    def _open(self, shard: range) -> np.ndarray:
        return open_vectors(shard_path(self.folder, shard), (len(shard), self.shape[1]), remedy="remove it")


def open_vectors(path: Path, wanted: tuple[int, int], *, remedy: str) -> np.ndarray:
    """Vectors of a file, float32 of a shape that is known, left on disk. Raises ModelError with the remedy."""
    vectors = open_array(path, remedy=remedy)
    if vectors.shape != wanted or vectors.dtype != np.float32:
        raise ModelError(
            f"{path}: holds {vectors.dtype} of shape {vectors.shape}, not float32 of shape {wanted}; "
            f"{remedy} and encode again."
        )
    return vectors


def write_array(path: Path, values: np.ndarray) -> None:
    """Write an array, and beside it the mark by which an edited file is seen; the array comes last."""
    with writing(path) as temporary:
        with temporary.open("wb") as stream:
            np.save(stream, values)
        write_text(_mark_path(path), Mark.of(temporary).model_dump_json())


def is_kept(path: Path, *, remedy: str) -> bool:
    """Whether an array is there as it was written; one without a mark counts as not there.

    Raises ModelError with the remedy where its content was changed. A file whose size, time and inode are unchanged is
    not read (artefact.py).
    """
    mark = _mark_path(path)
    if not (path.is_file() and mark.is_file()):
        return False
    try:
        fits = Mark.model_validate_json(mark.read_bytes()).fits(path)
    except ValueError:
        return False  # the mark itself is damaged
    if not fits:
        raise ModelError(f"{path}: was changed after it was written; {remedy} and encode again.")
    return True


def _mark_path(path: Path) -> Path:
    return path.with_name(f"{path.name}.mark")


def open_array(path: Path, *, remedy: str) -> np.ndarray:
    """An array of a file, left on disk. Raises ModelError with the remedy where it is cut or none at all."""
    try:
        return np.load(path, mmap_mode="r")
    except (OSError, ValueError, EOFError) as problem:
        reason = str(problem).splitlines()[0].rstrip(".")
        raise ModelError(f"{path}: cannot be read ({reason}); {remedy} and encode again.") from problem


def shards_of(count: int, rows: int) -> list[range]:
    """The rows of each shard of `count` vectors."""
    return [range(start, min(start + rows, count)) for start in range(0, count, rows)]


def shard_path(folder: Path, shard: range) -> Path:
    """Where the vectors of these rows are."""
    return folder / f"{shard.start:010d}-{shard.stop:010d}.npy"


def _noticed_path(folder: Path, shard: range) -> Path:
    """Where what was noticed of these rows' texts is: flags (S,) of noticed.py."""
    return folder / f"noticed-{shard_path(folder, shard).name}"


def encode_corpus(
    retriever: Retriever,
    corpus: Sequence[Passage],
    *,
    store: Path | None = None,
    label: str = "passages",
    shard_rows: int = SHARD_ROWS,
) -> np.ndarray | Shards:
    """Vectors of a corpus, float32 of shape (D, H), in corpus order; texts are read chunk by chunk.

    With `store` they are kept in the folder `<store>/<passages_key>`, `shard_rows` to a file; shards that are there
    are not encoded again, so a killed call goes on where it was. Encoded in the same chunks either way, the vectors
    are the same bit by bit.
    """
    shards = shards_of(len(corpus), shard_rows)
    if store is None:
        vectors_DH = np.empty((len(corpus), _dimension(retriever)), dtype=np.float32)
        with progress(f"encoding {label}", len(corpus)) as advance:
            for shard in shards:
                vectors_DH[shard.start : shard.stop] = _encode(retriever, corpus, shard, advance)
        return vectors_DH
    folder = store / passages_key(retriever, corpus)
    missing = [shard for shard in shards if not is_kept(shard_path(folder, shard), remedy="remove it")]
    with progress(f"encoding {label}", sum(map(len, missing))) as advance:
        for shard in missing:
            with noticing() as noticed:
                vectors_SH = _encode(retriever, corpus, shard, advance)
            # the vectors come last: where they are, what was noticed is there too
            for path, values in (
                (_noticed_path(folder, shard), noticed.flags("passages")),
                (shard_path(folder, shard), vectors_SH),
            ):
                write_array(path, values)
    for shard in shards:  # also of shards that a killed call left
        path = _noticed_path(folder, shard)
        flags = np.load(path) if path.is_file() else np.full(len(shard), LENGTH_UNKNOWN, np.uint8)
        notice("passages", flags, max_tokens=retriever.model.max_seq_length)
    return Shards(folder, (len(corpus), _dimension(retriever)), shard_rows)


def _encode(retriever: Retriever, corpus: Sequence[Passage], shard: range, advance: Any) -> np.ndarray:
    from medley.encoder import encode_passages

    vectors_SH = np.empty((len(shard), _dimension(retriever)), dtype=np.float32)
    for start in range(0, len(shard), ENCODING_CHUNK):
        chunk = [corpus[position] for position in shard[start : start + ENCODING_CHUNK]]
        vectors_SH[start : start + len(chunk)] = encode_passages(retriever, chunk)
        advance(len(chunk))
    return vectors_SH


def passages_key(retriever: Retriever, corpus: Sequence[Passage]) -> str:
    """Fingerprint of all that decides a corpus' vectors: model, passage prompt and texts.

    The retriever's query instruction is not in it: no passage sees it.
    """
    texts = fingerprint_texts(passage.full_text for passage in corpus)
    return fingerprint([replace(retriever, instruction="").identity(), retriever.document_prompt, texts])


def corpus_ids(corpus: Sequence[Passage]) -> Sequence[str]:
    """Passage ids in corpus order, without reading texts where the corpus knows its ids."""
    return corpus.ids if isinstance(corpus, FolderCorpus) else [passage.id for passage in corpus]


def _dimension(retriever: Retriever) -> int:
    return int(retriever.model.get_embedding_dimension() or 0)
