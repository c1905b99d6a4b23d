"""Smaller vectors and what they find: int8, one bit a dimension, or the first dimensions only.

In: vectors of a corpus. Out: the k best passages of each query, found by the small vectors; int8 and bits are looked
up again (rescored) with the whole vectors for `RESCORED` times k candidates, as vector databases do. In memory are
the codes: H bytes a passage for int8, H / 8 for bits; they are decoded block by block, so the search is that of
dense.py, exact for the codes. Dot products of bits as +1 and -1 are H - 2 times the Hamming distance.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from medley.errors import InputError
from medley.search.blocks import Similarity, Vectors, comparable
from medley.search.dense import Nearest, nearest
from medley.search.order import PassageOrder

RESCORED = 4
"""Candidates for each passage that is wanted."""
BLOCK = 8_192


@dataclass(frozen=True)
class Codes:
    """Codes of vectors, decoded to float32 of shape (N, H) on demand."""

    codes: np.ndarray
    dimension: int
    decode: Callable[[np.ndarray], np.ndarray]

    @property
    def shape(self) -> tuple[int, int]:
        """(N, H)."""
        return len(self.codes), self.dimension

    def __len__(self) -> int:
        return len(self.codes)

    def __getitem__(self, rows: slice | np.ndarray) -> np.ndarray:
        return self.decode(self.codes[rows])


def check_compression(name: str) -> str:
    """`int8`, `binary` or a number of dimensions; InputError for anything else."""
    if name in ("int8", "binary") or re.fullmatch(r"[1-9]\d*", name):
        return name
    raise InputError(f"--compress {name}: not known; choose int8, binary or a number of dimensions.")


def nearest_compressed(
    queries_QH: np.ndarray,
    passages_DH: Vectors,
    order: PassageOrder,
    k: int,
    compression: str,
    *,
    similarity: Similarity = "dot",
) -> Nearest:
    """As `nearest`, through small vectors. Raises InputError for more dimensions than there are."""
    if compression not in ("int8", "binary"):
        kept = int(compression)
        if kept > queries_QH.shape[1]:
            raise InputError(
                f"--compress {kept}: the vectors have {queries_QH.shape[1]} dimensions; give fewer."
            )
        small = Codes(_each_block(passages_DH, lambda block: block[:, :kept].copy()), kept, np.asarray)
        return nearest(queries_QH[:, :kept], small, order, k, similarity=similarity)
    queries_QH = comparable(queries_QH, similarity)

    def whole(block: np.ndarray) -> np.ndarray:
        return comparable(block, similarity)

    if compression == "int8":
        scale_H = _largest(passages_DH, whole) / 127
        codes = _each_block(passages_DH, lambda block: np.rint(whole(block) / scale_H).astype(np.int8))
        small = Codes(codes, queries_QH.shape[1], lambda some: some * scale_H)
        approximate_QH = queries_QH
    else:
        height = queries_QH.shape[1]
        codes = _each_block(passages_DH, lambda block: np.packbits(block > 0, axis=1))
        small = Codes(codes, height, lambda some: _signs(np.unpackbits(some, axis=1, count=height)))
        approximate_QH = _signs(queries_QH > 0)
    found = nearest(approximate_QH, small, order, min(RESCORED * k, len(order)))
    return _rescored(queries_QH, passages_DH, order, found, k, whole)


def bytes_a_passage(compression: str | None, dimension: int) -> int:
    """Memory of a passage's vector or code."""
    if compression == "int8":
        return dimension
    if compression == "binary":
        return -(-dimension // 8)
    return 4 * (int(compression) if compression else dimension)


def _signs(bits: np.ndarray) -> np.ndarray:
    return np.where(bits, np.float32(1), np.float32(-1))


def _each_block(passages_DH: Vectors, change: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    blocks = [
        change(np.asarray(passages_DH[start : start + BLOCK])) for start in range(0, len(passages_DH), BLOCK)
    ]
    return np.concatenate(blocks)


def _largest(passages_DH: Vectors, whole: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """The largest absolute value of each dimension, never 0."""
    blocks = [
        abs(whole(np.asarray(passages_DH[start : start + BLOCK]))).max(axis=0)
        for start in range(0, len(passages_DH), BLOCK)
    ]
    return np.maximum(np.max(blocks, axis=0), np.finfo(np.float32).tiny).astype(np.float32)


def _rescored(
    queries_QH: np.ndarray,
    passages_DH: Vectors,
    order: PassageOrder,
    found: Nearest,
    k: int,
    whole: Callable[[np.ndarray], np.ndarray],
) -> Nearest:
    """The k best of each query's candidates by the whole vectors."""
    from medley.search.order import largest, scores_of

    positions, scores = [], []
    for query_H, candidates_C in zip(queries_QH, found.positions_QK, strict=True):
        held = candidates_C[candidates_C >= 0]
        keys = largest(order.keys(whole(np.asarray(passages_DH[held])) @ query_H, held), min(k, len(held)))
        positions.append(order.positions(keys))
        scores.append(scores_of(keys))
    return Nearest(np.array(positions), np.array(scores))
