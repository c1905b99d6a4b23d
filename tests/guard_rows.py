"""A query with its answers and non-answers, and rows made of them, for tests of the guard."""

from __future__ import annotations

from typing import Any

from medley.guard.settings import GuardSettings
from medley.pairs import TrainingPair

QUERY = "first treatment of type 2 diabetes"
ANSWER = (
    "Metformin is the first treatment of type 2 diabetes in adults who can take it without harm to the kidney"
)
OTHER_ANSWER = (
    "In most adults with type 2 diabetes treatment begins with metformin, unless the kidneys are failing"
)
HARD = "Insulin is a treatment of type 1 diabetes in children."
FAR = "Steel bridges last a century."
BARE = GuardSettings()
BM25 = GuardSettings(retriever="bm25")


def row(*negatives: str, positive: str = ANSWER, query: str = QUERY, **provenance: Any) -> TrainingPair:
    """A row of the query with these negatives."""
    return TrainingPair(query, positive, negatives, provenance=provenance)


def removed(pair: TrainingPair) -> dict[str, str]:
    """Text -> signal of what the guard took from a row."""
    return {entry["text"]: entry["signal"] for entry in pair.provenance.get("guard", {}).get("removed", ())}
