"""The surrogate: what a candidate's vectors will be, interpolated from those that have been encoded.

Near the base a vector moves almost linearly with the deltas' coefficients, so with e_0 of the base and e_k of delta k
alone, a candidate's vector is about e_0 + sum_k a_k (e_k - e_0), scaled back to length 1 where cosine ranks. Every
candidate that is encoded for real becomes one more node, through which the interpolation then passes exactly: cubic
radial basis functions with a linear tail (Powell 1992; Gutmann 2001), which with the first nodes alone is the linear
formula. Distance between candidates is how far the linear formula moves the vectors between them, so an expert that
changes little counts little. The result is a weight for each node; gram.py scores whole grids of such weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from medley.merge.gram import PoolGram
from medley.merge.pool import (
    CandidateScore,
    DevPool,
    Objective,
    PoolVectors,
    combine,
    score_vectors,
    unit,
)

SAME = 1e-9
"""Places closer than this are one node."""


@dataclass(frozen=True)
class Surrogate:
    """Nodes: their places (N, X), X = experts x segments, and the pools' vectors there, base first.

    The first X + 1 are the base and each delta alone, whose places are zero and the unit vectors.
    """

    pools: Sequence[DevPool]
    places: np.ndarray
    nodes: tuple[Sequence[PoolVectors], ...]
    metric: np.ndarray

    @classmethod
    def of_basis(cls, pools: Sequence[DevPool], basis: Sequence[Sequence[PoolVectors]]) -> Surrogate:
        """The linear formula: from the base's vectors and those of each delta alone."""
        count = len(basis) - 1
        moves_XV = np.stack([_stacked(node) - _stacked(basis[0]) for node in basis[1:]])
        metric = moves_XV @ moves_XV.T
        places = np.concatenate([np.zeros((1, count)), np.eye(count)])
        return cls(pools, places, tuple(basis), metric / max(np.trace(metric) / count, 1e-12))

    def with_node(self, place_X: np.ndarray, vectors: Sequence[PoolVectors]) -> Surrogate:
        """The surrogate that also knows the vectors at a place; a place that is known already changes nothing."""
        if np.abs(self.places - place_X).max(axis=1).min() < SAME:
            return self
        return replace(self, places=np.vstack([self.places, place_X]), nodes=(*self.nodes, vectors))

    @property
    def cosine(self) -> bool:
        """Whether vectors have length 1, so that cosine ranks."""
        return all(np.allclose(np.linalg.norm(v.passages, axis=1), 1.0, atol=1e-3) for v in self.nodes[0])

    def weights(self, places_CX: np.ndarray) -> np.ndarray:
        """The nodes' weights (C, N) at each place; they sum to one."""
        count, dimensions = self.places.shape
        tail_NY = np.column_stack([np.ones(count), self.places])
        tail_CY = np.column_stack([np.ones(len(places_CX)), places_CX])
        if count == dimensions + 1:
            linear_CN: np.ndarray = tail_CY @ np.linalg.inv(tail_NY)
            return linear_CN
        zeros_YY = np.zeros((dimensions + 1, dimensions + 1))
        system = np.block([[self._cubes(self.places), tail_NY], [tail_NY.T, zeros_YY]])
        right_side = np.column_stack([self._cubes(places_CX), tail_CY])
        weights_CN: np.ndarray = np.linalg.solve(system, right_side.T).T[:, :count]
        return weights_CN

    def _cubes(self, places_CX: np.ndarray) -> np.ndarray:
        """Cubed distances (C, N) of places to the nodes."""
        moves_CNX = places_CX[:, None] - self.places[None]
        squares_CN = np.einsum("cnx,xy,cny->cn", moves_CNX, self.metric, moves_CNX)
        # a little of the plain distance, so that two places are never one, even where an expert changes nothing
        squares_CN += 1e-6 * (moves_CNX**2).sum(axis=2)
        cubes_CN: np.ndarray = np.maximum(squares_CN, 0.0) ** 1.5
        return cubes_CN

    def vectors(self, place: np.ndarray) -> list[PoolVectors]:
        """The interpolated vectors of every pool at a place, (X,) or (experts, segments)."""
        weights_N = self.weights(place.reshape(1, -1))[0].astype(np.float32)
        interpolated = []
        for index in range(len(self.pools)):
            queries = sum(w * node[index].queries for w, node in zip(weights_N, self.nodes, strict=True))
            passages = sum(w * node[index].passages for w, node in zip(weights_N, self.nodes, strict=True))
            assert isinstance(queries, np.ndarray) and isinstance(passages, np.ndarray)
            interpolated.append(
                PoolVectors(unit(queries), unit(passages)) if self.cosine else PoolVectors(queries, passages)
            )
        return interpolated

    def score(self, place: np.ndarray) -> CandidateScore:
        """The interpolated vectors' score."""
        return score_vectors(self.pools, self.vectors(place))


class GridScorer:
    """Scores many places on a growing surrogate, on the queries where `counted` (by pool) is true."""

    def __init__(
        self, surrogate: Surrogate, counted: Mapping[str, np.ndarray], objective: Objective = "mean"
    ) -> None:
        self.surrogate = surrogate
        self._pools = [pool for pool in surrogate.pools if counted[pool.name].any()]
        self._objective: Objective = objective
        by_pool = list(zip(*surrogate.nodes, strict=True))
        self._grams = [
            PoolGram(pool, counted[pool.name], nodes, cosine=surrogate.cosine)
            for pool, nodes in zip(surrogate.pools, by_pool, strict=True)
            if counted[pool.name].any()
        ]
        self._positions = [i for i, pool in enumerate(surrogate.pools) if counted[pool.name].any()]

    def add(self, place_X: np.ndarray, vectors: Sequence[PoolVectors]) -> None:
        """Let the surrogate know what a place's vectors really are."""
        grown = self.surrogate.with_node(place_X, vectors)
        if grown is not self.surrogate:
            self.surrogate = grown
            for position, gram in zip(self._positions, self._grams, strict=True):
                gram.add(vectors[position])

    def score(self, places_CX: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The score (C,) at each place, and each pool's (C, P)."""
        weights_CN = self.surrogate.weights(places_CX)
        scores_CP = np.stack([gram.score(weights_CN) for gram in self._grams], axis=1)
        return combine(scores_CP, np.array([pool.weight for pool in self._pools]), self._objective)[
            0
        ], scores_CP

    @property
    def names(self) -> list[str]:
        """The pools in the order of the scores' columns."""
        return [pool.name for pool in self._pools]


def _stacked(vectors: Sequence[PoolVectors]) -> np.ndarray:
    """All vectors of all pools as one (V,)."""
    return np.concatenate([side.ravel() for v in vectors for side in (v.queries, v.passages)]).astype(
        np.float64
    )
