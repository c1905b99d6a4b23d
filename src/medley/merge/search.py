"""Search for merge coefficients on dev pools, within a budget of real encodings.

Every strategy is a function of `Trials` and the settings that measures candidates until the budget is spent. The
uniform merge is always among them. Which candidate wins is not the strategy's business: see outcome.choose.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from medley.errors import RecipeError
from medley.fingerprint import fingerprint
from medley.leaks.chosen import chosen_on
from medley.merge.learned import Learnable, learned_search
from medley.merge.outcome import SearchResult, choose
from medley.merge.pareto import pareto_front
from medley.merge.pool import DevPool
from medley.merge.search_grid import grid_search, random_search
from medley.merge.search_optuna import optuna_search
from medley.merge.search_surrogate import surrogate_search
from medley.merge.settings import SearchSettings
from medley.merge.space import SearchSpace
from medley.merge.trials import Embed, Trials
from medley.progress import progress

STRATEGIES: dict[str, Callable[[Trials, SearchSettings], None]] = {
    "surrogate": surrogate_search,
    "grid": grid_search,
    "random": random_search,
    "tpe": optuna_search,
    "cmaes": optuna_search,
}


def search(
    embed: Embed,
    pools: Sequence[DevPool],
    space: SearchSpace,
    settings: SearchSettings,
    *,
    store: Path | None = None,
    learnable: Learnable | None = None,
) -> SearchResult:
    """Run the strategy that the settings name and choose among its candidates.

    With a `store` folder (see store_folder) nothing is encoded again after a kill. `learnable` is the attached sum of
    adapters that strategy learned needs. Raises RecipeError where the budget cannot hold the strategy, the dev
    collections do not do, or there is nothing to learn.
    """
    check_pools(pools)
    total = min(settings.encodings, space.count()) if settings.strategy == "grid" else settings.encodings
    with progress("merge candidates", total) as advance:
        trials = Trials(
            embed, pools, space, budget=settings.encodings, objective=settings.objective,
            confirm=settings.confirm, seed=settings.seed, store=store, advance=advance,
        )  # fmt: skip
        if settings.strategy == "learned":
            learned_search(trials, settings, learnable)
        else:
            STRATEGIES[settings.strategy](trials, settings)
    return finish(trials, settings)


def finish(trials: Trials, settings: SearchSettings) -> SearchResult:
    """Choose among the trials' candidates."""
    best = choose(trials.candidates, settings.choose)
    front = pareto_front(trials.candidates, best, trials.pools)
    candidates = tuple(trials.candidates)
    dev = tuple(chosen_on(pool.name, "merge weights", pool.queries) for pool in trials.pools)
    return SearchResult(settings.strategy, trials.space.method, trials.spent, best, candidates, front, dev)


def store_folder(
    folder: Path, pools: Sequence[DevPool], space: SearchSpace, *, model: str, made_of: Any
) -> Path:
    """The folder below `folder` for encodings of these pools by this merge; a change of either has another one.

    `model` is the base's identity (template, pooling and dtype are in it), `made_of` whatever else decides a vector:
    experts by fingerprint, parameters, layout.
    """
    identity = [model, made_of, space.method, space.names, [pool.identity for pool in pools]]
    return folder / fingerprint(identity)


def check_pools(pools: Sequence[DevPool]) -> None:
    """Refuse a search without dev collections, or with one twice."""
    names = [pool.name for pool in pools]
    if not names:
        raise RecipeError("search.dev: names no collection; candidates need one to be scored on.")
    if len(set(names)) < len(names):
        raise RecipeError(
            f"search.dev: names {max(names, key=names.count)} twice; name each collection once."
        )


def plan_search(space: SearchSpace, settings: SearchSettings) -> dict[str, Any]:
    """What a search would cost, for --plan: distinct grid points and how often each dev pool is encoded."""
    points = space.count()
    encodings = (
        points if settings.strategy == "grid" else min(settings.encodings, points + len(space.names) + 1)
    )
    return {
        "strategy": settings.strategy,
        "grid_points": points,
        "encodings": encodings,
        "budget": settings.encodings,
    }
