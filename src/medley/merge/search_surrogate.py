"""Surrogate search: score the whole grid on interpolated vectors, encode only the most promising points.

K S + 1 encodings are the basis: the base, and each expert's delta alone in each segment. After that the grid is scored
by matrix products (gram.py). The uniform merge is verified first, then the uniform one whose scale the surrogate likes
best, then always the best point that has not been encoded; each verified point becomes a node of the interpolation,
which changes the scores of the rest. Methods that do not add deltas (TIES, DARE, ...) start from their own basis and
the linear formula between, and are corrected in the same way.
"""

from __future__ import annotations

import numpy as np

from medley.errors import RecipeError
from medley.merge.outcome import unevenness
from medley.merge.settings import SearchSettings
from medley.merge.surrogate import GridScorer, Surrogate
from medley.merge.trials import Trials

SCORED = 10_000
"""Grid points scored on the surrogate, at most; a larger grid is sampled."""
REPORTED = 50
"""Best surrogate-scored candidates that the result lists after the encoded ones."""


def surrogate_search(trials: Trials, settings: SearchSettings) -> None:
    """Search within the budget, the basis included; stop early after `patience` verifications without a gain.

    With one segment each expert alone is a candidate too, as the basis has it. Raises RecipeError when the budget does
    not reach beyond the basis.
    """
    space = trials.space
    basis_size = space.shape[0] * space.shape[1] + 1
    if trials.budget < basis_size + 2:
        raise RecipeError(
            f"search: the surrogate's basis takes {basis_size} encodings and verifying at least 2, "
            f"the budget is {trials.budget}; raise `encodings` to {basis_size + 2} or more."
        )
    scorer = GridScorer(_basis(trials), trials.searched, trials.objective)
    uniform = space.uniform()
    taken = {space.key(candidate.weights) for candidate in trials.candidates}
    grid = [point for point in space.all_or_sample(SCORED, settings.seed) if space.key(point) not in taken]
    points = [uniform, *(point for point in grid if space.key(point) != space.key(uniform))]
    places_CX = np.stack([space.place(point).ravel() for point in points])
    unevenness_C = np.array([unevenness(point) for point in points])
    verified: list[int] = []
    best, since = -np.inf, 0
    while True:
        guesses_C, guesses_CP = scorer.score(places_CX)
        if trials.left <= 0 or len(verified) == len(points) or since >= settings.patience:
            break
        index = _next(guesses_C, unevenness_C, verified)
        candidate, vectors = trials.measure(
            points[index], predicted=float(guesses_C[index]), keep_vectors=True
        )
        assert vectors is not None  # asked for
        verified.append(index)
        scorer.add(places_CX[index], vectors)
        best, since = (candidate.score, 0) if candidate.score > best else (best, since + 1)
    rest = [i for i in np.lexsort((unevenness_C, -guesses_C)) if i not in verified][:REPORTED]
    for i in rest:
        scores = dict(zip(scorer.names, guesses_CP[i].tolist(), strict=True))
        trials.guess(points[i], float(guesses_C[i]), scores)


def _basis(trials: Trials) -> Surrogate:
    """Encode the base and each delta alone; experts alone become candidates where their weights mean just that."""
    space = trials.space
    nodes = [trials.vectors(np.zeros(space.shape))]
    for index in range(space.shape[0] * space.shape[1]):
        weights_KS = np.zeros(space.shape)
        weights_KS.flat[index] = 1.0
        nodes.append(trials.vectors(weights_KS))
        if space.segment_count == 1 and np.array_equal(space.effective(weights_KS), weights_KS):
            trials.measure(weights_KS)
    return Surrogate.of_basis(trials.pools, nodes)


def _next(guesses_C: np.ndarray, unevenness_C: np.ndarray, verified: list[int]) -> int:
    """The uniform merge (index 0), then how far to go with equal weights, then the best; ties to the more uniform."""
    if not verified:
        return 0
    open_C = guesses_C.copy()
    open_C[verified] = -np.inf
    if len(verified) == 1:
        even_C = np.where(unevenness_C > 0, -np.inf, open_C)
        open_C = even_C if np.isfinite(even_C).any() else open_C
    return int(np.lexsort((unevenness_C, -open_C))[0])
