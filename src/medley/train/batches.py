"""Which pairs meet in a batch: row numbers out, one array a step, the same for the same seed whatever was skipped.

Pairs come in random order, pass after pass, so a batch is always full and the end of a pass falls where it falls.
No batch holds a query or a positive twice (texts count as equal but for case and punctuation): what does not fit
waits for the next batch. Sources are mixed, or a batch holds pairs of one source; either way a source of n pairs is
drawn with weight n^(1/T), so a temperature T above 1 gives small sources more than their share.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from medley.fingerprint import fingerprint
from medley.overlap import normal_form
from medley.pairs import TrainingPair

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class Keys:
    """What of N pairs decides who may meet: numbers that are equal where texts are, and the source, from 0."""

    query_N: np.ndarray
    positive_N: np.ndarray
    source_N: np.ndarray


def text_key(text: str) -> int:
    """A 63-bit number that texts share if they are equal but for case, punctuation and white space."""
    return int(fingerprint(normal_form(text) or text)[:15], 16)


def keys_of(pairs: Sequence[TrainingPair]) -> Keys:
    """The keys of pairs; the same words under another instruction are another query."""
    import numpy as np

    sources: dict[str, int] = {}
    query, positive, source = (np.zeros(len(pairs), dtype=np.int64) for _ in range(3))
    for row, pair in enumerate(pairs):
        query[row] = text_key(f"{pair.instruction}\n{pair.query}")
        positive[row] = text_key(pair.positive)
        source[row] = sources.setdefault(pair.source, len(sources))
    return Keys(query, positive, source)


class Batches:
    """The row numbers of each of `steps` batches; iterating twice gives the same."""

    def __init__(
        self,
        keys: Keys,
        *,
        batch_size: int,
        steps: int,
        seed: int,
        mode: Literal["mixed", "one_source"] = "mixed",
        temperature: float = 1.0,
    ) -> None:
        self.batch_size = batch_size
        self.drop_last = False
        self._keys, self._steps, self._seed = keys, steps, seed
        self._mode, self._temperature = mode, temperature

    def __len__(self) -> int:
        """Number of batches."""
        return self._steps

    def __iter__(self) -> Iterator[list[int]]:
        """Batch by batch."""
        import numpy as np

        sources = self._keys.source_N
        rows_of = [np.flatnonzero(sources == source) for source in range(int(sources.max()) + 1)]
        if self._mode == "mixed" and (self._temperature == 1.0 or len(rows_of) == 1):
            rows_of = [np.arange(len(sources))]
        weights = np.array([float(len(rows)) for rows in rows_of]) ** (1 / self._temperature)
        streams = [_Stream(rows, self._keys, [self._seed, index]) for index, rows in enumerate(rows_of)]
        turns = _turns(weights / weights.sum())
        for _ in range(self._steps):
            batch = _Batch(self._keys, self.batch_size)
            if self._mode == "one_source":
                streams[next(turns)].fill(batch, self.batch_size)
            else:
                wanted = [0] * len(streams)
                for _ in range(self.batch_size):
                    wanted[next(turns)] += 1
                for stream, count in zip(streams, wanted, strict=True):
                    stream.fill(batch, count)
            yield batch.rows


def _turns(shares: np.ndarray) -> Iterator[int]:
    """Whose turn it is: always the one that is furthest behind its share, so shares hold at every moment."""
    import numpy as np

    given = np.zeros(len(shares))
    for count in range(1, 2**62):
        turn = int(np.argmax(shares * count - given))
        given[turn] += 1
        yield turn


class _Batch:
    """A batch being filled."""

    def __init__(self, keys: Keys, size: int) -> None:
        self.rows: list[int] = []
        self._keys, self._size = keys, size
        self._taken: set[tuple[str, int]] = set()

    def take(self, row: int) -> bool:
        """Add a row unless its query or positive is there."""
        own = {("query", int(self._keys.query_N[row])), ("positive", int(self._keys.positive_N[row]))}
        if len(self.rows) >= self._size or not self._taken.isdisjoint(own):
            return False
        self._taken |= own
        self.rows.append(row)
        return True


class _Stream:
    """Rows in random order, pass after pass; what a batch refuses waits, oldest first."""

    def __init__(self, rows: np.ndarray, keys: Keys, seed: list[int]) -> None:
        self._rows, self._seed = rows, seed
        self._waiting: deque[int] = deque()
        self._next = self._endless()

    def _endless(self) -> Iterator[int]:
        import numpy as np

        for epoch in range(2**62):
            yield from map(int, np.random.default_rng([*self._seed, epoch]).permutation(self._rows))

    def fill(self, batch: _Batch, count: int) -> None:
        """Give a batch `count` rows, or as many as there are that can stand together."""
        for _ in range(len(self._waiting)):
            row = self._waiting.popleft()
            if count and batch.take(row):
                count -= 1
            else:
                self._waiting.append(row)
        while count and len(self._waiting) < len(self._rows):
            row = next(self._next)
            if batch.take(row):
                count -= 1
            else:
                self._waiting.append(row)
