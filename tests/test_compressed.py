"""Small vectors: what int8, bits and fewer dimensions find, against plain numpy; and fusion against its formula."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medley.errors import InputError
from medley.search import PassageOrder, fuse, nearest
from medley.search.compressed import bytes_a_passage, check_compression, nearest_compressed

RNG = np.random.default_rng(3)
PASSAGES = RNG.standard_normal((900, 48)).astype(np.float32)
QUERIES = (PASSAGES[:20] + 0.6 * RNG.standard_normal((20, 48))).astype(np.float32)
ORDER = PassageOrder([f"p{i:04d}" for i in range(len(PASSAGES))])


def units(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def best(scores_QD: np.ndarray, k: int) -> np.ndarray:
    return np.argsort(-scores_QD, axis=1, kind="stable")[:, :k]


@pytest.mark.parametrize("similarity", ["dot", "cosine"])
def test_fewer_dimensions_are_searched_as_vectors_of_their_own(similarity):
    found = nearest_compressed(QUERIES, PASSAGES, ORDER, 10, "16", similarity=similarity)
    queries, passages = QUERIES[:, :16], PASSAGES[:, :16]
    if similarity == "cosine":
        queries, passages = units(queries), units(passages)
    np.testing.assert_array_equal(found.positions_QK, best(queries @ passages.T, 10))


def test_bits_choose_by_hamming_distance_and_are_rescored():
    found = nearest_compressed(QUERIES, PASSAGES, ORDER, 10, "binary", similarity="cosine")
    distances = ((QUERIES[:, None] > 0) != (PASSAGES[None] > 0)).sum(axis=2)
    scores = units(QUERIES) @ units(PASSAGES).T
    for query, candidates in enumerate(best(-distances, 40)):
        expected = candidates[np.argsort(-scores[query, candidates])][:10]
        np.testing.assert_array_equal(found.positions_QK[query], expected)
        np.testing.assert_allclose(found.scores_QK[query], scores[query, expected], atol=1e-6)


def test_int8_loses_nearly_nothing_and_bits_lose_something():
    exact = nearest(QUERIES, PASSAGES, ORDER, 10, similarity="cosine").positions_QK

    def kept(compression: str) -> float:
        found = nearest_compressed(
            QUERIES, PASSAGES, ORDER, 10, compression, similarity="cosine"
        ).positions_QK
        return float(np.mean([len(set(a) & set(b)) / 10 for a, b in zip(exact, found, strict=True)]))

    assert kept("int8") == 1.0
    assert 0.5 < kept("binary") < 1.0
    assert kept("8") < kept("24") < 1.0


def test_sizes_and_names():
    assert [bytes_a_passage(name, 1024) for name in (None, "int8", "binary", "256")] == [
        4096,
        1024,
        128,
        1024,
    ]
    assert [check_compression(name) for name in ("int8", "binary", "64")] == ["int8", "binary", "64"]
    for wrong in ("int4", "0", "-3", "1.5"):
        with pytest.raises(InputError, match="choose int8, binary or a number of dimensions"):
            check_compression(wrong)
    with pytest.raises(InputError, match="the vectors have 48 dimensions"):
        nearest_compressed(QUERIES, PASSAGES, ORDER, 10, "49")


@settings(deadline=None)
@given(st.lists(st.permutations(["a", "b", "c", "d", "e"]), min_size=1, max_size=3), st.integers(1, 5))
def test_fusion_is_the_papers_formula(orders, k):
    rankings = [
        {"q": [(passage, -float(rank)) for rank, passage in enumerate(order[:4])]} for order in orders
    ]
    scores = {p: math.fsum(1 / (61 + order.index(p)) for order in orders if p in order[:4]) for p in "abcde"}
    expected = sorted((p for p in "abcde" if scores[p]), key=lambda p: (-scores[p], p))[:k]
    found = fuse(rankings, k)["q"]
    assert [p for p, _ in found] == expected
    assert [s for _, s in found] == pytest.approx([scores[p] for p in expected])


def test_a_query_that_one_ranking_lacks_keeps_the_other():
    assert fuse([{"q": [("a", 1.0)]}, {"r": [("b", 1.0)]}], 3) == {"q": [("a", 1 / 61)], "r": [("b", 1 / 61)]}
