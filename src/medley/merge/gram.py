"""Scoring ten thousand interpolated candidates in matrix products.

A candidate's vectors are weighted sums of the nodes' (surrogate.py): q(a) = sum_i w_i q_i, p(a) = sum_j w_j p_j. So a
query's similarity to a passage is a quadratic form in the weights,

    q(a).p(a) = sum_{i<=j} w_i w_j G_ij,   G_ij = q_i.p_j + q_j.p_i (i < j), G_ii = q_i.p_i,

and so is the passage's squared length, by which cosine divides; a query's length changes no ranking. All G of the
pairs that matter are computed once; a block of candidates is then one product [pairs, terms] x [terms, candidates]. The
pairs that matter are each query's relevant passages and what any of the first nodes ranks in its top `depth`: what
none of them ranks there is taken not to come into the first ten of a mixture.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from medley.merge.pool import CUTOFF, DevPool, PoolVectors, judged_pairs

DEPTH = 100
"""Ranks of each node that a query's list is made of."""
CANDIDATES = 256
"""Candidates in one product; with PAIRS it bounds the memory of a block (2 MB)."""
PAIRS = 2048


class PoolGram:
    """The terms of one pool's pairs, for the queries where `counted_Q`; nodes are added one at a time."""

    def __init__(
        self, pool: DevPool, counted_Q: np.ndarray, nodes: Sequence[PoolVectors], *, cosine: bool
    ) -> None:
        self._cosine = cosine
        self._rows = np.flatnonzero(counted_Q)
        judged = judged_pairs(pool)
        lists = _lists([(node.queries[self._rows], node.passages) for node in nodes])
        place = {int(row): index for index, row in enumerate(self._rows)}
        self._relevant: list[list[tuple[int, float]]] = [[] for _ in self._rows]
        for row, column, gain in zip(judged.rows, judged.columns, judged.gains, strict=True):
            if (index := place.get(int(row))) is not None:
                lists[index] = np.union1d(lists[index], [column])
                self._relevant[index].append((int(column), float(gain / judged.ideal[row])))
        self._starts = np.cumsum([0, *map(len, lists)])
        self._columns = np.concatenate(lists)
        self._nodes: list[PoolVectors] = []
        self._pairs_XT = np.zeros((len(self._columns), 0), np.float32)
        self._lengths_DT = np.zeros((len(pool.passages), 0), np.float32)
        for node in nodes:
            self.add(node)

    def add(self, node: PoolVectors) -> None:
        """Make one more node known: its products with itself and with every earlier one."""
        pairs, lengths = [], []
        for earlier in self._nodes:
            pairs.append(
                self._products(earlier.queries, node.passages)
                + self._products(node.queries, earlier.passages)
            )
            lengths.append(2 * np.einsum("dh,dh->d", earlier.passages, node.passages))
        pairs.append(self._products(node.queries, node.passages))
        lengths.append(np.einsum("dh,dh->d", node.passages, node.passages))
        self._nodes.append(node)
        self._pairs_XT = np.column_stack([self._pairs_XT, *pairs])
        self._lengths_DT = np.column_stack([self._lengths_DT, *lengths])

    def _products(self, queries_QH: np.ndarray, passages_DH: np.ndarray) -> np.ndarray:
        """The similarities (X,) of the pairs in the lists."""
        products = np.empty(len(self._columns), np.float32)
        for start in range(0, len(self._rows), 256):
            rows = self._rows[start : start + 256]
            scores_RD = queries_QH[rows] @ passages_DH.T
            for offset in range(len(rows)):
                begin, end = self._starts[start + offset], self._starts[start + offset + 1]
                products[begin:end] = scores_RD[offset, self._columns[begin:end]]
        return products

    def score(self, weights_CN: np.ndarray) -> np.ndarray:
        """Mean nDCG@10 (C,) of candidates by their weights on the nodes; ties go to the passage that is first."""
        discounts = np.zeros(max(int(np.diff(self._starts).max(initial=0)), CUTOFF) + 1, np.float32)
        discounts[:CUTOFF] = 1 / np.log2(np.arange(CUTOFF) + 2)
        total_C = np.zeros(len(weights_CN))
        for start in range(0, len(weights_CN), CANDIDATES):
            part = slice(start, start + CANDIDATES)
            total_C[part] = self._score_block(_terms(weights_CN[part]), discounts)
        return total_C / max(len(self._rows), 1)

    def _score_block(self, terms_TC: np.ndarray, discounts: np.ndarray) -> np.ndarray:
        if self._cosine:
            scale_DC = 1 / np.sqrt(np.maximum(self._lengths_DT @ terms_TC, 1e-12))
        total_C = np.zeros(terms_TC.shape[1])
        first = 0
        while first < len(self._rows):
            last = max(
                first + 1, int(np.searchsorted(self._starts, self._starts[first] + PAIRS, "right")) - 1
            )
            begin, end = self._starts[first], self._starts[last]
            scores_XC = self._pairs_XT[begin:end] @ terms_TC
            if self._cosine:
                scores_XC *= scale_DC[self._columns[begin:end]]
            for row in range(first, last):
                here = slice(self._starts[row], self._starts[row + 1])
                scores_LC = scores_XC[here.start - begin : here.stop - begin]
                for column, gain in self._relevant[row]:
                    position = int(np.searchsorted(self._columns[here], column))
                    total_C += gain * discounts[_before(scores_LC, position)]
            first = last
        return total_C


def _before(scores_LC: np.ndarray, position: int) -> np.ndarray:
    """How many of a list stand before the one at `position` (C,): higher scores, or equal ones that come first."""
    own_C = scores_LC[position]
    earlier_C = np.count_nonzero(scores_LC[:position] >= own_C, axis=0)
    later_C: np.ndarray = np.count_nonzero(scores_LC[position + 1 :] > own_C, axis=0)
    return earlier_C + later_C


def _terms(weights_CN: np.ndarray) -> np.ndarray:
    """The products w_i w_j (T, C) in the order in which `PoolGram.add` lays out the terms."""
    weights_NC = weights_CN.astype(np.float32).T
    rows = [weights_NC[: n + 1] * weights_NC[n] for n in range(len(weights_NC))]
    return np.concatenate(rows)


def _lists(nodes: Sequence[tuple[np.ndarray, np.ndarray]]) -> list[np.ndarray]:
    """For each query the columns of the passages that some node ranks in its first DEPTH, in ascending order."""
    query_count, passage_count = len(nodes[0][0]), len(nodes[0][1])
    if passage_count <= 2 * DEPTH:
        return [np.arange(passage_count) for _ in range(query_count)]
    wanted_QD = np.zeros((query_count, passage_count), dtype=bool)
    for queries_QH, passages_DH in nodes:
        for start in range(0, query_count, 256):
            scores_RD = queries_QH[start : start + 256] @ passages_DH.T
            top_RN = np.argpartition(-scores_RD, DEPTH, axis=1)[:, :DEPTH]
            np.put_along_axis(wanted_QD[start : start + 256], top_RN, True, axis=1)
    return [np.flatnonzero(wanted_D) for wanted_D in wanted_QD]
