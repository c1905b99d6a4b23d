"""What every search by vectors goes through: passages a block at a time, queries a tile to a thread.

In: vectors in memory, memory-mapped or in shards. Out: blocks made comparable (float32, finite, of length 1 for cosine)
handed to an update function for each tile of queries; and the small array operations that turn the few scores that
passed a threshold into rows of keys.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Literal, Protocol, TypeVar

import numpy as np

from medley.errors import ModelError
from medley.progress import progress
from medley.search.order import NOTHING, PassageOrder

Similarity = Literal["dot", "cosine"]

BLOCK = 8_192
"""Passages that come to the queries at once."""
TILE, STRIP = 1_024, 2_048
"""Queries and passages of one product: 8 MiB of scores, looked through while they are in the cache."""
ALIGNED = 32
"""Tiles are padded to a multiple of this. The product's kernel depends on the shape of a matrix; for multiples of 16
the scores of a query were found to be the same to the last bit whatever queries stand beside it."""

Prepared = TypeVar("Prepared")


class Vectors(Protocol):
    """Rows of vectors (N, H): an array, a memory map or shards."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, H)."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, rows: slice | np.ndarray, /) -> np.ndarray: ...


@dataclass(frozen=True)
class Searched:
    """What is searched: passage vectors (D, H), their ids, how they are compared, how many come at once."""

    vectors_DH: Vectors
    order: PassageOrder
    similarity: Similarity
    block: int = BLOCK

    def __len__(self) -> int:
        return len(self.order)


class Tiles:
    """Queries in tiles of one width, shared out to as many threads as torch is set to use (OMP_NUM_THREADS)."""

    def __init__(self, queries: int) -> None:
        import torch

        threads = torch.get_num_threads()
        self.width = _aligned(-(-queries // max(threads, -(-queries // TILE))))
        self.rows = [slice(start, start + self.width) for start in range(0, queries, self.width)]
        self.threads = min(threads, len(self.rows))

    def over_blocks(
        self,
        passages: Searched,
        update: Callable[[int, slice, Prepared, int], None],
        prepare: Callable[[np.ndarray], Prepared],
        title: str,
    ) -> None:
        """Call `update` for each tile with each block of passages, in order for a tile.

        It is given a worker's number, the rows of the tile, what `prepare` made of the block (B, H), once for all
        tiles, and the place of the block's first passage in the corpus. Raises ModelError when a vector is not finite.
        """
        if not self.rows:
            return
        block, vectors_DH = passages.block, passages.vectors_DH
        copied = np.empty((min(block, len(passages)), vectors_DH.shape[1]), dtype=np.float32)

        def work(worker: int, prepared: Prepared, start: int) -> None:
            for rows in self.rows[worker :: self.threads]:
                update(worker, rows, prepared, start)

        with (
            one_thread_each(),
            ThreadPoolExecutor(self.threads) as pool,
            progress(title, len(passages)) as advance,
        ):
            for start in range(0, len(passages), block):
                read_BH = comparable(vectors_DH[start : start + block], passages.similarity)
                block_BH = copied[: len(read_BH)]  # torch wants what it reads to be writable
                block_BH[:] = read_BH
                list(pool.map(partial(work, prepared=prepare(block_BH), start=start), range(self.threads)))
                advance(len(block_BH))


def comparable(vectors: np.ndarray, similarity: Similarity) -> np.ndarray:
    """Vectors (N, H) made ready for a dot product: float32, checked, of length 1 for cosine (zero stays zero).

    Raises ModelError when one is not finite, or so long that a dot product may not be.
    """
    vectors = np.asarray(vectors, dtype=np.float32)
    squares = np.einsum("nh,nh->n", vectors, vectors)
    if not np.isfinite(squares).all():
        raise ModelError(
            "the model gives vectors that are not finite numbers; it has diverged in training or overflows its "
            "dtype: train it again with a lower learning rate, or load it in float32."
        )
    if similarity == "cosine":
        return vectors / np.maximum(np.sqrt(squares), np.finfo(np.float32).tiny)[:, None]
    return vectors


def _aligned(count: int) -> int:
    return -(-max(count, 1) // ALIGNED) * ALIGNED


@contextmanager
def one_thread_each() -> Iterator[None]:
    """Let threads that are started here compute on one core each; torch takes the number over when a thread begins."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def places(flags_SW: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Where flags are set, few of them: their places in the flat array, their rows, their columns.

    Looked for eight at a time, so the width has to divide by eight.
    """
    eights = np.flatnonzero(flags_SW.reshape(-1).view(np.uint64) != 0)
    inside = np.flatnonzero(flags_SW.reshape(-1, 8)[eights])
    flat = eights[inside >> 3] * 8 + (inside & 7)
    rows = flat // flags_SW.shape[1]
    return flat, rows, flat - rows * flags_SW.shape[1]


def side_by_side(rows: np.ndarray, keys: np.ndarray, height: int) -> np.ndarray:
    """Keys put into their rows; rows with fewer are filled up with NOTHING."""
    order = np.argsort(rows.astype(np.uint16), kind="stable")  # 16 bits: sorted by counting
    counts_R = np.bincount(rows, minlength=height)
    places = np.arange(len(rows)) - np.repeat(np.cumsum(counts_R) - counts_R, counts_R)
    table = np.full((height, int(counts_R.max(initial=0))), NOTHING, dtype=np.int64)
    table[rows[order], places] = keys[order]
    return table
