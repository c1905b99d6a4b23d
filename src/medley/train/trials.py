"""One training for each learning rate that is to be tried; dev says which result is kept.

Results lie in a folder, one below it for each rate, with what was trained and its report. A rate that is finished is
not trained again, so a killed process goes on where it was; what belongs to other data, settings or dev is
never taken up, because the folder's name says what it belongs to.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from medley.encoder import Retriever
from medley.errors import DivergedError, InputError, ModelError
from medley.files import read_json, remove, write_json
from medley.fingerprint import fingerprint
from medley.pairs import TrainingPair
from medley.progress import say
from medley.train.adapter import remove_adapter
from medley.train.contrastive import Training, train
from medley.train.processes import is_first, shared, wait
from medley.train.settings import TrainSettings
from medley.train.stopping import Score
from medley.train.trainer import training_identity

RESULT, REPORT = "result", "training.json"
DIVERGED = "diverged"
"""In a trial's report instead of losses: why there is no result."""


@dataclass(frozen=True)
class Trial:
    """What one learning rate gave: where the result lies, and the training's report as plain data."""

    learning_rate: float
    result: Path
    report: dict[str, Any]

    @property
    def score(self) -> float:
        """On dev; 0 where nothing was scored, minus infinity where training diverged."""
        if DIVERGED in self.report:
            return -math.inf
        dev = self.report.get("dev")
        return float(dev["chosen"]["score"]) if dev else 0.0


def train_best(
    retriever: Retriever,
    pairs: Sequence[TrainingPair],
    settings: TrainSettings,
    save: Callable[[Path, Training], None],
    *,
    folder: Path,
    seed: int,
    label: str,
    score: Score | None = None,
    dev: Sequence[str] = (),
) -> Trial:
    """Train with each learning rate, or with the one there is; `save` writes what was trained to a
    path.

    `dev` names what `score` scores on, by content. An adapter that was trained is taken off again. Of equal scores
    the lowest rate wins. A rate at which training diverges is told and loses to any other. The caller removes the
    folder when it has taken the result. Raises InputError where several rates are to be tried on all weights (only
    an adapter can be taken off), DivergedError where all rates diverge.
    """
    stopping = settings.early_stopping
    rates = sorted(set(stopping.learning_rates)) if stopping and stopping.learning_rates else []
    if len(rates) > 1 and settings.lora is None:
        raise InputError(
            f"{label}: several learning rates can be tried with an adapter only; give one, or set train.lora."
        )
    own = fingerprint([training_identity(retriever.identity(), pairs, settings, seed=seed), list(dev)])
    trials = []
    for rate in rates or [settings.learning_rate]:
        place = folder / own / f"rate-{rate:g}"
        if shared(lambda place=place: not (place / REPORT).is_file()):  # type: ignore[misc]
            report: dict[str, Any]
            try:
                trained = train(
                    retriever,
                    pairs,
                    settings.model_copy(update={"learning_rate": rate}),
                    seed=seed,
                    label=f"{label} at rate {rate:g}" if len(rates) > 1 else label,
                    score=score,
                    checkpoints=place / "steps",
                )
                report = asdict(trained)
                if is_first():
                    save(place / RESULT, trained)
            except DivergedError as problem:  # in every process alike
                report = {DIVERGED: str(problem)}
                if is_first():
                    remove(place)  # what it would go on from diverges again
                    if len(rates) > 1:
                        say(str(problem))
            if is_first():
                write_json(place / REPORT, {**report, "learning_rate": rate})
            if settings.lora is not None:
                remove_adapter(retriever)
            wait()
        trials.append(Trial(rate, place / RESULT, read_json(place / REPORT, ModelError)))
    best = max(trials, key=lambda trial: trial.score)
    if DIVERGED in best.report:
        raise DivergedError(best.report[DIVERGED])
    if len(trials) > 1:
        best.report["tried"] = [
            {"learning_rate": t.learning_rate}
            | ({DIVERGED: True} if DIVERGED in t.report else {"score": t.score})
            for t in trials
        ]
        if is_first():
            say(f"{label}: learning rate {best.learning_rate:g} is best on dev ({best.score:.4f})")
    return best
