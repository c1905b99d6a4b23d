"""Mining on a corpus small enough to know every right answer."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medley.collections import Passage
from medley.encoder import (
    Retriever,
    RetrieverSettings,
    build_retriever,
    encode_passages,
    encode_queries,
)
from medley.errors import ModelError, PairsError
from medley.mine import MinedStream, MiningSettings, mine_negatives, negatives
from medley.mine.find import find_by_vectors
from medley.mine.negatives import Tally, mined_rows
from medley.mine.pool import Pool
from medley.pairs import StreamedPairs, TrainingPair, write_pairs
from medley.search import Bm25Index

ANSWER = (
    "Metformin is the first treatment of type 2 diabetes in adults who can take it without harm to the kidney"
)
CORPUS = [
    Passage("answer", ANSWER),
    Passage("copy", ANSWER.upper() + "!"),
    Passage("near", ANSWER + " today"),
    Passage("query", "First treatment of diabetes?"),
    Passage("hard", "Insulin is a treatment of type 1 diabetes in children."),
    Passage("second", "Diabetes is frequent in adults."),
    Passage("far", "Steel bridges last a century."),
]
QUERY = "first treatment of diabetes"
PAIR = TrainingPair(QUERY, ANSWER, instruction="Find", provenance={"row": 3})
FREE = MiningSettings(margin=None)


def test_duplicates_near_duplicates_and_the_query_itself_are_never_negatives() -> None:
    mined = mine_negatives([PAIR], CORPUS, FREE.model_copy(update={"per_query": 10}), seed=0)
    assert set(mined.pairs[0].negatives) == {CORPUS[4].text, CORPUS[5].text}
    assert mined.counts["dropped"] == {
        "near_duplicate_of_a_positive": 1, "positive_of_the_query": 2, "the_query_itself": 1,
    }  # fmt: skip
    provenance = mined.pairs[0].provenance
    assert provenance["row"] == 3 and provenance["mined"]["retriever"] == "bm25"
    assert provenance["mined"]["ids"] == ["hard", "second"]
    ranks, found = provenance["mined"]["ranks"], provenance["mined"]["scores"]
    assert ranks == sorted(ranks) and found == sorted(found, reverse=True)


def test_positives_of_the_same_query_and_judged_passages_are_left_out() -> None:
    pairs = [PAIR, TrainingPair(QUERY, CORPUS[4].text, instruction="Another")]
    mined = mine_negatives(pairs, CORPUS, FREE, seed=0)
    assert [pair.negatives for pair in mined.pairs] == [(CORPUS[5].text,)] * 2
    none = mine_negatives(pairs, CORPUS, FREE, seed=0, relevant={QUERY: {"second"}})
    assert [pair.negatives for pair in none.pairs] == [(), ()]
    assert none.counts["dropped"]["judged_relevant"] == 2 and none.counts["pairs_without_mined_negative"] == 2


def test_margin_holds_scores_below_the_positive_s_share() -> None:
    corpus = [*CORPUS, Passage("loud", "diabetes first treatment, treatment first diabetes")]
    free = mine_negatives([PAIR], corpus, FREE, seed=0)
    assert free.pairs[0].negatives == (corpus[-1].text,)
    kept = mine_negatives([PAIR], corpus, MiningSettings(margin=0.95), seed=0)
    assert kept.pairs[0].negatives == (CORPUS[4].text,) and kept.counts["dropped"]["within_margin"] >= 1


def test_without_a_corpus_other_pairs_positives_are_candidates_in_order() -> None:
    pairs = [TrainingPair(f"query about topic{i} heart", f"answer on topic{i} heart") for i in range(6)]
    mined = mine_negatives(pairs, None, MiningSettings(), seed=0)
    assert [pair.query for pair in mined.pairs] == [pair.query for pair in pairs]
    for pair in mined.pairs:
        assert len(pair.negatives) == 1 and pair.negatives[0] != pair.positive


def test_a_positive_outside_the_corpus_is_scored_and_never_taken() -> None:
    pairs = [PAIR, TrainingPair("diabetes in adults", "Diabetes treatment of adults first")]
    mined = mine_negatives(pairs, CORPUS[4:], FREE.model_copy(update={"per_query": 5}), seed=0)
    texts = {passage.full_text for passage in CORPUS[4:]}
    assert all(set(pair.negatives) <= texts for pair in mined.pairs)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 99), st.integers(0, 3), st.integers(1, 4), st.sampled_from(["top", "random"]))
def test_rules_hold_for_any_settings(seed: int, skip_top: int, per_query: int, sampling: str) -> None:
    settings_ = MiningSettings(skip_top=skip_top, per_query=per_query, sampling=sampling, margin=None)
    words = ["heart", "lung", "kidney", "liver", "brain"]
    pairs = [TrainingPair(f"{a} {b}", f"{b} and {a} disease {i}") for i, (a, b) in enumerate(pairwise(words))]
    mined = mine_negatives(pairs, None, settings_, seed=seed)
    assert mined == mine_negatives(pairs, None, settings_, seed=seed)
    for pair in mined.pairs:
        assert len(pair.negatives) <= per_query and pair.positive not in pair.negatives
        assert all(rank > skip_top for rank in pair.provenance.get("mined", {}).get("ranks", []))
    assert mined.counts["negatives"] == sum(len(pair.negatives) for pair in mined.pairs)


def mined_by_brute_force(
    row: int,
    pairs: list[TrainingPair],
    corpus: list[Passage],
    scores_D: np.ndarray,
    settings_: MiningSettings,
    relevant: dict[str, set[str]],
) -> list[str]:
    """The ids that a row is to get, top sampling: sort everything, then go through it by the rules' words."""
    query = pairs[row].query
    positives = {pair.positive for pair in pairs if pair.query == query}
    own = scores_D[[passage.text for passage in corpus].index(pairs[row].positive)]
    order = sorted(range(len(corpus)), key=lambda d: (-scores_D[d], corpus[d].id))
    unknown = [
        d
        for d in order
        if corpus[d].text not in positives and corpus[d].id not in relevant.get(query, ())
    ]  # fmt: skip
    window = unknown[settings_.skip_top : settings_.depth]
    if settings_.margin is not None:
        window = [d for d in window if scores_D[d] < own - (1 - settings_.margin) * abs(own)]
    if settings_.absolute_margin is not None:
        window = [d for d in window if scores_D[d] < own - settings_.absolute_margin]
    if settings_.max_score is not None:
        window = [d for d in window if scores_D[d] <= settings_.max_score]
    if settings_.min_score is not None:
        window = [d for d in window if scores_D[d] >= settings_.min_score]
    return [corpus[d].id for d in window[: settings_.per_query]]


