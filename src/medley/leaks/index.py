"""Texts that are held out, arranged so that many others can be held against them at once.

In: texts by id. Out: for each of a batch of other texts, those that equal it or nearly do. Nothing that fits the
definition is missed; what the hashes (64 bits) propose beyond it is weeded out, but for collisions (1 in 10^19 a pair).

Two texts are `exact` duplicates if they are equal but for case, punctuation and white space. They are `near` ones if
their similarity reaches the threshold: the Jaccard similarity of their runs of three words, each as often as it occurs,
or, where one has a word more than the other and is else the same, the share of their words that have a partner.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from medley.leaks.words import HashedTexts, hash_texts, mixed, shingle_hashes

BATCH_LETTERS = 400_000
"""Characters that are hashed at once: the arrays should fit into the processor's cache."""
Kind = Literal["exact", "near"]


@dataclass(frozen=True)
class Match:
    """A held-out text that another one repeats. `similarity`: 1 for the same letters, else that of the words."""

    id: str
    kind: Kind
    similarity: float


class Gate:
    """A set of 64-bit hashes that may also say yes to one in 250 others: two looks into tables of bits (Bloom 1970)."""

    def __init__(self, keys: np.ndarray) -> None:
        bits = min(27, max(10, math.ceil(math.log2(16 * len(keys) + 1))))
        self._high, self._low = np.uint64(64 - bits), np.uint64((1 << bits) - 1)
        self._tables = np.zeros((2, 1 << bits), dtype=bool)
        self._tables[0, (keys >> self._high).astype(np.int64)] = True
        self._tables[1, (keys & self._low).astype(np.int64)] = True

    def maybe(self, keys: np.ndarray) -> np.ndarray:
        """False where a key is not in the set; True where it is, and rarely where it is not."""
        maybe = self._tables[0, (keys >> self._high).astype(np.int64)]
        where = np.flatnonzero(maybe)
        maybe[where] = self._tables[1, (keys[where] & self._low).astype(np.int64)]
        return maybe


