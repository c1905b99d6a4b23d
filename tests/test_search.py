"""Search against brute force: full sort by (score descending, id ascending), and scipy-free BM25 arithmetic."""

from __future__ import annotations

import math
import os
import shutil
import signal
import subprocess
import sys
import time
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
    PassageOrder,
    Shards,
    dense,
    encode_corpus,
    exact_top_k,
    nearest,
    passages_key,
    rank_with_bm25,
    rank_with_retriever,
)
from medley.search.shards import shard_path, shards_of

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


def test_top_k_equals_a_full_sort_over_many_tiles_strips_and_blocks() -> None:
    rng = np.random.default_rng(1)
    queries_QH = rng.integers(-2, 3, (1_100, 5)).astype(np.float32)  # two tiles, the second one ragged
    passages_DH = rng.integers(-2, 3, (9_700, 5)).astype(
        np.float32
    )  # ties everywhere; strips, the last one ragged
    ids = [f"p{i}" for i in rng.permutation(len(passages_DH))]
    order = PassageOrder(ids)
    for k in (1, 37, 1_500):  # the last is more than the first block holds
        found = nearest(queries_QH, passages_DH, order, k)
        for query in range(3, len(queries_QH), 20):
            scores_D = passages_DH @ queries_QH[query]
            best = np.lexsort((ids, -scores_D))[:k]
            assert np.array_equal(found.positions_QK[query], best)
            assert np.array_equal(found.scores_QK[query], scores_D[best])