def ids_of(pair: TrainingPair) -> list[str]:
    return list(pair.provenance.get("mined", {}).get("ids", []))


@settings(max_examples=40, deadline=None)
@given(data=st.data(), passages=st.integers(2, 40), rows=st.integers(1, 12))
def test_mining_by_vectors_is_brute_force(data: st.DataObject, passages: int, rows: int) -> None:
    """Vectors of small whole numbers: exact scores, with ties everywhere; queries recur with other positives."""
    rng = np.random.default_rng(data.draw(st.integers(0, 10_000)))
    passages_DH = rng.integers(-2, 3, (passages, 3)).astype(np.float32)
    queries_QH = rng.integers(-2, 3, (5, 3)).astype(np.float32)
    corpus = [Passage(f"p{i}", f"text number {i}") for i in rng.permutation(passages)]
    pairs = [
        TrainingPair(f"query {rng.integers(5)}", corpus[rng.integers(passages)].text) for _ in range(rows)
    ]
    depth = data.draw(st.integers(2, 15))
    wanted = MiningSettings(
        retriever="given",
        depth=depth,
        skip_top=data.draw(st.integers(0, depth - 1)),
        per_query=data.draw(st.integers(1, 4)),
        margin=data.draw(st.sampled_from([None, 0.5, 0.95])),
        absolute_margin=data.draw(st.sampled_from([None, 0, 2])),
        min_score=data.draw(st.sampled_from([None, -1])),
        max_score=data.draw(st.sampled_from([None, 3])),
    )
    relevant = {"query 0": {corpus[0].id, corpus[-1].id}}

    def encode(queries: Any) -> np.ndarray:
        return queries_QH[[int(text.split()[1]) for text, _ in queries]]

    pool = Pool(pairs, corpus)
    find = find_by_vectors(pool, passages_DH, np.zeros((0, 3), np.float32), encode, "dot")
    mined = list(mined_rows(pairs, pool, find, wanted, seed=0, relevant=relevant, tally=Tally()))
    for row, pair in enumerate(mined):
        scores_D = passages_DH @ encode([(pairs[row].query, "")])[0]
        assert ids_of(pair) == mined_by_brute_force(row, pairs, corpus, scores_D, wanted, relevant)
        known_D = [p.id in relevant.get(pair.query, ()) for p in corpus]
        for passage_id, rank, score in zip(
            *(pair.provenance.get("mined", {}).get(key, []) for key in ("ids", "ranks", "scores")),
            strict=True,
        ):
            position = [p.id for p in corpus].index(passage_id)
            assert not known_D[position] and score == scores_D[position]
            assert wanted.skip_top < rank <= wanted.depth


