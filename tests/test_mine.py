"""Mining on a corpus small enough to know every right answer."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medley.collections import Passage
from medley.encoder import RetrieverSettings, build_retriever, encode_passages, encode_queries
from medley.errors import ModelError, PairsError
from medley.mine import MiningSettings, mine_negatives
from medley.pairs import TrainingPair

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
