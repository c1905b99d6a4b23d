"""Texts as arrays of hashes, many at once: each text's words in order, and its letters and digits without any gaps.

In: texts. Out: `HashedTexts`. Everything is taken from one prefix sum over the letters of all texts,
S_j = sum_{i<j} v(letter_i) B^i mod 2^64, with a random value v for every byte and a random odd B: the hash of letters
a..b is (S_b - S_a) B^-a, and that of a text without some word needs no second pass (Karp and Rabin 1987).
Words and letters are those of `medley.words`, which `overlap.normal_form` keeps too.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import regex

from medley.words import CHARACTER, unified

LEAST_WORDS = 5
"""Words of a text from which one may be left out: of `what is asthma` it would leave another question."""
MARKS = regex.compile(r"[^\p{L}\p{N}\p{M}\s]")
SPACES = re.compile(r"\s+")
BASE = 0x9E3779B97F4A7C15
INVERSE = pow(BASE, -1, 2**64)
EDGE = 2
"""Marks between two texts; with runs of three words, so many stand on either side of each."""
MARK = 0xA0761D6478BD642F
SHINGLE_FACTORS = (0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9, 0xD6E8FEB86659FD93)


@dataclass(frozen=True)
class HashedTexts:
    """Hashes (uint64) of T texts with W words in all; text t's words are `first[t]` to `first[t + 1]`.

    `letters` is the hash of each text's letters and digits in a row: equal for texts that differ only in case,
    punctuation and white space. `apart` counts words as white space divides them ("COVID-19" is one). `without` are
    the letters' hashes of each text with one word left out, of either kind; `without_text` says of which text.
    """

    words: np.ndarray
    first: np.ndarray
    letters: np.ndarray
    apart: np.ndarray
    without: np.ndarray
    without_text: np.ndarray

    def __len__(self) -> int:
        return len(self.letters)

    @property
    def sizes(self) -> np.ndarray:
        """Words in each text."""
        return np.diff(self.first)


def hash_texts(texts: Sequence[str]) -> HashedTexts:
    """Hash texts, and their variants with a word left out where they have LEAST_WORDS."""
    encoded = [_plain(text) for text in texts]
    data_C = np.frombuffer(b"\n" + b"\n".join(encoded) + b"\n", dtype=np.uint8)
    lengths_T = np.fromiter(map(len, encoded), dtype=np.int64, count=len(encoded))
    offsets_T1 = np.concatenate(([0], np.cumsum(lengths_T + 1)))  # of the line break before each text
    values_C = _letter_values()[data_C]
    inside_C = values_C != 0
    edges_C = inside_C[1:] != inside_C[:-1]
    edges = np.flatnonzero(edges_C) + 1  # start, end, start, end, ...: a line break on both sides
    starts_W, ends_W = edges[0::2], edges[1::2]
    letters_L = values_C[inside_C]
    letters_L *= _powers(BASE, len(letters_L) + 1)[: len(letters_L)]
    sums_L1 = np.zeros(len(letters_L) + 1, dtype=np.uint64)
    np.cumsum(letters_L, out=sums_L1[1:])
    end_W = np.cumsum(ends_W - starts_W)  # positions among the letters
    start_W = end_W - (ends_W - starts_W)
    inverse_L1 = _powers(INVERSE, len(letters_L) + 1)
    words_W = mixed((sums_L1[end_W] - sums_L1[start_W]) * inverse_L1[start_W])
    first_T1 = np.searchsorted(starts_W, offsets_T1)
    at_T1 = np.concatenate((start_W, [len(letters_L)]))[first_T1]
    from_T, to_T = at_T1[:-1], at_T1[1:]
    letters_T = mixed((sums_L1[to_T] - sums_L1[from_T]) * inverse_L1[from_T])
    sizes_T = np.diff(first_T1)
    text_W = np.repeat(np.arange(len(texts)), sizes_T)
    wanted_W = np.repeat(sizes_T >= LEAST_WORDS, sizes_T)
    joined_W = _joined_to_the_next(data_C, starts_W, ends_W, text_W)
    first, last = _spans(wanted_W, joined_W)
    cut_from_V, cut_to_V, text_V = start_W[first], end_W[last], text_W[first]
    rest_V = (sums_L1[cut_from_V] - sums_L1[from_T[text_V]]) + (
        sums_L1[to_T[text_V]] - sums_L1[cut_to_V]
    ) * inverse_L1[cut_to_V - cut_from_V]
    without_V = mixed(rest_V * inverse_L1[from_T[text_V]])
    apart_T = sizes_T - np.bincount(text_W[joined_W], minlength=len(texts))
    return HashedTexts(words_W, first_T1, letters_T, apart_T, without_V, text_V)


def _plain(text: str) -> bytes:
    """UTF-8 in which every ASCII letter and digit and every byte above 127 belongs to a word."""
    if text.isascii():
        return text.replace("\n", " ").encode()
    apart = CHARACTER.sub(r" \g<0> ", unified(text))
    return SPACES.sub(" ", MARKS.sub("-", apart)).encode("utf-8", errors="surrogatepass")


def _joined_to_the_next(
    data_C: np.ndarray, starts_W: np.ndarray, ends_W: np.ndarray, text_W: np.ndarray
) -> np.ndarray:
    """Whether only punctuation lies between a word and the next of the same text."""
    if len(starts_W) == 0:
        return np.zeros(0, dtype=bool)
    gap_W = starts_W[1:] - ends_W[:-1]
    space_C = data_C <= 32
    close_W = (gap_W <= 2) & ~space_C[ends_W[:-1]] & ~space_C[starts_W[1:] - 1]
    return np.append(close_W & (text_W[1:] == text_W[:-1]), False)


def _spans(wanted_W: np.ndarray, joined_W: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """First and last word of what is left out: every single word, and every stretch of joined ones."""
    single = np.flatnonzero(wanted_W)
    after_W = np.concatenate(([False], joined_W[:-1])) if len(joined_W) else joined_W
    opens = np.flatnonzero(joined_W & ~after_W & wanted_W)
    closes = np.flatnonzero(~joined_W & after_W & wanted_W)
    return np.concatenate((single, opens)), np.concatenate((single, closes))


def shingle_hashes(hashed: HashedTexts) -> tuple[np.ndarray, np.ndarray]:
    """Hash and text of every run of three words, repeated ones too.

    Two marks stand before and after each text, so that its first and last words are in three runs as all others are:
    without them a sentence that ends in another word would be nearly the same.
    """
    sizes_T, count = hashed.sizes, len(hashed)
    text_S = np.repeat(np.arange(count), sizes_T + EDGE)
    marked_S = np.full(len(text_S) + EDGE, MARK, dtype=np.uint64)
    marked_S[np.arange(len(hashed.words)) + EDGE * (np.repeat(np.arange(count), sizes_T) + 1)] = hashed.words
    runs_S = sum(marked_S[k : k + len(text_S)] * np.uint64(f) for k, f in enumerate(SHINGLE_FACTORS))
    kept = sizes_T[text_S] > 0
    return mixed(np.asarray(runs_S, dtype=np.uint64))[kept], text_S[kept]


def mixed(values: np.ndarray) -> np.ndarray:
    """Every bit depends on every bit (the finaliser of SplitMix64; Steele, Lea and Flood 2014)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


@lru_cache(maxsize=1)
def _letter_values() -> np.ndarray:
    """A random value for each byte of a word, lower and upper case alike; 0 for what separates words."""
    random = np.random.default_rng(20).integers(1, 2**64, size=256, dtype=np.uint64)
    values = np.zeros(256, dtype=np.uint64)
    for byte in range(256):
        if byte > 127 or chr(byte).isalnum():
            values[byte] = random[ord(chr(byte).lower()) if byte < 128 else byte]
    return values


def _powers(base: int, count: int) -> np.ndarray:
    """base^0, base^1, ... mod 2^64, at least `count` of them."""
    return _powers_of_size(base, 1 << max(20, (count - 1).bit_length()))


@lru_cache(maxsize=4)
def _powers_of_size(base: int, size: int) -> np.ndarray:
    powers = np.full(size, base, dtype=np.uint64)
    powers[0] = 1
    return np.cumprod(powers, dtype=np.uint64)
