"""Overlap of texts: when two texts are the same but for case and punctuation, or nearly so.

In: texts. Out: normal forms, sets of word shingles and their Jaccard similarity. Used by the leak check and by
mining; both need the same notion of a duplicate.
"""

from __future__ import annotations

from collections.abc import Iterator, Set

from medley.words import words

SHINGLE_WORDS = 3


def normal_form(text: str) -> str:
    """The words of a text with one space between them: case, punctuation, white space and Unicode forms aside."""
    return " ".join(words(text))


def shingles(normal: str) -> frozenset[str]:
    """The runs of three words of a normal form; of a shorter text its words; of an empty one nothing."""
    return frozenset(runs_of_words(normal))


def runs_of_words(normal: str) -> Iterator[str]:
    """The shingles in the order of the text, repeated ones too."""
    own = normal.split()
    size = SHINGLE_WORDS if len(own) >= SHINGLE_WORDS else 1
    return map(" ".join, zip(*(own[start:] for start in range(size)), strict=False))


def jaccard(a: Set[str], b: Set[str]) -> float:
    """Shared elements over all elements; 0 for two empty sets."""
    shared = len(a & b)
    return shared / (len(a) + len(b) - shared) if shared else 0.0
