"""What synthesis returns: pairs, and counts of what became of the rows and of the replies.

`Generated` holds everything at once. A stream of `Outcome`s does not: `Tally` passes its pairs on and counts, so that
a hundred thousand rows need no more memory than ten.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from medley.llm import Ledger
from medley.pairs import TrainingPair


@dataclass(frozen=True)
class Generated:
    """Pairs that were made, one for each input row where rows were extended, and counts by outcome.

    `counts` always holds `rows` (input rows or passages) and `made` (texts kept); the rest names what was
    dropped. `ledger` says what the language model was asked and what that cost; None where there was none.
    """

    pairs: tuple[TrainingPair, ...]
    counts: Mapping[str, int]
    ledger: Ledger | None = None


@dataclass(frozen=True)
class Outcome:
    """What became of one row or one reply: a pair, or None, and the counts that grow by one through it."""

    pair: TrainingPair | None
    counted: tuple[str, ...]

    def dropped(self, reason: str) -> Outcome:
        """The pair dropped after all: what counted as made counts under the reason."""
        return Outcome(None, tuple(reason if name == "made" else name for name in self.counted))


class Tally:
    """The pairs of a stream of outcomes, once, in order; `counts` is complete when the last one has been taken."""

    def __init__(self, outcomes: Iterable[Outcome]) -> None:
        self._outcomes = outcomes
        self._counts = Counter(rows=0, made=0)

    def __iter__(self) -> Iterator[TrainingPair]:
        for outcome in self._outcomes:
            self._counts.update(outcome.counted)
            if outcome.pair is not None:
                yield outcome.pair

    @property
    def counts(self) -> dict[str, int]:
        """The counts so far."""
        return dict(self._counts)


def collected(outcomes: Iterable[Outcome]) -> Generated:
    """All pairs of a stream in memory, with their counts."""
    tally = Tally(outcomes)
    pairs = tuple(tally)
    return Generated(pairs, tally.counts)
