"""Search against brute force: full sort by (score descending, id ascending), and scipy-free BM25 arithmetic."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medley.collections import Passage, in_memory
from medley.encoder import Retriever, RetrieverSettings, build_retriever, encode_passages
from medley.errors import InputError, ModelError
from medley.search import (
    Bm25Index,
    encode_corpus,
    exact_top_k,
    passages_key,
    rank_with_bm25,
    rank_with_retriever,
)

PASSAGES = [
    Passage("p10", "Insulin lowers blood glucose in diabetic patients."),
    Passage("p2", "Metformin is the first treatment of type 2 diabetes."),
    Passage("p3", "The bridge was built of steel and stone."),
    Passage("p1", "The bridge was built of steel and stone."),
    Passage("p5", "Glucose rises after meals.", "Glucose"),
]
QUERIES = {"a": "treatment of diabetes", "b": "steel bridges", "c": "zebra"}


def brute_force(scores_QD: np.ndarray, ids: list[str], k: int) -> list[list[str]]:
    return [
        [i for _, i in sorted((-s, i) for s, i in zip(row.tolist(), ids, strict=True))][:k]
        for row in scores_QD
    ]


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 40), st.integers(1, 12), st.integers(1, 9))
def test_top_k_equals_a_full_sort_for_any_block(seed: int, passages: int, k: int, block: int) -> None:
    rng = np.random.default_rng(seed)
    queries_QH = rng.integers(-2, 3, (3, 4)).astype(np.float32)  # small whole numbers: exact, with many ties
    passages_DH = rng.integers(-2, 3, (passages, 4)).astype(np.float32)
    ids = [str(i) for i in rng.permutation(passages)]
    found = exact_top_k(queries_QH, passages_DH, ids, k, block=block)
    assert [[i for i, _ in ranking] for ranking in found] == brute_force(queries_QH @ passages_DH.T, ids, k)
    for row, ranking in zip(queries_QH @ passages_DH.T, found, strict=True):
        assert all(score == row[ids.index(i)] for i, score in ranking)


def test_cosine_ignores_length_and_bears_a_zero_vector() -> None:
    passages_DH = np.array([[10, 0], [0, 0.1], [0, 0], [3, 3]], dtype=np.float32)
    (ranking,) = exact_top_k(
        np.array([[0, 5]], np.float32), passages_DH, list("abcd"), 4, similarity="cosine"
    )
    assert [i for i, _ in ranking] == ["b", "d", "a", "c"]
    assert ranking[1][1] == pytest.approx(math.sqrt(0.5), abs=1e-6)


def test_vectors_that_are_not_finite_or_do_not_fit_are_refused() -> None:
    good = np.ones((2, 3), np.float32)
    with pytest.raises(ModelError, match="not finite"):
        exact_top_k(good * np.nan, good, ["a", "b"], 1)
    with pytest.raises(InputError, match="do not fit"):
        exact_top_k(good[:, :2], good, ["a", "b"], 1)
    with pytest.raises(InputError, match="2 passage vectors for 1"):
        exact_top_k(good, good, ["a"], 1)


def test_no_query_gives_no_ranking() -> None:
    assert exact_top_k(np.zeros((0, 3), np.float32), np.ones((2, 3), np.float32), ["a", "b"], 1) == []


def test_bm25_is_lucenes_formula() -> None:
    texts = ["heart attack", "heart heart failure", "kidney failure"]
    scores_D = Bm25Index([Passage(str(i), text) for i, text in enumerate(texts)]).scores("heart")
    idf = math.log(1 + (3 - 2 + 0.5) / (2 + 0.5))
    mean_length = 7 / 3

    def term(frequency: int, length: int) -> float:
        return idf * frequency / (frequency + 1.2 * (1 - 0.75 + 0.75 * length / mean_length))

    assert scores_D == pytest.approx([term(1, 2), term(2, 3), 0.0], abs=1e-6)


def test_bm25_breaks_ties_by_id_and_leaves_out_what_shares_no_term() -> None:
    rankings = rank_with_bm25(in_memory("m", "test", PASSAGES, QUERIES, {q: {"p1": 1} for q in QUERIES}), 10)
    assert [i for i, _ in rankings["b"]] == [
        "p1",
        "p3",
    ]  # equal texts: ascending id, whatever the order in the corpus
    assert rankings["a"][0][0] == "p2"
    assert rankings["c"] == []
    assert [i for i, _ in Bm25Index(PASSAGES).search(["steel"], 1)[0]] == ["p1"]


def test_bm25_of_passages_without_any_word_finds_nothing() -> None:
    assert Bm25Index([Passage("a", "?!"), Passage("b", "the of")]).search(["the heart"], 5) == [[]]


@pytest.fixture(scope="module")
def retriever(tiny_model_folder: Path) -> Retriever:
    return build_retriever(
        str(tiny_model_folder), RetrieverSettings(max_length=64, dtype="float32"), instruction="Find"
    )


def test_a_retriever_ranks_by_its_own_vectors(retriever: Retriever) -> None:
    collection = in_memory("m", "test", PASSAGES, QUERIES, {q: {"p1": 1} for q in QUERIES})
    rankings = rank_with_retriever(retriever, collection, 3)
    prompt = retriever.model.prompts["query"]
    passages_DH = retriever.model.encode([retriever.document_prompt + p.full_text for p in PASSAGES])
    for query_id, query in QUERIES.items():
        scores_D = passages_DH @ retriever.model.encode(prompt + query)
        assert [s for _, s in rankings[query_id]] == pytest.approx(
            sorted(scores_D, reverse=True)[:3], abs=1e-5
        )
    given_vectors = rank_with_retriever(retriever, collection, 3, passage_vectors=passages_DH)
    assert [[i for i, _ in r] for r in given_vectors.values()] == [
        [i for i, _ in r] for r in rankings.values()
    ]
    other = rank_with_retriever(retriever, collection, 3, instruction="Something else")
    assert other["a"] != rankings["a"]


def test_stored_vectors_are_the_same_and_are_read_again(retriever: Retriever, tmp_path: Path) -> None:
    first = encode_corpus(retriever, PASSAGES, store=tmp_path)
    assert np.array_equal(first, encode_passages(retriever, PASSAGES))
    (file,) = tmp_path.iterdir()
    assert file.stem == passages_key(retriever, PASSAGES)
    marked = np.zeros_like(first)
    np.save(file, marked)
    assert np.array_equal(encode_corpus(retriever, PASSAGES, store=tmp_path), marked)


def test_the_key_of_stored_vectors_is_what_decides_them(retriever: Retriever) -> None:
    key = passages_key(retriever, PASSAGES)
    assert (
        passages_key(Retriever(retriever.model, retriever.template, "Another instruction"), PASSAGES) == key
    )
    assert passages_key(retriever, PASSAGES[::-1]) != key
    changed = Retriever(retriever.model, retriever.template.model_copy(update={"document": "P: "}), "Find")
    assert passages_key(changed, PASSAGES) != key
