"""Which texts are positives of which query, anywhere in the training data: 8 bytes for each pair.

In: pairs, read once. Out: `PositiveKeys`, which knows a labelled positive of a query by its normal form (case,
punctuation and white space aside), and pairs without the negatives that are one. The hashes have 64 bits: a million
pairs agree by chance with probability below 1e-7.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from medley.origins import without_negatives
from medley.overlap import normal_form
from medley.pairs import TrainingPair
from medley.progress import say

if TYPE_CHECKING:
    import numpy as np


class PositiveKeys:
    """The labelled positives of every query."""

    def __init__(self, pairs: Iterable[TrainingPair]) -> None:
        import numpy as np

        keys = np.fromiter((_key(pair.query, pair.positive) for pair in pairs), dtype=np.uint64)
        self.pairs = len(keys)
        """How many pairs there were."""
        self._keys: np.ndarray = np.unique(keys)

    def holds(self, query: str, text: str) -> bool:
        """Whether a text is a labelled positive of a query."""
        key = _key(query, text)
        place = int(self._keys.searchsorted(key))
        return place < len(self._keys) and int(self._keys[place]) == key

    def cleaned(self, pairs: Iterable[TrainingPair]) -> Iterator[TrainingPair]:
        """The pairs without negatives that some row has as positives of the same query; says how many there were."""
        count = 0
        for pair in pairs:
            gone = {place for place, text in enumerate(pair.negatives) if self.holds(pair.query, text)}
            count += len(gone)
            yield without_negatives(pair, gone) if gone else pair
        if count:
            say(f"{count:,} negatives are left out: other rows have them as positives of the same query.")


def _key(query: str, positive: str) -> int:
    text = f"{normal_form(query) or query}\n{normal_form(positive) or positive}"
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little")
