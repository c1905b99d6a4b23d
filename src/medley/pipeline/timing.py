"""How long the steps of a plan will take on this machine, from a few passes measured over texts of the recipe's dev.

In: the rows of a plan, which say how many texts a step trains and encodes. Out: the same with `seconds`. Two speeds
are measured: encoding, and training as train/preflight.py measures it. Steps that do neither get no time (reading,
BM25, leaks), nor does what waits for a language model; the base is opened, nothing is written.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from medley.encoder import Retriever, build_retriever, encode_passages, encode_queries
from medley.pairs import TrainingPair
from medley.pipeline.inputs import Inputs
from medley.recipe import Recipe
from medley.train.preflight import preflight

TEXTS = 64
"""Queries, and passages, that are encoded for the measurement, at most; and pairs that are trained on."""
TURNS = 3


@dataclass(frozen=True)
class Speeds:
    """Seconds for a text, passages and queries half and half, encoded and trained."""

    encoded: float
    trained: float


def measure(recipe: Recipe) -> Speeds:
    """Measure on texts of the first dev collection, which every recipe has."""
    inputs = Inputs(keep_empty=recipe.empty_passages == "keep")
    collection = inputs.collection(recipe.merge.dev[0])
    queries = list(collection.queries.values())[:TEXTS]
    passages = [passage.full_text for passage in collection.corpus[:TEXTS]]
    retriever = build_retriever(recipe.base, recipe.retriever)
    return Speeds(
        _seconds_encoding(retriever, queries, passages),
        _seconds_training(recipe, retriever, queries, passages),
    )


def _seconds_encoding(retriever: Retriever, queries: Sequence[str], passages: Sequence[str]) -> float:
    turns = []
    for _ in range(TURNS + 1):
        started = time.perf_counter()
        encode_queries(retriever, queries)
        encode_passages(retriever, passages)
        turns.append(time.perf_counter() - started)
    return statistics.median(turns[1:]) / (len(queries) + len(passages))


def _seconds_training(
    recipe: Recipe, retriever: Retriever, queries: Sequence[str], passages: Sequence[str]
) -> float:
    """Of pairs that are none, but as long as real ones: a query, a passage, and passages as its negatives."""
    wanted = recipe.train.negatives
    pairs = [
        TrainingPair(query, passages[row % len(passages)],
                     tuple(passages[(row + 1 + k) % len(passages)] for k in range(min(wanted, len(passages) - 1))))
        for row, query in enumerate(queries)
    ]  # fmt: skip
    found = preflight(retriever, pairs, recipe.train, seed=recipe.seed)
    texts = found.batch_size * (2 + len(pairs[0].negatives))
    return found.seconds_per_step / texts


def timed(rows: Sequence[Mapping[str, Any]], speeds: Speeds) -> list[dict[str, Any]]:
    """The rows of a plan with `seconds` where a step that is not done encodes or trains."""
    found = []
    for row in rows:
        seconds = row.get("texts_trained", 0) * speeds.trained + row.get("texts_encoded", 0) * speeds.encoded
        waits = row["state"] not in ("done", "reused") and seconds > 0
        found.append({**row, "seconds": round(seconds, 3)} if waits else dict(row))
    return found
