"""The candidates of a merge search: a value for each expert and segment, and what a value of weights means.

Points whose merged model is the same (a linear merge of .2/.2 and .4/.4) count once.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from medley.merge.coefficients import ZERO_SUM, delta_coefficients

ENUMERABLE = 200_000
"""Grids up to this size are listed in full; larger ones are sampled."""
NORMALISED = ("linear", "ties", "della")
"""Methods that divide by the sum of the weights unless told not to (mergekit's defaults; a test compares)."""


@dataclass(frozen=True)
class SearchSpace:
    """The candidates: a value of the grid for each expert and segment, all zero left out."""

    names: tuple[str, ...]
    grid: tuple[float, ...]
    segment_count: int = 1
    method: str = "linear"
    normalize: bool | None = None
    scale: float = 1.0

    @property
    def shape(self) -> tuple[int, int]:
        """(experts, segments)."""
        return len(self.names), self.segment_count

    @property
    def size(self) -> int:
        """Number of grid points, equal models counted separately."""
        return len(self.grid) ** (self.shape[0] * self.shape[1])

    @property
    def sums_deltas(self) -> bool:
        """Whether candidates are weighted sums of deltas, so that coefficients of deltas describe them."""
        return self.method == "task_arithmetic" or (self.method == "linear" and self.normalize is not False)

    def effective(self, weights_KS: np.ndarray) -> np.ndarray:
        """What the merge is made with: the deltas' coefficients, or the weights themselves for other
        methods."""
        if not self.sums_deltas:
            return weights_KS
        return delta_coefficients(self.method, weights_KS, normalize=self.normalize, scale=self.scale)

    def place(self, weights_KS: np.ndarray) -> np.ndarray:
        """Where a candidate lies for the surrogate: the coefficients its deltas would have if the method added them.

        Exact for sums of deltas; for the others (TIES, DARE, ...) the linear merge that is closest to them.
        """
        if self.sums_deltas:
            return self.effective(weights_KS)
        normalised = self.method in NORMALISED if self.normalize is None else self.normalize
        return delta_coefficients("task_arithmetic", weights_KS, normalize=normalised, scale=self.scale)

    def valid(self, weights_KS: np.ndarray) -> bool:
        """Whether the weights make a merge: not all zero, and no segment without one where they are
        normalised."""
        if self.method == "linear" and self.sums_deltas:
            return bool(np.abs(weights_KS.sum(axis=0)).min() > ZERO_SUM)
        return bool(np.abs(weights_KS).max() > 0)

    def key(self, weights_KS: np.ndarray) -> tuple[float, ...]:
        """Equal for weights that make the same model."""
        return tuple(np.round(self.effective(weights_KS), 9).ravel().tolist())

    def uniform(self) -> np.ndarray:
        """Equal weights that sum to one."""
        return np.full(self.shape, 1.0 / len(self.names))

    def alone(self) -> list[np.ndarray]:
        """Each expert by itself, with weight one."""
        return [
            np.repeat(np.eye(len(self.names))[:, [k]], self.segment_count, axis=1)
            for k in range(self.shape[0])
        ]

    def points(self) -> Iterator[np.ndarray]:
        """Every distinct candidate, in lexicographic order of the grid. Only for enumerable grids."""
        seen = set()
        for values in itertools.product(self.grid, repeat=self.shape[0] * self.shape[1]):
            weights_KS = np.array(values).reshape(self.shape)
            if self.valid(weights_KS) and (key := self.key(weights_KS)) not in seen:
                seen.add(key)
                yield weights_KS

    def count(self) -> int:
        """Distinct candidates of an enumerable grid; all points of a larger one."""
        return sum(1 for _ in self.points()) if self.size <= ENUMERABLE else self.size

    def all_or_sample(self, count: int, seed: int) -> list[np.ndarray]:
        """Every distinct candidate in order, or a sample of them where the grid is larger than `count`."""
        return list(self.points()) if self.size <= count else self.sample(count, seed)

    def sample(self, count: int, seed: int) -> list[np.ndarray]:
        """Distinct candidates drawn uniformly from the grid; fewer where it has not so many."""
        generator = np.random.default_rng(seed)
        if self.size <= ENUMERABLE:
            points = list(self.points())
            return [points[index] for index in generator.permutation(len(points))[:count]]
        seen: dict[tuple[float, ...], np.ndarray] = {}
        for _ in range(20 * count):
            weights_KS = generator.choice(np.array(self.grid), self.shape)
            if self.valid(weights_KS):
                seen.setdefault(self.key(weights_KS), weights_KS)
            if len(seen) == count:
                break
        return list(seen.values())
