"""Surrogate search: score the whole grid on interpolated vectors, encode only the most promising points.

Near the base a vector moves almost linearly with the deltas' coefficients, so with e_0 of the base and e_ks
of expert k's delta alone in segment s, a candidate's vector is about e_0 + sum_ks a_ks (e_ks - e_0), scaled
back to length 1 where cosine ranks. K S + 1 encodings of the pools are the basis; after that any candidate is
scored by matrix algebra. Each verified candidate corrects the scores around it before the next one is picked:
the surrogate's errors, weighted by closeness, are added.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from medley.errors import RecipeError
from medley.merge.pool import CandidateScore, DevPool, PoolVectors, score_vectors, unit
from medley.merge.search import (
    Candidate,
    Embed,
    SearchResult,
    SearchSpace,
    best_of,
    make_candidate,
    unevenness,
)
from medley.progress import progress

SCORED = 10_000
"""Grid points scored on the surrogate, at most; a larger grid is sampled."""
REACH = 0.15
"""Distance in coefficients over which a verified candidate's error counts for its neighbours."""
SHRINKAGE = 0.1
"""How much closeness it takes for a correction to count in full."""
REPORTED = 50
"""Best surrogate-scored candidates that the result lists after the encoded ones."""


@dataclass(frozen=True)
class Surrogate:
    """The basis of one search: the pools under the base, and under each delta alone (K S of them, S
    fastest)."""

    pools: Sequence[DevPool]
    base: Sequence[PoolVectors]
    alone: Sequence[Sequence[PoolVectors]]

    def vectors(self, effective_KS: np.ndarray) -> list[PoolVectors]:
        """The interpolated vectors of every pool at the deltas' coefficients."""
        coefficients = effective_KS.ravel()
        interpolated = []
        for index, base in enumerate(self.base):
            queries, passages = base.queries.copy(), base.passages.copy()
            for coefficient, basis in zip(coefficients, self.alone, strict=True):
                if coefficient:
                    queries += np.float32(coefficient) * (basis[index].queries - base.queries)
                    passages += np.float32(coefficient) * (basis[index].passages - base.passages)
            if _of_unit_length(base):
                queries, passages = unit(queries), unit(passages)
            interpolated.append(PoolVectors(queries, passages))
        return interpolated

    def score(self, effective_KS: np.ndarray) -> CandidateScore:
        """The interpolated vectors' score."""
        return score_vectors(self.pools, self.vectors(effective_KS))


def _of_unit_length(vectors: PoolVectors) -> bool:
    return bool(np.allclose(np.linalg.norm(vectors.passages, axis=1), 1.0, atol=1e-3))


def build_surrogate(
    embed: Embed, pools: Sequence[DevPool], shape: tuple[int, int], *, advance: Callable[[int], None]
) -> Surrogate:
    """Encode the pools under the base and under each expert's delta alone in each segment."""
    base = list(embed(np.zeros(shape)))
    advance(1)
    alone = []
    for index in range(shape[0] * shape[1]):
        unit_KS = np.zeros(shape)
        unit_KS.flat[index] = 1.0
        alone.append(list(embed(unit_KS)))
        advance(1)
    return Surrogate(pools, base, alone)


def surrogate_search(
    embed: Embed, pools: Sequence[DevPool], space: SearchSpace, *, encodings: int, seed: int
) -> SearchResult:
    """Search within `encodings` encodings of the pools, the basis included.

    The uniform merge is verified first, then the uniform one whose scale the surrogate likes best; with one
    segment each expert alone is a candidate too, as the basis has it. Raises RecipeError when the method does not
    add deltas, or the budget does not reach beyond the basis.
    """
    basis_size = space.shape[0] * space.shape[1] + 1
    if not space.sums_deltas:
        raise RecipeError(
            f"search: the surrogate needs a method that adds deltas (normalised linear, task_arithmetic), "
            f"not {space.method}; use strategy random or grid."
        )
    if encodings < basis_size + 2:
        raise RecipeError(
            f"search: the surrogate's basis takes {basis_size} encodings and verifying at least 2, "
            f"the budget is {encodings}; raise `encodings` to {basis_size + 2} or more."
        )
    with progress("merge candidates", encodings) as advance:
        surrogate = build_surrogate(embed, pools, space.shape, advance=advance)
        candidates, taken = _experts_alone(surrogate, space)
        grid = space.all_or_sample(SCORED, seed)
        points = [point for point in grid if space.key(point) not in taken]
        points = [
            space.uniform(),
            *(point for point in points if space.key(point) != space.key(space.uniform())),
        ]
        effective_CKS = np.stack([space.effective(point) for point in points])
        guesses = [surrogate.score(effective_KS) for effective_KS in effective_CKS]
        guesses_C = np.array([guess.score for guess in guesses])
        unevenness_C = np.array([unevenness(point) for point in points])
        verified: dict[int, float] = {}
        while len(verified) < min(encodings - basis_size, len(points)):
            corrected_C = guesses_C + _corrections(effective_CKS, verified)
            corrected_C[list(verified)] = -np.inf
            if len(verified) == 1:  # how far to go, with equal weights
                uniform_C = np.where(unevenness_C > 0, -np.inf, corrected_C)
                corrected_C = uniform_C if np.isfinite(uniform_C).any() else corrected_C
            # the first is uniform; afterwards the best, ties to the more uniform, then to the earlier
            index = int(np.lexsort((unevenness_C, -corrected_C))[0]) if verified else 0
            score = score_vectors(pools, embed(effective_CKS[index]))
            verified[index] = score.score - float(guesses_C[index])
            candidates.append(make_candidate(space, points[index], score))
            advance(1)
    rest = [index for index in np.lexsort((unevenness_C, -guesses_C)) if index not in verified][:REPORTED]
    guessed = [make_candidate(space, points[index], guesses[index], real=False) for index in rest]
    return SearchResult(
        "surrogate", space.method, basis_size + len(verified), best_of(candidates), (*candidates, *guessed)
    )


def _experts_alone(
    surrogate: Surrogate, space: SearchSpace
) -> tuple[list[Candidate], set[tuple[float, ...]]]:
    """Candidates that the basis has encoded already, where weight one means coefficient one, and their
    keys."""
    candidates, keys = [], set()
    if space.segment_count == 1:
        for index, vectors in enumerate(surrogate.alone):
            weights_KS = np.zeros(space.shape)
            weights_KS[index] = 1.0
            if np.array_equal(space.effective(weights_KS), weights_KS):
                candidates.append(make_candidate(space, weights_KS, score_vectors(surrogate.pools, vectors)))
                keys.add(space.key(weights_KS))
    return candidates, keys


def _corrections(effective_CKS: np.ndarray, verified: dict[int, float]) -> np.ndarray:
    """For each candidate, the surrogate's mean error at the verified ones by closeness; zero far from all."""
    if not verified:
        return np.zeros(len(effective_CKS))
    flat_CX = effective_CKS.reshape(len(effective_CKS), -1)
    indices = list(verified)
    distances_CV = np.linalg.norm(flat_CX[:, None] - flat_CX[None, indices], axis=2)
    closeness_CV = np.exp(-0.5 * (distances_CV / REACH) ** 2)
    errors_V = np.array([verified[index] for index in indices])
    return (closeness_CV @ errors_V) / (closeness_CV.sum(axis=1) + SHRINKAGE)
