"""BM25 over corpora of millions: Lucene's variant, English stop words, no stemmer; terms are those of `medley.words`.

In: passages, read once. Out: exact rankings, equal to the sum over all passages. The scores are those of bm25s to
the last bit, computed as it computes them (a weight for each term and passage, made when the index is built: Lù,
arXiv 2407.03618). Two things differ because they do not scale there. bm25s takes the tokens of the whole corpus as
Python lists; here they are counted chunk by chunk. bm25s adds up a score for every passage for every query; here
passages that cannot be among the k best are left out (MaxScore: Turtle and Flood, Information Processing &
Management 31(6), 1995).
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterable, Iterator, Sequence, Sized
from dataclasses import dataclass
from itertools import chain, islice
from typing import TYPE_CHECKING

import numpy as np

from medley.collections import Passage
from medley.progress import progress
from medley.search.dense import Nearest
from medley.search.order import NOTHING, PassageOrder, Ranking, largest, scores_of
from medley.words import search_terms

if TYPE_CHECKING:
    from bm25s.tokenization import Tokenizer

K1, B = 1.2, 0.75
"""Lucene's defaults."""
CHUNK = 4_096
"""Passages whose tokens are in memory at once while the index is built."""


@dataclass(frozen=True)
class Postings:
    """For each term t, the passages that hold it and its weight there: entries starts[t] to starts[t + 1].

    8 bytes an entry; passages ascend within a term. `bounds` is the largest weight of each term.
    """

    starts: np.ndarray
    passages: np.ndarray
    weights: np.ndarray
    bounds: np.ndarray

    def of(self, term: int, first: int) -> tuple[np.ndarray, np.ndarray]:
        """Passages below position `first` that hold a term, and its weights there."""
        start, stop = self.starts[term], self.starts[term + 1]
        # of the same type as the array, which is copied otherwise
        stop = start + np.searchsorted(self.passages[start:stop], np.int32(first))
        return self.passages[start:stop], self.weights[start:stop]

    def weights_in(self, term: int, passages: np.ndarray) -> np.ndarray:
        """A term's float32 weight in each of these passages, 0 where it is not."""
        own, weights = self.of(term, int(passages.max(initial=-1)) + 1)
        places = np.searchsorted(own, passages.astype(np.int32, copy=False))
        found = (
            own[np.minimum(places, len(own) - 1)] == passages if len(own) else np.zeros(len(passages), bool)
        )
        result = np.zeros(len(passages), dtype=np.float32)
        result[found] = weights[places[found]]
        return result


class Bm25Index:
    """BM25 over passages (title and text). A passage that shares no term with the query is in no ranking."""

    def __init__(self, passages: Iterable[Passage]) -> None:
        """Read the passages once."""
        from bm25s.tokenization import Tokenizer

        self._tokenizer = Tokenizer(lower=False, splitter=search_terms, stopwords="english", stemmer=None)
        ids: list[str] = []
        lengths = array("q")
        chunks: list[_Chunk] = []
        total = len(passages) if isinstance(passages, Sized) else None
        with progress("indexing for BM25", total) as advance:
            for chunk in _counted(passages, self._tokenizer, ids, lengths):
                chunks.append(chunk)
                advance(len(ids) - chunk.start)
        self.order = PassageOrder(ids)
        self._postings = _postings(chunks, np.array(lengths))
        self._partial_D = np.zeros(len(ids), dtype=np.float32)

    def search(self, queries: Sequence[str], k: int) -> list[Ranking]:
        """The k best passages of each query; ties by ascending passage id."""
        found = self.nearest(queries, k)
        return [self.order.ranking(*row) for row in zip(found.positions_QK, found.scores_QK, strict=True)]

    def nearest(self, queries: Sequence[str], k: int, *, among_first: int | None = None) -> Nearest:
        """The k best of all passages or of the first few, for each query; of passages that share a term with it."""
        limit = len(self.order) if among_first is None else among_first
        keys_QK = np.full((len(queries), min(k, limit)), NOTHING, dtype=np.int64)
        with progress("BM25", len(queries)) as advance:
            for row, query in enumerate(queries if keys_QK.shape[1] else ()):
                passages, scores = self._candidates(self._terms(query), keys_QK.shape[1], limit)
                keys = largest(self.order.keys(scores, passages), keys_QK.shape[1])
                keys_QK[row, : len(keys)] = keys
                advance(1)
        return Nearest(self.order.positions(keys_QK), scores_of(keys_QK))

    def scores(self, query: str, passages: np.ndarray | None = None) -> np.ndarray:
        """BM25 scores (float32) of the passages at these positions, or of all, for one query."""
        terms = self._terms(query)
        if passages is not None:
            return self._sum(terms, passages)
        scores_D = np.zeros(len(self.order), dtype=np.float32)
        for term in terms:
            holders, weights = self._postings.of(term, len(self.order))
            scores_D[holders] += weights
        return scores_D

    def _terms(self, query: str) -> list[int]:
        """The query's known terms in its order, repeated ones too."""
        (terms,) = self._tokenizer.streaming_tokenize([query], update_vocab=False, allow_empty=False)
        return list(terms)

    def _sum(self, terms: Sequence[int], passages: np.ndarray) -> np.ndarray:
        """Weights added in the query's order in float32: the order decides the last bit."""
        scores = np.zeros(len(passages), dtype=np.float32)
        for term in terms:
            scores += self._postings.weights_in(term, passages)
        return scores

    def _candidates(self, terms: Sequence[int], k: int, limit: int) -> tuple[np.ndarray, np.ndarray]:
        """Passages below position `limit` that include the k best, with their scores.

        Terms come in by falling bound. Once the k-th best sum so far exceeds what all terms still to come can give,
        no passage outside can be among the k best: the rest, which are the frequent terms with their long lists, is
        looked up for the passages inside only.
        """
        counted: dict[int, int] = {}
        for term in terms:
            counted[term] = counted.get(term, 0) + 1
        bounds = {term: count * float(self._postings.bounds[term]) for term, count in counted.items()}
        waiting = sorted(counted, key=lambda term: (-bounds[term], term))
        total = to_come = sum(bounds.values())
        # two sums of the same weights in other orders, both in float32, differ by less than this
        slack = 2 * (len(terms) + 1) * float(np.finfo(np.float32).eps) * total
        inside = np.zeros(0, dtype=np.int32)
        while waiting and not (
            len(inside) >= k and to_come < total - to_come and to_come < self._kth(inside, k) - slack
        ):
            term = waiting.pop(0)
            passages, weights = self._postings.of(term, limit)
            before = self._partial_D[passages]
            self._partial_D[passages] = before + np.float32(counted[term]) * weights
            inside = np.concatenate([inside, passages[before == 0]])
            to_come -= bounds[term]
        kept = np.sort(inside)
        while waiting and len(kept):
            kept = kept[self._partial_D[kept] + to_come >= self._kth(kept, k) - slack]
            term = waiting.pop(0)
            self._partial_D[kept] += np.float32(counted[term]) * self._postings.weights_in(term, kept)
            to_come -= bounds[term]
        if len(kept) > k:
            kept = kept[self._partial_D[kept] >= self._kth(kept, k) - slack]
        self._partial_D[inside] = 0
        return kept, self._sum(terms, kept)

    def _kth(self, passages: np.ndarray, k: int) -> float:
        """The k-th largest sum so far."""
        if len(passages) < k:
            return 0.0
        return float(np.partition(self._partial_D[passages], len(passages) - k)[len(passages) - k])


