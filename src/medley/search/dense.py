"""Exact top-k by vectors: every query against every passage, in float32, ties by passage id, in bounded memory.

In: query vectors and passage vectors (in memory, memory-mapped or in shards). Out: the k best passages of each query.
Passages are read once, a block at a time; a block is multiplied with tiles of queries, a tile to a thread. Selection
beside the product is one comparison for each score, with the k-th best of its query so far, and work for the few that
pass. Before k are known, a floor takes its place: a score that, judging by a sample of the passages, far more than k
will reach. A query for which fewer do is searched again without a floor, so the result is exact whatever the sample.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from medley.errors import InputError, ModelError
from medley.search.blocks import (
    BLOCK,
    STRIP,
    TILE,
    Searched,
    Similarity,
    Tiles,
    Vectors,
    comparable,
    places,
    side_by_side,
)
from medley.search.order import NOTHING, PassageOrder, Ranking, scores_of
from medley.search.screen import TooCloseError, screened, screening_pays

if TYPE_CHECKING:
    from medley.encoder import Retriever

SAMPLE = 1_024
"""Passages that the floor is judged by; spread over the corpus, for neighbours are often alike."""


@dataclass(frozen=True)
class Nearest:
    """The best passages of each query, best first, ties by ascending passage id.

    `positions_QK` (int64) are places in the corpus, `scores_QK` float32; -1 and minus infinity fill up the row of a
    query for which fewer were found.
    """

    positions_QK: np.ndarray
    scores_QK: np.ndarray


def nearest(
    queries_QH: np.ndarray,
    passages_DH: Vectors,
    order: PassageOrder,
    k: int,
    *,
    similarity: Similarity = "dot",
    block: int = BLOCK,
) -> Nearest:
    """The k best of the passages that `order` knows, for each query, by exhaustive float32 similarity.

    Beside the vectors it holds 8 k bytes a query and, for each thread, TILE x STRIP scores. The threads are those
    that torch is set to use (OMP_NUM_THREADS). Raises ModelError when a vector is not finite, InputError when shapes
    and ids do not fit together.
    """
    _check_shapes(queries_QH, passages_DH, order)
    queries_QH = comparable(queries_QH, similarity)
    k = min(k, len(order))
    passages = Searched(passages_DH, order, similarity, block)
    floor_Q = _floor(queries_QH, passages, k)
    best_QK = _reaching(queries_QH, passages, k, floor_Q)
    again = np.flatnonzero((best_QK == NOTHING).any(axis=1))
    if len(again):
        no_floor = np.full(len(again), -np.inf, dtype=np.float32)
        best_QK[again] = _search(queries_QH[again], passages, k, no_floor)
    best_QK = np.sort(best_QK, axis=1)[:, ::-1]
    return Nearest(order.positions(best_QK), scores_of(best_QK))


def _reaching(queries_QH: np.ndarray, passages: Searched, k: int, floor_Q: np.ndarray) -> np.ndarray:
    """`_search`, after screening in bfloat16 where that is faster."""
    if np.isfinite(floor_Q).all() and screening_pays(len(queries_QH), len(passages)):
        try:
            return screened(queries_QH, passages, k, floor_Q)
        except TooCloseError:
            pass  # a model that puts everything in one place: rounding would hide the order
    return _search(queries_QH, passages, k, floor_Q)


def _floor(queries_QH: np.ndarray, passages: Searched, k: int) -> np.ndarray:
    """A score for each query that, judging by a sample, far more than k passages reach; or minus infinity.

    Of the k best the sample holds about `expected`, distributed as Poisson's law says if passages come in no
    particular order. Fewer than k reach the sample's r-th best score only if it holds r of them: with the r below
    about once in a million.
    """
    import torch

    expected = k * SAMPLE / max(1, len(passages))
    rank = math.ceil(expected + 4 * math.sqrt(expected) + 3)
    if rank > SAMPLE // 8:  # the sample would be a large part of the corpus, or of what is wanted
        return np.full(len(queries_QH), -np.inf, dtype=np.float32)
    spread = np.linspace(0, len(passages) - 1, SAMPLE).astype(np.int64)
    sample = torch.from_numpy(comparable(passages.vectors_DH[spread], passages.similarity))
    floor_Q = np.empty(len(queries_QH), dtype=np.float32)
    for start in range(0, len(queries_QH), TILE):
        scores = torch.from_numpy(queries_QH[start : start + TILE].copy()) @ sample.T
        floor_Q[start : start + TILE] = np.partition(scores.numpy(), SAMPLE - rank, axis=1)[:, SAMPLE - rank]
    return floor_Q


def _search(queries_QH: np.ndarray, passages: Searched, k: int, floor_Q: np.ndarray) -> np.ndarray:
    """Keys (Q, k), in any order, of the k best passages that reach the floor; NOTHING where they are fewer."""
    best_QK = np.full((len(queries_QH), k), NOTHING, dtype=np.int64)
    work = Tiles(len(queries_QH))
    buffers = [_Buffers(work.width) for _ in range(work.threads)]

    def update(worker: int, rows: slice, block_BH: np.ndarray, start: int) -> None:
        products = _products(queries_QH[rows], block_BH, buffers[worker])
        best_QK[rows] = _better(best_QK[rows], floor_Q[rows], products, work.width, start, passages.order)

    work.over_blocks(passages, update, np.asarray, "searching")
    return best_QK


class _Buffers:
    """What a thread writes the scores of a strip into, and which of them pass; made once: fresh pages are slow."""

    def __init__(self, width: int) -> None:
        self.width = width
        self._scores = np.empty((STRIP, width), dtype=np.float32)
        self._passing = np.empty((STRIP, width), dtype=np.bool_)

    def first(self, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Views of the first rows."""
        return self._scores[:count], self._passing[:count]