@pytest.mark.parametrize("sampling", ["top", "random"])
@pytest.mark.parametrize("with_corpus", [True, False])
def test_neither_the_order_of_rows_nor_the_batch_changes_what_a_row_gets(
    sampling: str, with_corpus: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["heart", "lung", "kidney", "liver", "brain", "skin"]
    pairs = [
        TrainingPair(
            f"{a} {b} treatment", f"the {b} treatment of {a} number {i}", instruction=f"Find {i % 2}"
        )
        for i, (a, b) in enumerate((a, b) for a in words for b in words)
    ]
    pairs += [replace(pairs[3], positive="another treatment of heart"), pairs[5]]
    corpus = (
        [Passage(f"p{i}", f"{a} and {b} and {c}") for i, (a, b, c) in enumerate(zip(words * 6, words[1:] * 8, words[2:] * 9, strict=False))]
        + [Passage(f"q{i}", pair.positive) for i, pair in enumerate(pairs[::3])]
        if with_corpus
        else None
    )  # fmt: skip
    wanted = MiningSettings(sampling=sampling, per_query=3, depth=12, skip_top=1, margin=0.9)
    first = mine_negatives(pairs, corpus, wanted, seed=5)
    assert first.counts["negatives"] > len(pairs)
    order = np.random.default_rng(0).permutation(len(pairs)).tolist()
    monkeypatch.setattr(negatives, "ROWS_AT_ONCE", 4)
    again = mine_negatives([pairs[row] for row in order], corpus, wanted, seed=5)
    assert again.pairs == [first.pairs[row] for row in order]
    assert again.counts == first.counts
    if sampling == "random":
        assert mine_negatives(pairs, corpus, wanted, seed=6).pairs != first.pairs


def test_random_sampling_takes_any_of_the_window() -> None:
    corpus = [Passage(f"p{i:02d}", "heart " * (20 - i)) for i in range(20)]
    pairs = [TrainingPair("heart", f"lung {i}") for i in range(400)]
    wanted = MiningSettings(sampling="random", margin=None, depth=9, skip_top=4)
    ids = [ids_of(pair)[0] for pair in mine_negatives(pairs, corpus, wanted, seed=0).pairs]
    ranked = [i for i, _ in Bm25Index(corpus).search(["heart"], 9)[0]][4:]
    assert set(ids) == set(ranked)
    assert all(40 < ids.count(passage_id) < 130 for passage_id in ranked), "each about 80 times"


def test_known_positives_have_no_rank() -> None:
    """The window is the same whether the corpus holds the positives or not."""
    corpus = [Passage(f"p{i}", "heart " * (9 - i) + f"x{i} y{i} z{i}") for i in range(9)]
    pairs = [TrainingPair("heart", corpus[i].text) for i in (0, 2)]
    wanted = MiningSettings(margin=None, skip_top=1, depth=3, per_query=9)
    first, second = mine_negatives(pairs, corpus, wanted, seed=0).pairs
    ranked = [i for i, _ in Bm25Index(corpus).search(["heart"], 9)[0] if i not in ("p0", "p2")]
    assert ids_of(first) == ids_of(second) == ranked[1:3]
    assert first.provenance["mined"]["ranks"] == [2, 3]


def test_pairs_are_streamed_from_a_file_and_into_one(tmp_path: Path) -> None:
    pairs = [TrainingPair(f"heart {i}", f"the heart {i} treatment", source="a") for i in range(50)]
    write_pairs(tmp_path / "pairs.jsonl", pairs)
    stream = MinedStream(StreamedPairs(tmp_path / "pairs.jsonl"), None, MiningSettings(), seed=0)
    assert write_pairs(tmp_path / "mined.jsonl", stream) == 50
    at_once = mine_negatives(pairs, None, MiningSettings(), seed=0)
    assert list(StreamedPairs(tmp_path / "mined.jsonl")) == at_once.pairs
    assert stream.counts == at_once.counts and at_once.counts["queries"] == 50


def test_a_window_without_ranks_is_refused() -> None:
    with pytest.raises(ValueError, match="skip_top 5 leaves no rank of depth 5"):
        MiningSettings(depth=5, skip_top=5)


TOPICS = ("heart", "lung", "kidney", "liver", "brain", "skin", "bone", "blood")


@pytest.fixture(scope="module")
def small_retriever(tiny_model_folder: Path) -> Retriever:
    return build_retriever(
        str(tiny_model_folder), RetrieverSettings(max_length=64, dtype="float32"), instruction="Find"
    )


@pytest.mark.parametrize(
    "wanted",
    [
        {"range_min": 0, "range_max": 10, "num_negatives": 1},
        {"range_min": 3, "range_max": 20, "num_negatives": 4},
        {"range_min": 0, "range_max": 30, "num_negatives": 3, "relative_margin": 0.05},
        {"range_min": 0, "range_max": 30, "num_negatives": 3, "absolute_margin": 0.02},
        {"range_min": 0, "range_max": 60, "num_negatives": 5, "absolute_margin": 0.01, "relative_margin": 0.03},
        {"range_min": 0, "range_max": 60, "num_negatives": 2, "max_score": 0.8, "min_score": 0.3},
    ],
    ids=lambda wanted: ",".join(f"{key}={value}" for key, value in wanted.items()),
)  # fmt: skip
def test_the_same_negatives_as_sentence_transformers(
    small_retriever: Retriever, wanted: dict[str, Any]
) -> None:
    from datasets import Dataset
    from sentence_transformers.util import mine_hard_negatives

    texts = [
        f"{a} disease number {i} of the {b}"
        for i, (a, b) in enumerate((a, b) for a in TOPICS for b in TOPICS)
    ]
    pairs = [
        TrainingPair(f"which disease of the {t} is it, {i}", texts[9 * i % 64])
        for i, t in enumerate(TOPICS * 2)
    ]
    if wanted["range_min"] == 0 and "relative_margin" not in wanted and "absolute_margin" not in wanted:
        pairs += [replace(pair, positive=texts[i]) for i, pair in enumerate(pairs[:5])]  # several positives
    rows = {"query": [pair.query for pair in pairs], "positive": [pair.positive for pair in pairs]}
    theirs = mine_hard_negatives(
        Dataset.from_dict(rows), small_retriever.model, corpus=texts, sampling_strategy="top",
        query_prompt=small_retriever.query_prompt(), corpus_prompt=small_retriever.document_prompt,
        output_format="triplet", use_faiss=False, cache_folder=None, verbose=False, **wanted,
    )  # fmt: skip
    found: dict[tuple[str, str], list[str]] = {}
    for query, positive, negative in zip(
        theirs["query"], theirs["positive"], theirs["negative"], strict=True
    ):
        found.setdefault((query, positive), []).append(negative)
    settings_ = MiningSettings(
        retriever="small", depth=wanted["range_max"], skip_top=wanted["range_min"],
        per_query=wanted["num_negatives"], near_duplicate=1.0,
        margin=1 - wanted["relative_margin"] if "relative_margin" in wanted else None,
        **{key: wanted[key] for key in ("absolute_margin", "min_score", "max_score") if key in wanted},
    )  # fmt: skip
    corpus = [Passage(f"p{i:02d}", text) for i, text in enumerate(texts)]
    mined = mine_negatives(pairs, corpus, settings_, seed=0, retriever=small_retriever)
    assert found, "nothing to compare"
    for pair in mined.pairs:
        assert list(pair.negatives) == found.get((pair.query, pair.positive), [])


def test_a_retriever_mines_by_its_own_scores(tiny_model_folder: Path) -> None:
    retriever = build_retriever(
        str(tiny_model_folder), RetrieverSettings(max_length=64, dtype="float32"), instruction="Own"
    )
    wanted = MiningSettings(retriever="tiny", margin=None, per_query=1)
    (pair,) = mine_negatives([PAIR], CORPUS, wanted, seed=0, retriever=retriever).pairs
    candidates = CORPUS[4:]
    query_H = encode_queries(retriever, [QUERY], instruction="Find")[0]
    scores_D = encode_passages(retriever, candidates) @ query_H
    assert pair.negatives == (candidates[int(np.argmax(scores_D))].text,)
    assert pair.provenance["mined"]["scores"] == pytest.approx([scores_D.max()], abs=1e-5)
    close = mine_negatives(
        [PAIR], CORPUS, wanted.model_copy(update={"margin": 0.9}), seed=0, retriever=retriever
    )
    positive = float(encode_passages(retriever, [ANSWER])[0] @ query_H)
    for score in close.pairs[0].provenance.get("mined", {}).get("scores", []):
        assert score < 0.9 * positive


def test_wrong_calls_are_refused() -> None:
    with pytest.raises(ModelError, match="some/model"):
        mine_negatives([PAIR], CORPUS, MiningSettings(retriever="some/model"), seed=0)
    with pytest.raises(PairsError, match="no pairs"):
        mine_negatives([], CORPUS, FREE, seed=0)
