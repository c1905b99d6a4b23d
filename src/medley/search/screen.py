"""Exact top-k at the speed of bfloat16: screen with rounded vectors, then score what may matter in float32.

In: what `dense.nearest` was given, and a floor for each query. Out: the keys of the k best, as the float32 search gives
them. Vectors are rounded to bfloat16, whose products some processors compute several times faster. How far a rounded
score can be from the true one is known: with q = q' + dq and p = p' + dp, |q.p - q'.p'| <= |dq||p| + |q'||dp| by the
inequality of Cauchy and Schwarz, and the lengths of the errors dq and dp are measured, not assumed. A passage whose
rounded score is so low that the true one cannot be among the k best is dropped; the others are scored again, each with
float32 sums of its own, so that no score depends on what stands beside it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from medley.search.blocks import STRIP, Searched, Tiles, places, side_by_side
from medley.search.order import NOTHING, PassageOrder, scores_of

if TYPE_CHECKING:
    import torch

ENOUGH = 50_000_000
"""Scores from which on screening pays for its second reading of the passages."""
HALF_STEP = 2.0**-8
"""Half the distance of neighbouring bfloat16 numbers, relative to the number: a rounded score is off by so much."""
CROWD, SPARE = 8, 2_048
"""With more candidates for a query than CROWD times k, and SPARE, scores are too close together for screening."""
PAIRS = 4_096
"""Query-passage pairs scored at once in float32: their vectors stay in the cache."""


class TooCloseError(Exception):
    """The scores of a query are so close together that rounding hides their order."""


@dataclass(frozen=True)
class _Rounded:
    """A block of passages in bfloat16 (B, H); the greatest length of its vectors, and of what rounding took."""

    vectors: torch.Tensor
    length: float
    lost: float


def screening_pays(queries: int, passages: int) -> bool:
    """Whether this processor multiplies bfloat16 in hardware (Intel's AMX), and there is enough to multiply."""
    import torch

    # newer than the oldest torch we run with
    capabilities: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(capabilities.get("amx_bf16")) and queries * passages >= ENOUGH


def screened(queries_QH: np.ndarray, passages: Searched, k: int, floor_Q: np.ndarray) -> np.ndarray:
    """Keys (Q, k), in any order, of the k best passages that reach a finite floor; NOTHING where they are fewer.

    Queries (float32) are comparable already. Beside the vectors it holds 8 bytes a candidate, of which a query
    has k or more. Raises TooCloseError where they would be too many, ModelError for a vector that is not finite.
    """
    work, order = Tiles(len(queries_QH)), passages.order
    screens = {
        rows.start: _Screen(queries_QH[rows], floor_Q[rows], work.width, k, order) for rows in work.rows
    }

    def screen(_: int, rows: slice, block: _Rounded, start: int) -> None:
        screens[rows.start].see(block, start)

    work.over_blocks(passages, screen, _rounded, "screening")
    best_QK = np.full((len(queries_QH), k), NOTHING, dtype=np.int64)
    candidates = {rows.start: _Candidates(screens.pop(rows.start).keys_RW, order) for rows in work.rows}

    def score(_: int, rows: slice, block_BH: np.ndarray, start: int) -> None:
        candidates[rows.start].score(queries_QH[rows], block_BH, start)

    work.over_blocks(passages, score, np.asarray, "scoring")
    for rows in work.rows:
        best_QK[rows] = candidates.pop(rows.start).best(k, floor_Q[rows])
    return best_QK


def _rounded(block_BH: np.ndarray) -> _Rounded:
    import torch

    block = torch.from_numpy(block_BH)
    vectors = block.to(torch.bfloat16)
    lost = torch.linalg.vector_norm(block - vectors.float(), dim=1).max()
    return _Rounded(vectors, float(torch.linalg.vector_norm(block, dim=1).max()), float(lost))


class _Screen:
    """The candidates of one tile of queries: keys of rounded scores, and how far these may be from the true ones."""

    def __init__(
        self, queries_RH: np.ndarray, floor_R: np.ndarray, width: int, k: int, order: PassageOrder
    ) -> None:
        import torch

        padded = np.pad(queries_RH, ((0, width - len(queries_RH)), (0, 0)))
        rounded = torch.from_numpy(padded).to(torch.bfloat16)
        self.queries_HW = rounded.T
        kept_RH = rounded[: len(queries_RH)].float().numpy()
        self.lost_R = np.linalg.norm(queries_RH - kept_RH, axis=1)
        self.length_R = np.linalg.norm(kept_RH, axis=1)
        self.floor_R, self.k, self.order, self.width = floor_R, k, order, width
        self.off_R = np.zeros(len(queries_RH))
        self.keys_RW = np.empty((len(queries_RH), 0), dtype=np.int64)

    def see(self, block: _Rounded, start: int) -> None:
        """Take up the candidates of a block; drop those that cannot be among the k best any more."""
        import torch

        sums = 2.0**-23 * len(self.queries_HW)  # what float32 sums lose, relative to the lengths
        off_R = self.lost_R * block.length + self.length_R * block.lost
        self.off_R = np.maximum(self.off_R, off_R + sums * block.length * (self.length_R + self.lost_R))
        least_W = np.full(self.width, np.float32(np.inf))
        least_W[: len(self.off_R)] = self._least()
        rows, positions, scores = [], [], []
        for place in range(0, len(block.vectors), STRIP):
            scores_SW = torch.mm(block.vectors[place : place + STRIP], self.queries_HW)
            hits, passages, queries = places(_at_least(scores_SW, least_W))
            rows.append(queries)
            positions.append(start + place + passages)
            scores.append(scores_SW.view(-1)[torch.from_numpy(hits)].float().numpy())
        keys = self.order.keys(np.concatenate(scores), np.concatenate(positions))
        added_RN = side_by_side(np.concatenate(rows), keys, len(self.off_R))
        self.keys_RW = np.concatenate([self.keys_RW, added_RN], axis=1)
        self._drop()

    def _least(self) -> np.ndarray:
        """What a rounded score (R,) has to reach, so that the true one may be among the k best."""
        sure_R = self.floor_R.astype(np.float64)
        if self.keys_RW.shape[1] >= self.k:
            kth_R = scores_of(np.partition(self.keys_RW, -self.k, axis=1)[:, -self.k]).astype(np.float64)
            known = np.isfinite(kth_R)
            kth_R[~known] = 0
            sure_R = np.where(
                known, np.maximum(sure_R, kth_R - 1.01 * HALF_STEP * np.abs(kth_R) - self.off_R), sure_R
            )
        least_R = sure_R - self.off_R
        return least_R - 2 * HALF_STEP * np.abs(least_R)  # the score was rounded once more on its way out

    def _drop(self) -> None:
        kept_RW = np.where(scores_of(self.keys_RW) >= self._least()[:, None], self.keys_RW, NOTHING)
        width = int((kept_RW != NOTHING).sum(axis=1).max(initial=0))
        if width > CROWD * self.k + SPARE:
            raise TooCloseError
        dropped = kept_RW.shape[1] - width
        self.keys_RW = (
            np.partition(kept_RW, dropped, axis=1)[:, dropped:] if dropped and width else kept_RW[:, :width]
        )


def _at_least(scores_SW: torch.Tensor, least_W: np.ndarray) -> np.ndarray:
    """Flags (S, W) of bfloat16 scores that reach what their column asks for."""
    import torch

    least = torch.from_numpy(least_W)
    if float(least.min()) <= 0:
        return (scores_SW.float() >= least).numpy()
    # Above zero bfloat16 numbers are ordered as their bits are, and negative ones have negative bits. `_least` has
    # taken off more than rounding the threshold may add.
    bits_W = least.to(torch.bfloat16).view(torch.int16).numpy()
    return np.greater_equal(scores_SW.view(torch.int16).numpy(), bits_W)


class _Candidates:
    """The candidates of one tile, in the order of the corpus, and their float32 scores as they come in."""

    def __init__(self, keys_RW: np.ndarray, order: PassageOrder) -> None:
        rows, columns = np.nonzero(keys_RW != NOTHING)
        positions = order.positions(keys_RW[rows, columns])
        sorting = np.argsort(positions, kind="stable")
        self.rows, self.positions = rows[sorting].astype(np.int32), positions[sorting].astype(np.int32)
        self.scores = np.empty(len(rows), dtype=np.float32)
        self.height, self.order = len(keys_RW), order

    def score(self, queries_RH: np.ndarray, block_BH: np.ndarray, start: int) -> None:
        """Score the candidates that lie in a block."""
        first, stop = np.searchsorted(
            self.positions, np.array([start, start + len(block_BH)], dtype=np.int32)
        )
        for begin in range(int(first), int(stop), PAIRS):
            chunk = slice(begin, min(begin + PAIRS, int(stop)))
            theirs_NH = np.take(block_BH, self.positions[chunk] - start, axis=0)
            ours_NH = np.take(queries_RH, self.rows[chunk], axis=0)
            self.scores[chunk] = np.einsum("nh,nh->n", ours_NH, theirs_NH)

    def best(self, k: int, floor_R: np.ndarray) -> np.ndarray:
        """Keys (R, k) of the best by float32 score; a passage below its query's floor does not count."""
        counts = self.scores >= floor_R[self.rows]
        keys = self.order.keys(self.scores[counts], self.positions[counts])
        keys_RW = side_by_side(self.rows[counts].astype(np.int64), keys, self.height)
        missing = max(0, k - keys_RW.shape[1])
        keys_RW = np.pad(keys_RW, ((0, 0), (missing, 0)), constant_values=NOTHING)
        return np.partition(keys_RW, keys_RW.shape[1] - k, axis=1)[:, keys_RW.shape[1] - k :]
