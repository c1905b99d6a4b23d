"""Overlap of texts: when two texts are the same but for case and punctuation, or nearly so.

In: texts. Out: normal forms, sets of word shingles and their Jaccard similarity. Used by the leak check and by
mining; both need the same notion of a duplicate.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Set

SHINGLE_WORDS = 3
_SEPARATORS = re.compile(r"[\W_]+")


def normal_form(text: str) -> str:
    """Lower case, compatibility characters unified, every run of punctuation and white space one space."""
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text)
    return _SEPARATORS.sub(" ", text.casefold()).strip()


def shingles(normal: str) -> frozenset[str]:
    """The runs of three words of a normal form; of a shorter text its words; of an empty one nothing."""
    return frozenset(runs_of_words(normal))


def runs_of_words(normal: str) -> Iterator[str]:
    """The shingles in the order of the text, repeated ones too."""
    words = normal.split()
    size = SHINGLE_WORDS if len(words) >= SHINGLE_WORDS else 1
    return map(" ".join, zip(*(words[start:] for start in range(size)), strict=False))


def jaccard(a: Set[str], b: Set[str]) -> float:
    """Shared elements over all elements; 0 for two empty sets."""
    shared = len(a & b)
    return shared / (len(a) + len(b) - shared) if shared else 0.0
