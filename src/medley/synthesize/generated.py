"""What every synthesis step returns: pairs, and a count of what happened to the rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from medley.pairs import TrainingPair


@dataclass(frozen=True)
class Generated:
    """Pairs that were made, one for each input row where rows were extended, and counts by outcome.

    `counts` always holds `rows` (input rows or passages) and `made` (texts kept); the rest names what was
    dropped.
    """

    pairs: tuple[TrainingPair, ...]
    counts: Mapping[str, int]