class Hashes:
    """64-bit hashes, each with the numbers of the entries that have it; made for very many look-ups."""

    def __init__(self, keys: np.ndarray, values: np.ndarray) -> None:
        order = np.argsort(keys, kind="stable")
        self._values = values[order]
        self._keys, self._starts = np.unique(keys[order], return_index=True)
        self._ends = np.append(self._starts[1:], len(keys))
        self._gate = Gate(self._keys)

    def places(self, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(position among the keys given, place in the table) of those that are there."""
        where = np.flatnonzero(self._gate.maybe(keys))
        if not len(self._keys) or not len(where):
            return where[:0], where[:0]
        places = np.minimum(np.searchsorted(self._keys, keys[where]), len(self._keys) - 1)
        right = self._keys[places] == keys[where]
        return where[right], places[right]

    def pairs(self, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(position among the keys, value) of every entry that a key has."""
        where, places = self.places(keys)
        low, counts = self._starts[places], self._ends[places] - self._starts[places]
        inside = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        return np.repeat(where, counts), self._values[np.repeat(low, counts) + inside]


class HeldOut:
    """The texts that training must not repeat, by id; several may share a text."""

    def __init__(self, texts: Iterable[tuple[str, str]], threshold: float) -> None:
        self.threshold = threshold
        self._ids: list[list[str]] = []
        hashed, shingles = self._read(texts)
        self._words = hashed.words
        self._first = hashed.first
        self._letters = Hashes(hashed.letters, np.arange(len(hashed)))
        self._letters_T, self._apart = hashed.letters, hashed.apart
        self._without = Hashes(hashed.without, hashed.without_text)
        self._elements, self._element_first = shingles
        self._known = Gate(shingle_hashes(hashed)[0])
        self._run_hashes, self._frequencies = np.unique(self._elements, return_counts=True)
        self._runs = Hashes(self._run_hashes, np.arange(len(self._run_hashes)))
        position, text = self._rarest(self._elements, self._element_first)
        self._rare = Hashes(self._elements[position], text)

    def _read(self, texts: Iterable[tuple[str, str]]) -> tuple[HashedTexts, tuple[np.ndarray, np.ndarray]]:
        by_text: dict[str, list[str]] = {}
        for text_id, text in texts:
            ids = by_text.setdefault(text, [])
            if text_id not in ids:
                ids.append(text_id)
        parts = [hash_texts(batch) for batch in batches(list(by_text))]
        hashed = _joined(parts)
        if len(hashed) and (empty := hashed.sizes == 0).any():
            kept = [text for text, gone in zip(by_text, empty, strict=True) if not gone]
            return self._read((text_id, text) for text in kept for text_id in by_text[text])
        self._ids = list(by_text.values())
        return hashed, elements(hashed)

    def _rarest(self, elements_S: np.ndarray, first_T1: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Positions of each text's rarest elements, and whose they are: enough to meet every similar text.

        Prefix filtering (Chaudhuri, Ganti and Kaushik 2006): two sets of similarity t or more share at least
        ceil(t n) of the n elements of either; so of the n - ceil(t n) + 1 that come first in an order that is the
        same for all, both have one. Rare ones come first, those that no held-out text has before all.
        """
        counts_T = np.diff(first_T1)
        text_S = np.repeat(np.arange(len(counts_T)), counts_T)
        frequency_S = np.zeros(len(elements_S), dtype=np.int64)
        position, place = self._runs.pairs(elements_S)
        frequency_S[position] = self._frequencies[place]
        order = np.lexsort((elements_S, frequency_S, text_S))
        rank_S = np.arange(len(order)) - np.repeat(first_T1[:-1], counts_T)
        wanted_T = counts_T - np.ceil(self.threshold * counts_T - 1e-9).astype(np.int64) + 1
        chosen = order[rank_S < np.repeat(wanted_T, counts_T)]
        return chosen, text_S[chosen]

    def __len__(self) -> int:
        return len(self._ids)

    def matches(self, hashed: HashedTexts) -> dict[int, list[Match]]:
        """For each hashed text that has any, the held-out ones that it repeats; most similar first, then by id."""
        best: dict[int, dict[int, tuple[bool, float]]] = {}
        if not self._ids:
            return {}
        for text, other in _both(self._letters.pairs(hashed.letters)):
            best.setdefault(text, {})[other] = (self._same_words(hashed, text, other), 1.0)
        for text, other, size in self._one_word_apart(hashed):
            similarity = (2 * size - 2) / (2 * size - 1)
            if other not in (found := best.setdefault(text, {})) and similarity >= self.threshold - 1e-12:
                found[other] = (False, similarity)
        for text, other, similarity in self._similar(hashed):
            found = best.setdefault(text, {})
            found[other] = max(found.get(other, (False, 0.0)), (False, similarity))
        return {text: self._by_id(found) for text, found in best.items() if found}

    def _by_id(self, found: dict[int, tuple[bool, float]]) -> list[Match]:
        by_id: dict[str, tuple[float, bool]] = {}
        for other, (exact, similarity) in found.items():
            for text_id in self._ids[other]:
                by_id[text_id] = max(by_id.get(text_id, (0.0, False)), (similarity, exact))
        ranked = sorted(by_id.items(), key=lambda item: (-item[1][0], not item[1][1], item[0]))
        return [
            Match(text_id, "exact" if exact else "near", similarity)
            for text_id, (similarity, exact) in ranked
        ]

    def _same_words(self, hashed: HashedTexts, text: int, other: int) -> bool:
        """Whether the words are the same too; else only the letters are, as in `COVID-19` and `COVID19`."""
        ours = hashed.words[hashed.first[text] : hashed.first[text + 1]]
        return bool(np.array_equal(ours, self._words[self._first[other] : self._first[other + 1]]))

    def _one_word_apart(self, hashed: HashedTexts) -> Iterable[tuple[int, int, int]]:
        """Text, held-out text, and the number of words of the longer one, as white space divides it."""
        position, other = self._letters.pairs(hashed.without)
        text = hashed.without_text[position]
        yield from zip(text.tolist(), other.tolist(), hashed.apart[text].tolist(), strict=True)
        text, other = self._without.pairs(hashed.letters)
        yield from zip(text.tolist(), other.tolist(), self._apart[other].tolist(), strict=True)

    def _similar(self, hashed: HashedTexts) -> Iterable[tuple[int, int, float]]:
        """Pairs whose runs of words are similar enough, with the similarity."""
        hashes_S, text_S = shingle_hashes(hashed)
        runs_T = np.bincount(text_S, minlength=len(hashed))
        known_T = np.bincount(text_S[self._known.maybe(hashes_S)], minlength=len(hashed))
        hopeful = np.flatnonzero((known_T >= self.threshold * runs_T - 1e-9) & (runs_T > 0))
        if not len(hopeful):
            return
        ours_S, first_T1 = elements(hashed, hopeful)
        position, row = self._rarest(ours_S, first_T1)
        met, others = self._rare.pairs(ours_S[position])
        rows, others = np.divmod(np.unique(row[met] * len(self._ids) + others), len(self._ids))
        ours_T, theirs_T = np.diff(first_T1), np.diff(self._element_first)
        small, large = (reduce(ours_T[rows], theirs_T[others]) for reduce in (np.minimum, np.maximum))
        alike = (small >= self.threshold * large - 1e-9) & (
            hashed.letters[hopeful[rows]] != self._letters_T[others]
        )
        for row, other in zip(rows[alike].tolist(), others[alike].tolist(), strict=True):
            ours = ours_S[first_T1[row] : first_T1[row + 1]]
            theirs = self._elements[self._element_first[other] : self._element_first[other + 1]]
            shared = len(np.intersect1d(ours, theirs, assume_unique=True))
            similarity = shared / (len(ours) + len(theirs) - shared)
            if similarity >= self.threshold - 1e-12:
                yield int(hopeful[row]), other, similarity


def _both(columns: tuple[np.ndarray, np.ndarray]) -> Iterable[tuple[int, int]]:
    return zip(columns[0].tolist(), columns[1].tolist(), strict=True)


def elements(hashed: HashedTexts, chosen: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Each text's runs of words as a set: the second time that one occurs it is another element.

    Returns hashes, sorted within a text, and where each (chosen) text's begin, with the end of the last.
    """
    hashes_S, text_S = shingle_hashes(hashed)
    count = len(hashed)
    if chosen is not None:
        row_T = np.full(count, -1, dtype=np.int64)
        row_T[chosen] = np.arange(len(chosen))
        kept = row_T[text_S] >= 0
        hashes_S, text_S, count = hashes_S[kept], row_T[text_S[kept]], len(chosen)
    order = np.lexsort((hashes_S, text_S))
    hashes_S, text_S = hashes_S[order], text_S[order]
    places = np.arange(len(order))
    new = np.ones(len(order), dtype=bool)
    new[1:] = (hashes_S[1:] != hashes_S[:-1]) | (text_S[1:] != text_S[:-1])
    occurrence = places - np.maximum.accumulate(np.where(new, places, 0))
    again = occurrence > 0
    hashes_S[again] = mixed(hashes_S[again] + occurrence[again].astype(np.uint64))
    first_T1 = np.searchsorted(text_S, np.arange(count + 1))
    return hashes_S, first_T1


def batches(texts: Sequence[str]) -> Iterable[Sequence[str]]:
    """Stretches of texts with about BATCH_LETTERS characters; at least one, possibly empty."""
    start = letters = 0
    for position, text in enumerate(texts):
        letters += len(text)
        if letters >= BATCH_LETTERS:
            yield texts[start : position + 1]
            start, letters = position + 1, 0
    if start < len(texts) or not texts:
        yield texts[start:]


def _joined(parts: Sequence[HashedTexts]) -> HashedTexts:
    words = np.cumsum([0, *(len(part.words) for part in parts)])
    texts = np.cumsum([0, *(len(part) for part in parts)])
    return HashedTexts(
        np.concatenate([part.words for part in parts]),
        np.concatenate([*(p.first[:-1] + w for p, w in zip(parts, words, strict=False)), words[-1:]]),
        np.concatenate([part.letters for part in parts]),
        np.concatenate([part.apart for part in parts]),
        np.concatenate([part.without for part in parts]),
        np.concatenate([part.without_text + t for part, t in zip(parts, texts, strict=False)]),
    )