def test_a_sample_that_misleads_costs_time_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only where the sample looks do passages score high: fewer than k reach the floor that it suggests."""
    rng = np.random.default_rng(2)
    passages_DH = rng.standard_normal((30_000, 2)).astype(np.float32)
    passages_DH[np.linspace(0, 29_999, dense.SAMPLE).astype(int)[:40], 0] = 9
    queries_QH = np.array([[1, 0], [0, 1]], np.float32)
    ids = [f"p{i:05d}" for i in range(30_000)]
    searched = []
    real = dense._search
    monkeypatch.setattr(dense, "_search", lambda *given: searched.append(len(given[0])) or real(*given))
    found = nearest(queries_QH, passages_DH, PassageOrder(ids), 100)
    assert searched == [2, 1], "the first query was searched again"
    for query_H, positions_K in zip(queries_QH, found.positions_QK, strict=True):
        assert np.array_equal(positions_K, np.argsort(-(passages_DH @ query_H), kind="stable")[:100])


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 130), st.sampled_from([3, 64, 256]))
def test_a_query_finds_the_same_whatever_queries_stand_beside_it(seed: int, queries: int, width: int) -> None:
    rng = np.random.default_rng(seed)
    queries_QH = rng.standard_normal((queries, width)).astype(np.float32)
    passages_DH = rng.standard_normal((1_500, width)).astype(np.float32)
    order = PassageOrder([str(i) for i in range(len(passages_DH))])
    together = nearest(queries_QH, passages_DH, order, 20, similarity="cosine")
    shuffled = rng.permutation(queries)[: max(1, queries // 2)]
    apart = nearest(queries_QH[shuffled], passages_DH, order, 20, similarity="cosine")
    assert np.array_equal(apart.positions_QK, together.positions_QK[shuffled])
    assert np.array_equal(apart.scores_QK, together.scores_QK[shuffled])  # to the last bit


def test_the_number_of_threads_is_as_it_was_after_a_search() -> None:
    import torch

    before = torch.get_num_threads()
    exact_top_k(np.ones((3, 2), np.float32), np.ones((4, 2), np.float32), list("abcd"), 2)
    with pytest.raises(ModelError):
        exact_top_k(np.ones((3, 2), np.float32), np.full((4, 2), np.inf, np.float32), list("abcd"), 2)
    assert torch.get_num_threads() == before


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


WORDS = [f"w{i}" for i in range(12)]
texts_of_words = st.lists(st.sampled_from(WORDS), max_size=9).map(" ".join)


@settings(max_examples=80, deadline=None)
@given(
    st.lists(texts_of_words, min_size=1, max_size=40),
    st.lists(texts_of_words, min_size=1, max_size=3),
    st.integers(1, 8),
    st.data(),
)
def test_bm25_is_bm25s_over_all_passages_to_the_last_bit(
    texts: list[str], queries: list[str], k: int, data: st.DataObject
) -> None:
    import bm25s
    from bm25s.tokenization import Tokenizer

    ids = [f"p{i}" for i in data.draw(st.permutations(range(len(texts))))]
    among = data.draw(st.integers(1, len(texts)))
    index = Bm25Index([Passage(i, text) for i, text in zip(ids, texts, strict=True)])
    found = index.nearest(queries, k, among_first=among)
    tokenizer = Tokenizer(stopwords="english", stemmer=None)
    token_ids = list(tokenizer.streaming_tokenize(texts, update_vocab=True, allow_empty=False))
    reference = bm25s.BM25(method="lucene", k1=1.2, b=0.75)
    if any(token_ids):
        reference.index((token_ids, tokenizer.get_vocab_dict()), show_progress=False)
    for query, positions_K, scores_K in zip(queries, found.positions_QK, found.scores_QK, strict=True):
        (terms,) = tokenizer.streaming_tokenize([query], update_vocab=False, allow_empty=False)
        scores_D = reference.get_scores_from_ids(terms) if terms else np.zeros(len(texts), np.float32)
        assert np.array_equal(index.scores(query), scores_D)
        assert np.array_equal(index.scores(query, np.arange(among)), scores_D[:among])
        best = sorted(
            (-s, i, p) for p, (s, i) in enumerate(zip(scores_D[:among], ids, strict=False)) if s > 0
        )
        best = best[:k]
        assert positions_K[positions_K >= 0].tolist() == [p for _, _, p in best]
        assert scores_K[positions_K >= 0].tolist() == [-s for s, _, _ in best]


def test_bm25_leaves_out_frequent_words_and_finds_the_same() -> None:
    """Long lists are not gone through where they cannot matter: here one word is in every passage."""
    rng = np.random.default_rng(3)
    texts = [f"common rare{r} odd{o}" for r, o in rng.integers(0, 400, (20_000, 2))]
    index = Bm25Index([Passage(f"p{i:05d}", text) for i, text in enumerate(texts)])
    passages, _ = index._candidates(index._terms("common rare7 odd9"), 10, len(texts))
    assert 10 <= len(passages) < 300
    scores_D = index.scores("common rare7 odd9")
    best = np.argsort(-scores_D, kind="stable")[:10]
    assert index.nearest(["common rare7 odd9"], 10).positions_QK[0].tolist() == best.tolist()


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
    first = encode_corpus(retriever, PASSAGES, store=tmp_path, shard_rows=2)
    in_memory_DH = encode_corpus(retriever, PASSAGES, shard_rows=2)
    assert np.array_equal(first, in_memory_DH)
    assert np.asarray(in_memory_DH) == pytest.approx(encode_passages(retriever, PASSAGES), abs=1e-6)
    (folder,) = tmp_path.iterdir()
    assert folder.name == passages_key(retriever, PASSAGES)
    shards = sorted(folder.glob("[0-9]*.npy"))
    assert [file.name for file in shards] == [
        "0000000000-0000000002.npy", "0000000002-0000000004.npy", "0000000004-0000000005.npy",
    ]  # fmt: skip
    before = shards[0].stat().st_mtime_ns
    shards[2].unlink()
    again = encode_corpus(retriever, PASSAGES, store=tmp_path, shard_rows=2)
    assert shards[0].stat().st_mtime_ns == before, "a shard that is there is not encoded again"
    assert np.array_equal(again[:], in_memory_DH), "one that is missing is"


def test_vectors_that_were_edited_are_not_taken_for_what_was_encoded(
    retriever: Retriever, tmp_path: Path
) -> None:
    encode_corpus(retriever, PASSAGES, store=tmp_path / "a", shard_rows=2)
    shutil.copytree(tmp_path / "a", tmp_path / "b")  # other times and inodes, the same content
    assert encode_corpus(retriever, PASSAGES, store=tmp_path / "b", shard_rows=2).shape[0] == len(PASSAGES)
    shard = next((tmp_path / "b").glob("*/0000000002-*.npy"))
    np.save(shard, np.full((2, retriever.model.get_embedding_dimension()), 7, np.float32))
    with pytest.raises(ModelError, match=r"0000000004.npy: was changed after it was written; remove it"):
        encode_corpus(retriever, PASSAGES, store=tmp_path / "b", shard_rows=2)
    shard.unlink()
    assert encode_corpus(retriever, PASSAGES, store=tmp_path / "b", shard_rows=2).shape[0] == len(PASSAGES)


@settings(max_examples=60, deadline=None)
@given(count=st.integers(1, 30), rows=st.integers(1, 9), data=st.data())
def test_shards_are_read_like_an_array(
    count: int, rows: int, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("shards")
    vectors_DH = np.arange(count * 2, dtype=np.float32).reshape(count, 2)
    for shard in shards_of(count, rows):
        np.save(shard_path(folder, shard), vectors_DH[shard.start : shard.stop])
    shards = Shards(folder, (count, 2), rows)
    start, stop = data.draw(st.integers(-3, count + 3)), data.draw(st.integers(-3, count + 3))
    step = data.draw(st.sampled_from([1, 2, -1]))
    for wanted in (slice(start, stop, step), slice(start, stop), slice(None)):
        assert np.array_equal(shards[wanted], vectors_DH[wanted]) and shards[wanted].shape[1] == 2
    positions = np.array(data.draw(st.lists(st.integers(0, count - 1))), dtype=np.int64)
    assert np.array_equal(shards[positions], vectors_DH[positions])


def test_a_damaged_shard_is_named(tmp_path: Path) -> None:
    shards = Shards(tmp_path, (3, 2), 2)
    np.save(shard_path(tmp_path, range(2, 3)), np.zeros((1, 2), np.float64))
    with pytest.raises(ModelError, match=r"0000000002.npy: cannot be read .*; remove it and encode again"):
        shards[:2]
    with pytest.raises(ModelError, match=r"float64 of shape \(1, 2\), not float32 of shape \(1, 2\)"):
        shards[2:]


ENCODING = """
import sys
from pathlib import Path
from medley.collections import FolderCorpus
from medley.encoder import RetrieverSettings, build_retriever
from medley.search import encode_corpus
model, corpus, store = map(Path, sys.argv[1:])
retriever = build_retriever(str(model), RetrieverSettings(max_length=64, dtype="float32"))
encode_corpus(retriever, FolderCorpus(corpus), store=store, shard_rows=32)
"""


@pytest.mark.slow
def test_killed_encoding_goes_on_where_it_was(tiny_model_folder: Path, tmp_path: Path) -> None:
    corpus, store = tmp_path / "corpus.jsonl", tmp_path / "store"
    words = np.random.default_rng(0).integers(0, 50, (1_600, 40))
    lines = (
        f'{{"_id": "p{i}", "text": "{" ".join(map(str, row))}"}}' for i, row in enumerate(words.tolist())
    )
    corpus.write_text("\n".join(lines), encoding="utf-8")

    def start(into: Path) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-c", ENCODING, str(tiny_model_folder), str(corpus), str(into)]
        return subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"})

    def shards() -> dict[str, int]:
        return {file.name: file.stat().st_mtime_ns for file in store.glob("*/[0-9]*.npy")}

    for share in (5, 20):  # killed twice, at shards that are far from the end
        process = start(store)
        while len(shards()) < share and process.poll() is None:
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL, "it was killed, not finished"
    before = shards()
    assert 20 <= len(before) < 50
    assert start(store).wait() == 0
    after = shards()
    assert len(after) == 50 and {name: after[name] for name in before} == before, (
        "only missing ones were written"
    )
    assert start(tmp_path / "whole").wait() == 0
    for file in (tmp_path / "whole").glob("*/*.npy"):
        assert file.read_bytes() == (store / file.parent.name / file.name).read_bytes()


def test_the_key_of_stored_vectors_is_what_decides_them(retriever: Retriever) -> None:
    key = passages_key(retriever, PASSAGES)
    assert (
        passages_key(Retriever(retriever.model, retriever.template, "Another instruction"), PASSAGES) == key
    )
    assert passages_key(retriever, PASSAGES[::-1]) != key
    changed = Retriever(retriever.model, retriever.template.model_copy(update={"document": "P: "}), "Find")
    assert passages_key(changed, PASSAGES) != key


@pytest.fixture
def always_screened(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Screening in bfloat16 at any size and on any processor; whether each search went through with it."""
    ended = []
    real = dense.screened

    def screened(*given: object) -> np.ndarray:
        ended.append(False)
        best_QK = real(*given)  # type: ignore[arg-type]
        ended[-1] = True
        return best_QK

    monkeypatch.setattr(dense, "screening_pays", lambda queries, passages: True)
    monkeypatch.setattr(dense, "screened", screened)
    return ended


