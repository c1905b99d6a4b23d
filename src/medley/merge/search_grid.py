"""Grid search, which encodes every point, and random search, which encodes a seeded sample of them."""

from __future__ import annotations

import itertools

from medley.errors import RecipeError
from medley.merge.settings import SearchSettings
from medley.merge.trials import Trials


def grid_search(trials: Trials, settings: SearchSettings) -> None:
    """Encode every distinct point of the grid. Raises RecipeError when there are more than the budget allows."""
    space = trials.space
    points = list(itertools.islice(space.points(), trials.budget + 1))
    if len(points) > trials.budget:
        raise RecipeError(
            f"search: the grid has {space.count()} points, the budget is {trials.budget} encodings; "
            "raise `encodings`, give a coarser `grid`, or use strategy surrogate or random."
        )
    for weights_KS in points:
        trials.measure(weights_KS)


def random_search(trials: Trials, settings: SearchSettings) -> None:
    """Encode the uniform merge and a seeded sample of the grid."""
    trials.measure(trials.space.uniform())
    for weights_KS in trials.space.sample(trials.budget, settings.seed):
        if trials.left <= 0:
            return
        trials.measure(weights_KS)
