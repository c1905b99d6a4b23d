"""Where a positive answers its query: its sentences, and how much of the query each one holds.

From a query, a positive and a `Lexicon` to a `Focus`. A query's mass is the summed idf of its stems; a word
of the same first five letters counts half (glycaemia, glycated). Below `TRUSTED` of the mass in the best
sentence, or above `STRONG` of it in the title alone, words do not tell where the answer is: any sentence may
hold it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from medley.sentences import sentence_spans
from medley.synthesize.entities import Lexicon, stems_of

TRUSTED = 0.45
STRONG = 0.6
PREFIX = 5


@dataclass(frozen=True)
class Focus:
    """The sentences of a positive (its title apart) with the share of the query's mass in each (0 to 1)."""

    sentences: tuple[tuple[int, int], ...]
    shares: tuple[float, ...]
    title_end: int
    title_share: float

    @property
    def trusted(self) -> bool:
        """Whether words tell which sentence answers."""
        return max(self.shares) >= TRUSTED and self.title_share < STRONG

    @property
    def strong(self) -> bool:
        """Whether the sentence that answers holds most of the query."""
        return self.trusted and max(self.shares) >= STRONG

    @property
    def answering(self) -> tuple[tuple[int, int], ...]:
        """The sentences with at least half of the best share, best first; all where none is trusted."""
        least = max(self.shares) / 2 if self.trusted else 0.0
        order = sorted(range(len(self.sentences)), key=lambda index: (-self.shares[index], index))
        return tuple(self.sentences[index] for index in order if self.shares[index] >= least)


def find_focus(query: str, positive: str, title: str, lexicon: Lexicon) -> Focus:
    """Score each sentence of a positive whose text begins with `title` (empty where there is none)."""
    title_end = len(title) if title and positive.startswith(title) else 0
    body = len(positive) - len(positive[title_end:].lstrip())
    spans = tuple((start + body, end + body) for start, end in sentence_spans(positive[body:]))
    wanted = frozenset(stems_of(query))
    shares = tuple(query_share(wanted, positive[start:end], lexicon) for start, end in spans)
    return Focus(spans, shares, title_end, query_share(wanted, positive[:title_end], lexicon))


def query_share(query_stems: Iterable[str], text: str, lexicon: Lexicon) -> float:
    """The share of the query's mass that a text holds, from 0 to 1."""
    wanted = set(query_stems)
    stems = set(stems_of(text))
    prefixes = {stem[:PREFIX] for stem in stems if len(stem) >= PREFIX}
    mass = sum(lexicon.idf(stem) for stem in wanted)
    held = 0.0
    for stem in sorted(wanted):
        if stem in stems:
            held += lexicon.idf(stem)
        elif stem[:PREFIX] in prefixes:
            held += lexicon.idf(stem) / 2
    return held / mass if mass else 0.0
