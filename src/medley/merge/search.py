"""Search for merge coefficients on dev pools, within a budget of real encodings.

`grid` encodes every point of the grid, `random` a seeded sample of it, `surrogate` (surrogate.py) scores the
whole grid on interpolated vectors and encodes only the most promising points. All return every candidate in
the order it was tried; the best has the highest mean dev score among those really encoded, ties going to the
more uniform one and then to the earlier. Points whose merged model is the same (a linear merge of .2/.2 and
.4/.4) count once.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from medley.errors import RecipeError
from medley.files import write_json
from medley.merge.coefficients import ZERO_SUM, delta_coefficients, weights_mapping
from medley.merge.pool import CandidateScore, DevPool, PoolVectors, score_vectors, standard_error
from medley.merge.settings import SearchSettings
from medley.progress import progress

Embed = Callable[[np.ndarray], Sequence[PoolVectors]]
"""Encodes every pool under coefficients (K, S), those that SearchSpace.effective gives."""

ENUMERABLE = 200_000
"""Grids up to this size are listed in full; larger ones are sampled."""


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

    def points(self) -> Iterator[np.ndarray]:
        """Every distinct candidate, in lexicographic order of the grid. Only for enumerable grids."""
        seen = set()
        for values in itertools.product(self.grid, repeat=self.shape[0] * self.shape[1]):
            weights_KS = np.array(values).reshape(self.shape)
            if self.valid(weights_KS) and (key := self.key(weights_KS)) not in seen:
                seen.add(key)
                yield weights_KS

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


@dataclass(frozen=True)
class Candidate:
    """Weights as a merge file writes them, with their dev score; `real` is false where it is the
    surrogate's."""

    coefficients: Mapping[str, float | list[float]]
    score: float
    scores: Mapping[str, float]
    real: bool = True
    measured: CandidateScore | None = field(default=None, compare=False, repr=False)

    def as_json(self) -> dict[str, Any]:
        """As search.json holds it."""
        return {
            "coefficients": dict(self.coefficients), "score": self.score, "scores": dict(self.scores),
            "real": self.real,
        }  # fmt: skip


@dataclass(frozen=True)
class SearchResult:
    """What a search tried, in order, and the best; `encodings` is how often the dev pools were encoded."""

    strategy: str
    method: str
    encodings: int
    best: Candidate
    candidates: tuple[Candidate, ...]

    def as_json(self) -> dict[str, Any]:
        """As search.json holds it."""
        return {
            "strategy": self.strategy, "method": self.method, "encodings": self.encodings,
            "best": self.best.as_json(), "candidates": [candidate.as_json() for candidate in self.candidates],
        }  # fmt: skip


def write_search(path: Path, result: SearchResult) -> None:
    """Write search.json."""
    write_json(path, result.as_json())


def search(
    embed: Embed, pools: Sequence[DevPool], space: SearchSpace, settings: SearchSettings
) -> SearchResult:
    """Run the strategy that the settings name. Raises RecipeError where the budget cannot hold it."""
    check_pools(pools)
    if settings.strategy == "grid":
        found = grid_search(embed, pools, space, encodings=settings.encodings)
    elif settings.strategy == "random":
        found = random_search(embed, pools, space, encodings=settings.encodings, seed=settings.seed)
    else:
        from medley.merge.surrogate import surrogate_search

        found = surrogate_search(embed, pools, space, encodings=settings.encodings, seed=settings.seed)
    return replace(found, best=simplest_of(found.candidates)) if settings.choose == "simplest" else found


def check_pools(pools: Sequence[DevPool]) -> None:
    """Refuse a search without dev collections, or with one twice."""
    names = [pool.name for pool in pools]
    if not names:
        raise RecipeError("search.dev: names no collection; candidates need one to be scored on.")
    if len(set(names)) < len(names):
        raise RecipeError(
            f"search.dev: names {max(names, key=names.count)} twice; name each collection once."
        )


