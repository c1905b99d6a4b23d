"""Instructions scored without a model: a scorer whose best instruction is known, and language models that propose."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from medley.collections import Passage
from medley.prompts.scoring import DevQuery, DevSet
from medley.statistics.compare import compare

TOPICS = ("heart", "lung", "liver", "kidney", "skin", "bone", "nerve", "blood", "brain", "eye")


def dev_set(count: int, name: str = "dev") -> DevSet:
    """`count` queries, each with one relevant passage of its own."""
    queries = tuple(f"does the {TOPICS[i % 10]} heal in case{i}" for i in range(count))
    passages = tuple(
        Passage(f"p{i:03d}", f"The {TOPICS[i % 10]} heals slowly in case {i}.") for i in range(count)
    )
    ids = tuple(f"q{i}" for i in range(count))
    return DevSet(
        name, ids, queries, passages, tuple((i,) for i in range(count)), lambda s, rows: np.ones(len(rows))
    )


@dataclass
class KnownScorer:
    """As Scorer, but `value(instruction)` says how good an instruction is on average; queries differ in difficulty."""

    value: Callable[[str], float]
    sets: Sequence[DevSet]
    noise: float = 0.05
    encoded: int = 0
    asked: list[tuple[str, int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.queries = [DevQuery(dev, row) for dev in self.sets for row in range(len(dev.queries))]
        self.difficulty = np.random.default_rng(0).uniform(-0.2, 0.2, len(self.queries))

    def scores(self, instructions: Sequence[str], rows: np.ndarray | None = None) -> np.ndarray:
        rows = np.arange(len(self.queries)) if rows is None else rows
        self.asked += [(text, int(row)) for text in instructions for row in rows]
        own = [
            np.random.default_rng(list(text.encode()) or [0]).normal(0, self.noise, len(self.queries))
            for text in instructions
        ]
        values = [
            self.value(text) + (self.difficulty + n)[rows] for text, n in zip(instructions, own, strict=True)
        ]
        return np.clip(np.array(values), 0, 1)

    def weights(self, rows: np.ndarray) -> np.ndarray:
        return np.full(len(rows), 1 / len(rows))

    def means(self, instructions: Sequence[str], rows: np.ndarray | None = None) -> np.ndarray:
        return self.scores(instructions, rows).mean(axis=1)

    def similarities(self, instruction: str, row: int) -> np.ndarray:
        """The relevant passage comes third."""
        found = np.zeros(len(self.queries[row].dev.passages))
        found[[row, (row + 1) % len(found), (row + 2) % len(found)]] = (0.5, 0.9, 0.7)
        return found


def words_of(best: str) -> Callable[[str], float]:
    """The share of the words of the best instruction that another one has."""
    wanted = set(best.lower().split())
    return lambda text: 0.3 + 0.4 * len(wanted & set(text.lower().split())) / len(wanted)


def paired_test(a: Any, b: Any) -> dict[str, Any]:
    return compare(a, b, seed=1).as_json()