@dataclass(frozen=True)
class _Chunk:
    """The counts of some passages, from position `start` on: entries sorted by term, then passage.

    `runs` entries belong to each of `terms`.
    """

    start: int
    terms: np.ndarray
    runs: np.ndarray
    passages: np.ndarray
    counts: np.ndarray


def _counted(
    passages: Iterable[Passage], tokenizer: Tokenizer, ids: list[str], lengths: array[int]
) -> Iterator[_Chunk]:
    """The counts of each chunk of passages; notes the passages' ids and their lengths in tokens."""
    rest = iter(passages)
    while chunk := list(islice(rest, CHUNK)):
        start = len(ids)
        ids += [passage.id for passage in chunk]
        texts = (passage.full_text for passage in chunk)
        tokens = list(tokenizer.streaming_tokenize(texts, update_vocab=True, allow_empty=False))
        lengths.extend(map(len, tokens))
        holders = np.repeat(np.arange(start, len(ids)), [len(own) for own in tokens])
        terms = np.fromiter(chain.from_iterable(tokens), dtype=np.int64, count=len(holders))
        pairs, counts = np.unique((terms << 32) | holders, return_counts=True)
        distinct, runs = np.unique(pairs >> 32, return_counts=True)
        narrow = np.min_scalar_type(int(counts.max(initial=0)))
        yield _Chunk(start, distinct, runs, (pairs & 0xFFFFFFFF).astype(np.int32), counts.astype(narrow))


def _postings(chunks: list[_Chunk], lengths_D: np.ndarray) -> Postings:
    """Put each chunk's entries at their terms' places. Empties `chunks`, so that memory is about 13 bytes an entry."""
    terms = 1 + max((int(chunk.terms[-1]) for chunk in chunks if len(chunk.terms)), default=-1)
    frequencies = np.zeros(terms, dtype=np.int64)
    for chunk in chunks:
        frequencies[chunk.terms] += chunk.runs
    starts = np.concatenate([[0], np.cumsum(frequencies)])
    inverse = _inverse_frequencies(frequencies, len(lengths_D))
    passages = np.empty(starts[-1], dtype=np.int32)
    weights = np.empty(starts[-1], dtype=np.float32)
    bounds = np.zeros(terms, dtype=np.float32)
    heads = starts[:-1].copy()
    chunks.reverse()
    while chunks:
        chunk = chunks.pop()
        if not len(chunk.terms):
            continue
        within = np.cumsum(chunk.runs) - chunk.runs
        places = np.repeat(heads[chunk.terms] - within, chunk.runs) + np.arange(len(chunk.passages))
        heads[chunk.terms] += chunk.runs
        length = K1 * ((1 - B) + B * lengths_D[chunk.passages] / lengths_D.mean())
        own = (np.repeat(inverse[chunk.terms], chunk.runs) * (chunk.counts / (length + chunk.counts))).astype(
            np.float32
        )
        passages[places] = chunk.passages
        weights[places] = own
        bounds[chunk.terms] = np.maximum(bounds[chunk.terms], np.maximum.reduceat(own, within))
    return Postings(starts, passages, weights, bounds)


def _inverse_frequencies(frequencies: np.ndarray, count: int) -> np.ndarray:
    """ln(1 + (N - n + 0.5) / (n + 0.5)) for each term, in float32 as bm25s keeps it."""
    distinct, places = np.unique(frequencies, return_inverse=True)
    values = [math.log(1 + (count - n + 0.5) / (n + 0.5)) for n in distinct.tolist()]
    return np.array(values, dtype=np.float32)[places] if len(values) else np.zeros(0, dtype=np.float32)
