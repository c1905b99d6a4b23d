"""TPE and CMA-ES through optuna.

Each trial's sampler is seeded by the search's seed and the trial's number, so the next candidate depends on the
history only: a search that is started again on its stored encodings goes the way it went before. With `storage` (a
journal file, which a kill leaves whole and several processes or machines may write to, or a database URL) the history
itself is shared, and the budget is that of all who work on it, overdrawn by no more than one encoding each. A trial
carries its queries' scores, so nobody encodes what another has.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import numpy as np

from medley.errors import RecipeError
from medley.fingerprint import fingerprint
from medley.merge.settings import SearchSettings
from medley.merge.trials import Trials

if TYPE_CHECKING:
    import optuna

STARTUP_SHARE = 0.3
"""Share of the budget that TPE draws at random before it models anything."""
SCORES = "per_query"
ATTEMPTS = 20
"""Draws for each encoding of the budget, at most: on a small grid samplers repeat themselves."""


def optuna_search(trials: Trials, settings: SearchSettings) -> None:
    """Ask the sampler for candidates until the budget is spent; the uniform merge is encoded first."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    space = trials.space
    # where the history is shared, so is its name: the same pools, space and settings
    described = [space.names, space.grid, space.shape, space.method, [pool.identity for pool in trials.pools]]
    name = f"medley-{fingerprint([*described, settings.strategy, settings.seed, settings.continuous])}"
    study = optuna.create_study(
        storage=_storage(settings.storage), study_name=name, load_if_exists=True, direction="maximize"
    )
    distributions = _distributions(trials, settings)
    _adopt(study, trials, settings)
    trials.measure(space.uniform())
    if settings.continuous and not study.get_trials(deepcopy=False):
        inside = np.clip(space.uniform(), min(space.grid), max(space.grid))
        study.enqueue_trial(_parameters(inside, settings, space.grid), skip_if_exists=True)
    for _ in range(ATTEMPTS * trials.budget):
        _adopt(study, trials, settings)
        if trials.left <= 0:
            return
        study.sampler = _sampler(settings, trials, number=len(study.get_trials(deepcopy=False)))
        trial = study.ask(distributions)
        weights_KS = _weights(trial.params, space.grid, settings).reshape(space.shape)
        if space.valid(weights_KS):
            candidate, _vectors = trials.measure(weights_KS)
            trial.set_user_attr(SCORES, trials.per_query(weights_KS))
            study.tell(trial, candidate.score)
        else:
            study.tell(trial, state=optuna.trial.TrialState.FAIL)


def _adopt(study: optuna.Study, trials: Trials, settings: SearchSettings) -> None:
    """Take over the candidates of the study that this process has not seen."""
    import optuna

    for done in study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.COMPLETE,)):
        weights_KS = _weights(done.params, trials.space.grid, settings).reshape(trials.space.shape)
        if not trials.known(weights_KS):
            trials.adopt(weights_KS, done.user_attrs[SCORES])


def _storage(where: str | None) -> Any:
    """None keeps the history in memory; a URL is a database, anything else a journal file."""
    if where is None:
        return None
    from optuna.storages import JournalStorage, RDBStorage
    from optuna.storages.journal import JournalFileBackend

    try:
        return RDBStorage(where) if "://" in where else JournalStorage(JournalFileBackend(where))
    except Exception as problem:  # optuna lets the database driver's and the system's errors through
        reason = str(problem).splitlines()[0]
        raise RecipeError(
            f"search.storage: {where} cannot be opened ({reason}); give a file in a folder that exists, or a URL."
        ) from problem


def _sampler(settings: SearchSettings, trials: Trials, *, number: int) -> Any:
    import optuna

    # processes that share a history may ask at the same moment and must not draw the same candidate
    process = os.getpid() if settings.storage else 0
    seed = int(fingerprint([settings.seed, number, process])[:7], 16)
    if settings.strategy == "tpe":
        startup = max(3, round(STARTUP_SHARE * trials.budget))
        return optuna.samplers.TPESampler(seed=seed, n_startup_trials=startup)
    low, high = min(trials.space.grid), max(trials.space.grid)
    start = np.clip(trials.space.uniform(), low, high)
    sigma = (high - low) / 4 if settings.continuous else len(trials.space.grid) / 4
    return optuna.samplers.CmaEsSampler(
        x0=_parameters(start, settings, trials.space.grid), sigma0=sigma, seed=seed,
        warn_independent_sampling=False,
    )  # fmt: skip


def _distributions(trials: Trials, settings: SearchSettings) -> dict[str, Any]:
    """One number for each expert and segment: between the grid's ends, or the position of a value in the grid."""
    import optuna

    grid = trials.space.grid
    one: Any = (
        optuna.distributions.FloatDistribution(min(grid), max(grid))
        if settings.continuous
        else optuna.distributions.IntDistribution(0, len(grid) - 1)
    )
    return {f"w{index:03}": one for index in range(trials.space.shape[0] * trials.space.shape[1])}


def _parameters(weights_KS: np.ndarray, settings: SearchSettings, grid: tuple[float, ...]) -> dict[str, Any]:
    values = weights_KS.ravel().tolist()
    if not settings.continuous:
        values = [int(np.abs(np.array(sorted(grid)) - value).argmin()) for value in values]
    return {f"w{index:03}": value for index, value in enumerate(values)}


def _weights(parameters: dict[str, Any], grid: tuple[float, ...], settings: SearchSettings) -> np.ndarray:
    """The weights (K S,) that a trial's parameters stand for."""
    values = [parameters[name] for name in sorted(parameters)]
    return np.array(values if settings.continuous else [sorted(grid)[position] for position in values], float)
