"""Scores and passage ids as one sortable number, so that one partition gives the exact order with its ties.

In: float32 scores of passages at known positions. Out: int64 keys, and from keys positions, scores and rankings.
A key's upper 32 bits are the score as an integer of the same order; its lower 32 bits grow as the passage id falls
in the alphabet. Larger is better; of equal scores the smaller id wins.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

Ranking = list[tuple[str, float]]
"""Passage ids with their scores, best first."""
Rankings = Mapping[str, Ranking]
"""For each query id, its ranking."""

NOTHING = np.iinfo(np.int64).min
"""A key below every other: no passage."""


class PassageOrder:
    """The order of equal scores: passage ids by Unicode code points. Made once for a corpus, used by every search."""

    def __init__(self, passage_ids: Sequence[str]) -> None:
        descending = sorted(range(len(passage_ids)), key=passage_ids.__getitem__, reverse=True)
        self.ids = passage_ids
        self._positions = np.array(descending, dtype=np.int32)
        self._tie_D = np.empty(len(passage_ids), dtype=np.int32)
        self._tie_D[self._positions] = np.arange(len(passage_ids), dtype=np.int32)

    def __len__(self) -> int:
        return len(self.ids)

    def keys(self, scores_QD: np.ndarray, passages: slice | np.ndarray) -> np.ndarray:
        """Keys (int64) of float32 scores; the last axis goes over the passages at these positions."""
        bits = (scores_QD + np.float32(0)).view(np.int32)  # adding 0 turns -0.0 into 0.0
        return (_mirrored(bits).astype(np.int64) << 32) | self._tie_D[passages]

    def positions(self, keys: np.ndarray) -> np.ndarray:
        """The positions (int64) that keys stand for; -1 where there is no passage."""
        positions = self._positions[np.where(keys == NOTHING, 0, keys & 0xFFFFFFFF)].astype(np.int64)
        return np.where(keys == NOTHING, -1, positions)

    def ranking(self, positions_K: np.ndarray, scores_K: np.ndarray) -> Ranking:
        """Ids and scores of one query's passages, up to the first position of -1."""
        found = int(np.count_nonzero(positions_K >= 0))
        pairs = zip(positions_K[:found].tolist(), scores_K[:found].tolist(), strict=True)
        return [(self.ids[position], score) for position, score in pairs]


def scores_of(keys: np.ndarray) -> np.ndarray:
    """The float32 scores that keys stand for; minus infinity where there is no passage."""
    scores = _mirrored((keys >> 32).astype(np.int32)).view(np.float32)
    return np.where(keys == NOTHING, np.float32(-np.inf), scores)


def largest(keys: np.ndarray, k: int) -> np.ndarray:
    """The k largest keys along the last axis, descending."""
    if k < keys.shape[-1]:
        keys = np.partition(keys, keys.shape[-1] - k, axis=-1)[..., keys.shape[-1] - k :]
    return np.sort(keys, axis=-1)[..., ::-1]


def _mirrored(bits: np.ndarray) -> np.ndarray:
    """The bits of a float as an integer of the same order, and back: negative floats fall as their bits grow."""
    return np.where(bits >= 0, bits, bits ^ np.int32(0x7FFFFFFF))