@pytest.mark.parametrize(
    "shift", [0.0, 3.0, -3.0], ids=["around 0", "all scores high", "all scores negative"]
)
@pytest.mark.parametrize("similarity", ["dot", "cosine"])
def test_screening_in_bfloat16_finds_what_float64_finds(
    always_screened: list[bool], similarity: str, shift: float
) -> None:
    rng = np.random.default_rng(4)
    passages_DH = rng.standard_normal((30_000, 48)).astype(np.float32)
    passages_DH[:, 0] += shift
    passages_DH[20_000:20_300] = passages_DH[:300]  # equal vectors far apart: ties that only the id decides
    passages_DH *= rng.choice([0.5, 1, 2], 30_000)[:, None].astype(np.float32)
    queries_QH = rng.standard_normal((70, 48)).astype(np.float32)
    queries_QH[:, 0] += abs(shift)
    queries_QH[:20] = passages_DH[:20]
    ids = [f"p{i}" for i in rng.permutation(len(passages_DH))]
    found = nearest(queries_QH, passages_DH, PassageOrder(ids), 30, similarity=similarity)  # type: ignore[arg-type]
    assert always_screened == [True]
    exact_QD = queries_QH.astype(np.float64) @ passages_DH.T.astype(np.float64)
    if similarity == "cosine":
        exact_QD /= np.linalg.norm(queries_QH, axis=1)[:, None] * np.linalg.norm(passages_DH, axis=1)
    for exact_D, positions_K, scores_K in zip(exact_QD, found.positions_QK, found.scores_QK, strict=True):
        assert np.allclose(scores_K, np.sort(exact_D)[::-1][:30], rtol=1e-5, atol=1e-5)
        assert np.allclose(exact_D[positions_K], scores_K, rtol=1e-5, atol=1e-5)
        keys = [(-score, ids[place]) for score, place in zip(scores_K.tolist(), positions_K, strict=True)]
        assert keys == sorted(keys)