def grid_search(
    embed: Embed, pools: Sequence[DevPool], space: SearchSpace, *, encodings: int
) -> SearchResult:
    """Encode every distinct point of the grid. Raises RecipeError when there are more than the budget
    allows."""
    points = (
        list(itertools.islice(space.points(), encodings + 1))
        if encodings < space.size
        else list(space.points())
    )
    if len(points) > encodings:
        raise RecipeError(
            f"search: the grid has {count_points(space)} points, the budget is {encodings} encodings; "
            "raise `encodings`, give a coarser `grid`, or use strategy surrogate or random."
        )
    return _encode_all(embed, pools, space, points, strategy="grid")


def random_search(
    embed: Embed, pools: Sequence[DevPool], space: SearchSpace, *, encodings: int, seed: int
) -> SearchResult:
    """Encode the uniform merge and a seeded sample of the grid."""
    uniform = space.uniform()
    sampled = [point for point in space.sample(encodings, seed) if space.key(point) != space.key(uniform)]
    return _encode_all(embed, pools, space, [uniform, *sampled[: encodings - 1]], strategy="random")


def _encode_all(
    embed: Embed, pools: Sequence[DevPool], space: SearchSpace, points: Sequence[np.ndarray], *, strategy: str
) -> SearchResult:
    candidates = []
    with progress("merge candidates", len(points)) as advance:
        for weights_KS in points:
            score = score_vectors(pools, embed(space.effective(weights_KS)))
            candidates.append(make_candidate(space, weights_KS, score))
            advance(1)
    return SearchResult(strategy, space.method, len(points), best_of(candidates), tuple(candidates))


def make_candidate(
    space: SearchSpace, weights_KS: np.ndarray, score: CandidateScore, *, real: bool = True
) -> Candidate:
    """A candidate with its weights by name."""
    return Candidate(weights_mapping(weights_KS, space.names), score.score, score.scores, real, score)


def best_of(candidates: Sequence[Candidate]) -> Candidate:
    """The best candidate that was really encoded; ties to the more uniform weights, then to the earlier."""
    real = [candidate for candidate in candidates if candidate.real]
    return min(real, key=lambda candidate: (-candidate.score, unevenness(_weights_array(candidate))))


def simplest_of(candidates: Sequence[Candidate]) -> Candidate:
    """The most uniform candidate within one standard error of the best one; ties to the higher score.

    Dev sets are small and many candidates are tried, so the highest score is partly luck; the one-standard-error
    rule (Breiman et al. 1984, section 3.4.3) gives up what could be noise for weights that depend on dev less.
    """
    best = best_of(candidates)
    within = [
        candidate
        for candidate in candidates
        if candidate.real
        and candidate.measured is not None
        and best.measured is not None
        and best.score - candidate.score <= standard_error(best.measured, candidate.measured)
    ]
    return min([best, *within], key=lambda c: (unevenness(_weights_array(c)), -c.score))


def _weights_array(candidate: Candidate) -> np.ndarray:
    return np.array([np.atleast_1d(value) for value in candidate.coefficients.values()], dtype=float)


def unevenness(weights_KS: np.ndarray) -> float:
    """Spread of the weights around their mean, relative to it; 0 is uniform. Rounded, so that ties are
    ties."""
    mean = np.abs(weights_KS).mean()
    return round(float(weights_KS.std() / mean), 9) if mean else 0.0


def count_points(space: SearchSpace) -> int:
    """Distinct candidates of an enumerable grid; all points of a larger one."""
    return sum(1 for _ in space.points()) if space.size <= ENUMERABLE else space.size


def plan_search(space: SearchSpace, settings: SearchSettings) -> dict[str, Any]:
    """What a search would cost, for --plan: distinct grid points and how often each dev pool is encoded."""
    points = count_points(space)
    encodings = (
        points if settings.strategy == "grid" else min(settings.encodings, points + len(space.names) + 1)
    )
    return {
        "strategy": settings.strategy,
        "grid_points": points,
        "encodings": encodings,
        "budget": settings.encodings,
    }
