"""What a search tried and what it chose: candidates with their scores, the choice among them, search.json.

The strategies see the scores on the search queries only. The choice is made on the confirm queries, which no
strategy has seen: the best few by search score, with uniform weights among them, are compared there, and by the
one-standard-error rule the simplest of those that are as good as the best wins.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from medley.files import write_json
from medley.leaks.chosen import ChosenOn, as_extra
from medley.merge.coefficients import weights_mapping
from medley.merge.pareto import Front
from medley.merge.pool import CandidateScore, standard_error
from medley.merge.space import SearchSpace

FINALISTS = 8
"""Candidates with the highest search scores that are compared on the confirm queries, beside the uniform one."""


@dataclass(frozen=True)
class Candidate:
    """Weights as a merge file writes them, with their dev score; `real` is false where it is the surrogate's.

    `score` and `scores` are of the search queries, `confirm` of the held-out ones where there are any.
    `predicted` is what the surrogate said before the candidate was encoded.
    """

    coefficients: Mapping[str, float | list[float]]
    score: float
    scores: Mapping[str, float]
    real: bool = True
    measured: CandidateScore | None = field(default=None, compare=False, repr=False)
    predicted: float | None = None
    confirm: CandidateScore | None = None

    @property
    def weights(self) -> np.ndarray:
        """The weights (K, S)."""
        return np.array([np.atleast_1d(value) for value in self.coefficients.values()], dtype=float)

    def as_json(self) -> dict[str, Any]:
        """As search.json holds it."""
        value: dict[str, Any] = {
            "coefficients": dict(self.coefficients), "score": self.score, "scores": dict(self.scores),
            "real": self.real,
        }  # fmt: skip
        if self.predicted is not None:
            value["predicted"] = self.predicted
        if self.confirm is not None:
            value["confirm"] = {"score": self.confirm.score, "scores": dict(self.confirm.scores)}
        return value


@dataclass(frozen=True)
class SearchResult:
    """What a search tried, in order, and what it chose; `encodings` is how often the dev pools were encoded."""

    strategy: str
    method: str
    encodings: int
    best: Candidate
    candidates: tuple[Candidate, ...]
    front: Front | None = None
    chosen_on: tuple[ChosenOn, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """As search.json holds it."""
        value = {
            "strategy": self.strategy, "method": self.method, "encodings": self.encodings,
            "best": self.best.as_json(), "candidates": [candidate.as_json() for candidate in self.candidates],
            **as_extra(self.chosen_on),
        }  # fmt: skip
        return value if self.front is None else value | {"front": self.front.as_json()}


def write_search(path: Path, result: SearchResult) -> None:
    """Write search.json."""
    write_json(path, result.as_json())


def make_candidate(
    space: SearchSpace,
    weights_KS: np.ndarray,
    score: CandidateScore,
    *,
    real: bool = True,
    predicted: float | None = None,
    confirm: CandidateScore | None = None,
) -> Candidate:
    """A candidate with its weights by name."""
    named = weights_mapping(weights_KS, space.names)
    return Candidate(named, score.score, score.scores, real, score, predicted, confirm)


def best_of(candidates: Sequence[Candidate]) -> Candidate:
    """The best candidate that was really encoded; ties to the more uniform weights, then to the earlier."""
    real = [candidate for candidate in candidates if candidate.real]
    return min(real, key=lambda candidate: (-candidate.score, unevenness(candidate.weights)))


def choose(candidates: Sequence[Candidate], rule: Literal["best", "simplest"]) -> Candidate:
    """The candidate that a search ends with.

    With confirm queries the finalists are compared on them, otherwise all candidates on the search queries.
    """
    real = [candidate for candidate in candidates if candidate.real]
    if any(candidate.confirm is None for candidate in real):
        best = best_of(real)
        return best if rule == "best" else simplest_of(real, best)
    ranked = sorted(real, key=lambda candidate: (-candidate.score, unevenness(candidate.weights)))
    uniform = [candidate for candidate in real if unevenness(candidate.weights) == 0]
    finalists = list({id(candidate): candidate for candidate in (*ranked[:FINALISTS], *uniform)}.values())
    best = min(finalists, key=lambda candidate: (-_confirmed(candidate).score, unevenness(candidate.weights)))
    return best if rule == "best" else simplest_of(finalists, best)


def simplest_of(candidates: Sequence[Candidate], best: Candidate) -> Candidate:
    """The simplest candidate within one standard error of the best one; ties to the higher score.

    Dev sets are small and many candidates are tried, so the highest score is partly luck; the one-standard-error
    rule (Breiman et al. 1984, section 3.4.3) gives up what could be noise for weights that depend on dev less.
    Scores are those of the confirm queries where there are any.
    """
    own = _confirmed(best)
    within = [
        candidate
        for candidate in candidates
        if candidate.real
        and candidate.measured is not None
        and own.score - _confirmed(candidate).score <= standard_error(own, _confirmed(candidate))
    ]
    return min([best, *within], key=lambda c: (*complexity(c.weights), -_confirmed(c).score))


def _confirmed(candidate: Candidate) -> CandidateScore:
    score = candidate.confirm or candidate.measured
    assert score is not None  # every really encoded candidate has one
    return score


def complexity(weights_KS: np.ndarray) -> tuple[int, int, float]:
    """How much of dev the weights can have taken in: distinct values, experts left out or not, unevenness.

    Uniform weights are (1, 0, 0); equal weights of some experts have one value too, and fewer experts are simpler.
    """
    rounded = np.round(weights_KS, 9)
    used = int((np.abs(rounded).max(axis=1) > 0).sum())
    values = len(np.unique(rounded[rounded != 0]))
    all_equal = values == 1 and bool((rounded != 0).all())
    return values, 0 if all_equal else used, unevenness(weights_KS)


def unevenness(weights_KS: np.ndarray) -> float:
    """Spread of the weights around their mean, relative to it; 0 is uniform. Rounded, so that ties are
    ties."""
    mean = np.abs(weights_KS).mean()
    return round(float(weights_KS.std() / mean), 9) if mean else 0.0
