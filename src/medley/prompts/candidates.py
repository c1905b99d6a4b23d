"""What the methods of finding instructions have in common: what they are given, and what they give back.

A method is a function from a `Problem` to `Found`: every candidate with its score on the choosing queries, where it
came from, and how the search ended. Seeds come first and are never dropped.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from medley.prompts.racing import race
from medley.prompts.scoring import Scorer


@dataclass(frozen=True)
class Problem:
    """The instruction to improve on, and the queries by which."""

    seed_instruction: str
    scorer: Scorer
    rows: np.ndarray
    seed: int


@dataclass(frozen=True)
class Candidate:
    """An instruction that was tried: its mean score over so many choosing queries, and its origin.

    `parent` is the place, among the candidates, of the one that it was made from.
    """

    instruction: str
    score: float
    queries: int
    finished: bool
    origin: str
    parent: int | None = None

    def as_json(self) -> dict[str, Any]:
        """As prompt.json holds it."""
        return asdict(self)


@dataclass(frozen=True)
class Rejected:
    """A proposal that was not tried, and why."""

    instruction: str
    reason: str


@dataclass(frozen=True)
class Found:
    """All candidates of a search, the seed first; how it ended; and what it cost, by name."""

    candidates: tuple[Candidate, ...]
    ended: str
    rejected: tuple[Rejected, ...] = ()
    counts: Mapping[str, float] = field(default_factory=dict)
    complete: bool = True
    """False where something kept the search from what was asked for: a lost endpoint, nothing usable said."""

    @property
    def best(self) -> Candidate:
        """The best of those tried on all choosing queries; the seed, then the earlier one, on ties."""
        return max((c for c in self.candidates if c.finished), key=lambda c: c.score)


def raced(problem: Problem, origins: Mapping[str, str]) -> tuple[Candidate, ...]:
    """Race the seed and candidates, given with their origins."""
    texts = list(dict.fromkeys([problem.seed_instruction, *origins]))
    results = race(
        texts, problem.scorer.scores, problem.scorer.weights, problem.rows, keep=[problem.seed_instruction]
    )
    return tuple(
        Candidate(
            r.instruction,
            r.score,
            r.queries,
            r.finished,
            "seed" if r.instruction == problem.seed_instruction else origins[r.instruction],
        )
        for r in results
    )


def only_seed(problem: Problem) -> Found:
    """The method `none`: the seed instruction, scored."""
    return Found(raced(problem, {}), "nothing else was tried")


def from_list(problem: Problem, instructions: Mapping[str, str]) -> Found:
    """The method `library`: try a list, given with the origin of each."""
    return Found(raced(problem, instructions), f"all {len(instructions)} were tried")