def _products(
    queries_RH: np.ndarray, block_BH: np.ndarray, buffers: _Buffers
) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """Strip by strip: its place in the block, the scores (STRIP, width), and as many flags to write to.

    Queries are columns, so that each row is compared with one row of thresholds. Columns past the last query are 0.
    The arrays are used again for the next strip.
    """
    import torch

    # a copy of full width; see ALIGNED
    queries = torch.from_numpy(np.pad(queries_RH, ((0, buffers.width - len(queries_RH)), (0, 0))))
    for start in range(0, len(block_BH), STRIP):
        strip = torch.from_numpy(block_BH[start : start + STRIP])
        scores, passing = buffers.first(len(strip))
        torch.mm(strip, queries.T, out=torch.from_numpy(scores))
        yield start, scores, passing


def _check_shapes(queries_QH: np.ndarray, passages_DH: Vectors, order: PassageOrder) -> None:
    if len(passages_DH.shape) != 2 or queries_QH.ndim != 2 or queries_QH.shape[1] != passages_DH.shape[1]:
        raise InputError(
            f"query vectors of shape {queries_QH.shape} do not fit passage vectors of shape {passages_DH.shape}; "
            "encode both with the same retriever."
        )
    if len(order) != len(passages_DH):
        raise InputError(
            f"{len(passages_DH)} passage vectors for {len(order)} passages; encode the corpus again."
        )


def _better(
    best_RK: np.ndarray,
    floor_R: np.ndarray,
    products: Iterable[tuple[int, np.ndarray, np.ndarray]],
    width: int,
    start: int,
    order: PassageOrder,
) -> np.ndarray:
    """The best keys of each row when the scores of the passages from `start` on have come to them.

    `width` is that of the products. Not sorted, but the worst stands first.
    """
    rows, positions, scores = [], [], []
    thresholds_W, all_pass = _thresholds(best_RK, floor_R, width)
    for place, scores_SW, passing_SW in products:
        if all_pass:
            strip = slice(start + place, start + place + len(scores_SW))
            all_RS = np.ascontiguousarray(scores_SW.T)[: len(best_RK)]
            best_RK = _best_of(best_RK, order.keys(all_RS, strip))
            thresholds_W, all_pass = _thresholds(best_RK, floor_R, width)
            continue
        hits, passages, queries = places(np.greater_equal(scores_SW, thresholds_W, out=passing_SW))
        rows.append(queries)
        positions.append(start + place + passages)
        scores.append(scores_SW.reshape(-1)[hits])
    if not rows:
        return best_RK
    keys = order.keys(np.concatenate(scores), np.concatenate(positions))
    return _best_of(best_RK, side_by_side(np.concatenate(rows), keys, len(best_RK)))


def _thresholds(best_RK: np.ndarray, floor_R: np.ndarray, width: int) -> tuple[np.ndarray, bool]:
    """What a score has to reach, infinity in columns without a query; and whether some query takes any score."""
    thresholds_W = np.full(width, np.inf, dtype=np.float32)
    thresholds_W[: len(best_RK)] = np.maximum(floor_R, scores_of(best_RK[:, 0]))
    return thresholds_W, bool((thresholds_W == -np.inf).any())


def _best_of(best_RK: np.ndarray, keys_RN: np.ndarray) -> np.ndarray:
    """The k largest keys of each row, the smallest of them first."""
    pool = np.concatenate([best_RK, keys_RN], axis=1)
    return np.partition(pool, keys_RN.shape[1], axis=1)[:, keys_RN.shape[1] :] if keys_RN.shape[1] else pool


def exact_top_k(
    queries_QH: np.ndarray,
    passages_DH: Vectors,
    passage_ids: Sequence[str],
    k: int,
    *,
    similarity: Similarity = "dot",
    block: int = BLOCK,
) -> list[Ranking]:
    """The k best passages of each query as rankings of ids; see `nearest`, which gives arrays."""
    order = PassageOrder(passage_ids)
    found = nearest(queries_QH, passages_DH, order, k, similarity=similarity, block=block)
    return [order.ranking(*row) for row in zip(found.positions_QK, found.scores_QK, strict=True)]


def similarity_of(retriever: Retriever) -> Similarity:
    """How the model says that its vectors are compared. Raises ModelError for other than dot and cosine."""
    name = str(retriever.model.similarity_fn_name or "cosine")
    if name == "dot":
        return "dot"
    if name == "cosine":
        return "cosine"
    raise ModelError(f"the model compares vectors by {name}; only dot and cosine can be searched.")