def test_screening_decides_ties_by_id_like_the_float32_search(
    always_screened: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(5)
    queries_QH = rng.integers(-4, 5, (40, 32)).astype(np.float32)  # whole numbers: every score is exact
    passages_DH = rng.integers(-4, 5, (20_000, 32)).astype(np.float32)
    order = PassageOrder([f"p{i}" for i in rng.permutation(len(passages_DH))])
    screened = nearest(queries_QH, passages_DH, order, 50)
    monkeypatch.setattr(dense, "screening_pays", lambda queries, passages: False)
    plain = nearest(queries_QH, passages_DH, order, 50)
    assert always_screened == [True]
    assert np.array_equal(screened.positions_QK, plain.positions_QK)
    assert np.array_equal(screened.scores_QK, plain.scores_QK)


def test_a_model_that_puts_all_passages_in_one_place_is_searched_in_float32(
    always_screened: list[bool],
) -> None:
    """Rounding to bfloat16 hides every difference here."""
    rng = np.random.default_rng(6)
    passages_DH = np.ones((30_000, 16), np.float32) + 1e-4 * rng.standard_normal((30_000, 16)).astype(
        np.float32
    )
    queries_QH = np.ones((3, 16), np.float32)
    found = nearest(queries_QH, passages_DH, PassageOrder([f"p{i:05d}" for i in range(30_000)]), 5)
    assert always_screened == [False]
    assert np.allclose(found.scores_QK[0], np.sort(passages_DH.sum(axis=1))[::-1][:5], rtol=1e-6)
