"""Strategies under a budget: optuna's resumed and shared, learned against finite differences, choice on held-out
queries; and what the surrogate is made of, against the long way round."""

from __future__ import annotations

import os
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
from medley.encoder import build_retriever, encode_passages, encode_queries
from medley.errors import RecipeError
from medley.merge.candidates import candidates
from medley.merge.hard import agreement, hard_pool, rank_correlation
from medley.merge.outcome import Candidate, choose, complexity
from medley.merge.pareto import front_of, pareto_front
from medley.merge.pool import (
    CandidateScore,
    DevPool,
    PoolVectors,
    build_pool,
    combine,
    embed_pool,
    score_queries,
    score_vectors,
    split_queries,
    unit,
)
from medley.merge.search import search
from medley.merge.settings import MergeParameters, SearchSettings, parse_merge_file
from medley.merge.space import NORMALISED, SearchSpace
from medley.merge.surrogate import GridScorer, Surrogate
from test_expert import FLOAT32
from test_merge_learned import attached_world
from test_merge_search import GRID, asked, linear_world, make_collection


def random_nodes(rng, pool, count, *, length_one, size=16):
    nodes = []
    for _ in range(count):
        sides = [rng.normal(size=(len(x), size)).astype(np.float32) for x in (pool.queries, pool.passages)]
        nodes.append([PoolVectors(*map(unit, sides) if length_one else sides)])
    return nodes


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10_000), st.booleans())
def test_a_grid_in_matrix_products_scores_as_each_point_by_itself(seed, length_one):
    rng = np.random.default_rng(seed)
    pool = build_pool(make_collection(40, 8, seed=seed % 50))
    surrogate = Surrogate.of_basis([pool], random_nodes(rng, pool, 4, length_one=length_one))
    kept_Q = rng.random(len(pool.query_ids)) < 0.7
    kept_Q[0] = True
    scorer = GridScorer(surrogate, {pool.name: kept_Q})
    for place in rng.uniform(0, 1, (2, 3)):
        scorer.add(place, random_nodes(rng, pool, 1, length_one=length_one)[0])
    places = rng.uniform(0, 1, (12, 3))
    found, by_pool = scorer.score(places)
    each = [scorer.surrogate.score(place).per_query[pool.name][kept_Q].mean() for place in places]
    np.testing.assert_allclose(found, each, atol=1e-6)
    np.testing.assert_allclose(by_pool[:, 0], each, atol=1e-6)


def test_equal_passages_rank_by_id_in_matrix_products_too():
    """Passages a to d are one text; the relevant one is c, so two stand before it: 1 / log2(4)."""
    pool = DevPool("x", ("q",), ("q",), tuple(Passage(p, p) for p in "abcde"), {"q": {"c": 1}})
    passages = np.array([[1, 0]] * 4 + [[0, 1]], np.float32)
    basis = [[PoolVectors(np.array([[1, 0.1]], np.float32), passages)] for _ in range(2)]
    scorer = GridScorer(Surrogate.of_basis([pool], basis), {"x": np.ones(1, bool)})
    assert scorer.score(np.array([[0.5]]))[0][0] == pytest.approx(0.5)


def test_lists_of_a_large_pool_hold_what_mixtures_of_its_nodes_rank_first():
    rng = np.random.default_rng(0)
    ids = [f"{number:04}" for number in range(600)]
    judged = {f"q{number:02}": {ids[number * 7]: 1, ids[number * 3 + 1]: 2} for number in range(30)}
    pool = DevPool("x", tuple(judged), tuple(judged), tuple(Passage(i, i) for i in ids), judged)
    passages = rng.normal(size=(600, 24)).astype(np.float32)
    base = PoolVectors(
        unit(passages[[n * 7 for n in range(30)]] + rng.normal(size=(30, 24)).astype(np.float32)),
        unit(passages),
    )

    def near(vectors):
        return unit(vectors + 0.05 * rng.normal(size=vectors.shape).astype(np.float32))

    nodes = [[base], *[[PoolVectors(near(base.queries), near(base.passages))] for _ in range(3)]]
    surrogate = Surrogate.of_basis([pool], nodes)
    places = rng.uniform(0, 1, (20, 3))
    found, _ = GridScorer(surrogate, {"x": np.ones(30, bool)}).score(places)
    np.testing.assert_allclose(found, [surrogate.score(place).score for place in places], atol=1e-6)


@given(st.integers(0, 10_000), st.integers(0, 4))
def test_the_interpolation_sums_to_one_and_passes_through_its_nodes(seed, more):
    rng = np.random.default_rng(seed)
    pool = build_pool(make_collection(12, 3))
    surrogate = Surrogate.of_basis([pool], random_nodes(rng, pool, 4, length_one=False))
    for place in rng.uniform(0, 1, (more, 3)):
        surrogate = surrogate.with_node(place, random_nodes(rng, pool, 1, length_one=False)[0])
    places = rng.uniform(-0.5, 1.5, (5, 3))
    np.testing.assert_allclose(surrogate.weights(places).sum(axis=1), 1.0, atol=1e-8)
    np.testing.assert_allclose(surrogate.weights(surrogate.places), np.eye(4 + more), atol=1e-6)
    if not more:  # the linear formula
        np.testing.assert_allclose(surrogate.weights(places)[:, 1:], places, atol=1e-9)
    again = surrogate.with_node(surrogate.places[-1], surrogate.nodes[0])
    assert again is surrogate


def test_rank_correlation_is_spearmans():
    from scipy.stats import spearmanr

    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 6, 40), rng.integers(0, 6, 40)
    assert rank_correlation(a, b) == pytest.approx(spearmanr(a, b).statistic)


@pytest.mark.parametrize("strategy", ["tpe", "cmaes"])
@pytest.mark.parametrize("continuous", [True, False])
def test_optuna_keeps_to_its_budget_and_goes_the_same_way_from_stored_encodings(
    strategy, continuous, tmp_path
):
    embed, pools, calls = linear_world()
    space = SearchSpace(("a", "b", "c"), GRID, method="task_arithmetic")
    wanted = asked(strategy, 14, continuous=continuous)
    whole = search(embed, pools, space, wanted)
    assert len(calls) == whole.encodings == len(whole.candidates) == 14
    assert whole.candidates[0].coefficients == pytest.approx(dict.fromkeys("abc", 1 / 3))
    if not continuous:
        assert all(set(c.coefficients.values()) <= set(GRID) for c in whole.candidates[1:])
    calls.clear()

    def until_killed(effective_KS):
        if len(calls) == 6:
            raise KeyboardInterrupt
        return embed(effective_KS)

    with pytest.raises(KeyboardInterrupt):
        search(until_killed, pools, space, wanted, store=tmp_path)
    resumed = search(embed, pools, space, wanted, store=tmp_path)
    assert len(calls) == 14, "six before, eight after"
    assert resumed.as_json() == whole.as_json()


@pytest.mark.parametrize("strategy", ["surrogate", "random", "grid"])
def test_the_others_resume_too(strategy, tmp_path):
    embed, pools, calls = linear_world(nonlinearity=1.0)
    space = SearchSpace(("a", "b", "c"), (0.0, 1.0), method="task_arithmetic")
    wanted = asked(strategy, 7, patience=7)
    whole = search(embed, pools, space, wanted)
    calls.clear()

    def until_killed(effective_KS):
        if len(calls) == 5:
            raise KeyboardInterrupt
        return embed(effective_KS)

    with pytest.raises(KeyboardInterrupt):
        search(until_killed, pools, space, wanted, store=tmp_path)
    assert search(embed, pools, space, wanted, store=tmp_path).as_json() == whole.as_json()
    assert len(calls) == whole.encodings


WORKER = """
import sys, time
sys.path[:0] = {path!r}
from test_merge_learned import attached_world
from test_merge_search import GRID, asked, linear_world
from medley.merge.search import search
from medley.merge.space import SearchSpace
embed, pools, calls = linear_world()
def slow(effective_KS):
    time.sleep(0.03)
    with open(sys.argv[2], "a") as log:
        log.write(str(effective_KS.ravel().tolist()) + "\\n")
    return embed(effective_KS)
space = SearchSpace(("a", "b", "c"), GRID, method="task_arithmetic")
result = search(slow, pools, space, asked("tpe", int(sys.argv[3]), storage=sys.argv[1]))
print(len(result.candidates), result.best.score)
"""


def worker(journal, log, budget):
    code = WORKER.format(path=[str(Path(__file__).parent)])
    return subprocess.Popen(
        [sys.executable, "-c", code, str(journal), str(log), str(budget)], stdout=subprocess.PIPE, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


@pytest.mark.slow
def test_a_shared_history_survives_kill_9_and_serves_two_processes(tmp_path):
    journal, log = tmp_path / "history.log", tmp_path / "encoded.txt"
    killed = worker(journal, log, 60)
    deadline = time.monotonic() + 120
    while not log.is_file() or log.read_text().count("\n") < 12:
        assert time.monotonic() < deadline and killed.poll() is None
        time.sleep(0.01)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    before = log.read_text().count("\n")
    assert before < 60
    both = [worker(journal, log, 60) for _ in range(2)]
    outputs = [process.communicate(timeout=200)[0].split() for process in both]
    assert all(process.returncode == 0 for process in both)
    counts = [int(count) for count, _ in outputs]
    assert all(60 <= count <= 61 for count in counts), "each sees what all have tried"
    encoded = log.read_text().splitlines()
    assert len(encoded) <= 60 + 3, "the killed one's last, and one each beyond the budget"
    scores = {score for _, score in outputs}
    assert len(scores) == 1 or max(counts) > 60


def test_storage_that_cannot_be_opened_is_the_users_mistake(tmp_path):
    embed, pools, _ = linear_world()
    space = SearchSpace(("a", "b", "c"), GRID, method="task_arithmetic")
    with pytest.raises(RecipeError, match=r"search\.storage"):
        search(embed, pools, space, asked("tpe", 4, storage=str(tmp_path / "no" / "folder" / "x.log")))


def test_the_search_sees_its_queries_only_and_the_choice_is_made_on_the_rest():
    embed, pools, _ = linear_world()
    space = SearchSpace(("a", "b", "c"), GRID, method="task_arithmetic")
    found = search(embed, pools, space, asked("grid", 200, confirm=0.5))
    held_out = split_queries(pools, 0.5, 0)[pools[0].name]
    assert held_out.sum() == len(held_out) // 2
    for candidate in found.candidates[:5]:
        scores_Q = score_vectors(pools, embed(candidate.weights)).per_query[pools[0].name]
        assert candidate.score == pytest.approx(scores_Q[~held_out].mean())
        assert candidate.confirm.score == pytest.approx(scores_Q[held_out].mean())
    ranked = sorted(found.candidates, key=lambda c: -c.score)
    assert found.best.confirm.score >= max(c.confirm.score for c in ranked[:8]) - 1e-12
    assert found.as_json()["best"]["confirm"]["score"] == found.best.confirm.score
    everything = search(embed, pools, space, asked("grid", 200))
    assert everything.best.confirm is None


def test_simplest_within_one_standard_error_is_judged_on_the_held_out_queries():
    def candidate(weights, seen, held_out):
        scores = [
            CandidateScore(np.mean(s), {"x": np.mean(s)}, {"x": np.array(s)}, {"x": 1.0})
            for s in (seen, held_out)
        ]
        named = dict(zip("ab", weights, strict=True))
        return Candidate(named, scores[0].score, scores[0].scores, True, scores[0], None, scores[1])

    lucky = candidate((0.9, 0.1), [1.0, 1.0], [0.2, 0.2, 0.2, 0.2])
    one = candidate((0.7, 0.0), [0.9, 0.9], [0.4, 0.5, 0.5, 0.7])
    equal = candidate((0.5, 0.5), [0.8, 0.8], [0.5, 0.5, 0.5, 0.5])
    assert choose([lucky, one, equal], "best") is one, "not the one that the search likes best"
    assert choose([lucky, one, equal], "simplest") is equal, ".025 behind, standard error .063"


def test_fewer_experts_are_simpler_and_uniform_is_simplest():
    weights = [[0.5, 0.5, 0.5], [0.6, 0.0, 0.0], [0.6, 0.6, 0.0], [0.2, 0.4, 0.0], [0.2, 0.4, 0.8]]
    ranks = [complexity(np.array(row)[:, None]) for row in weights]
    assert ranks == sorted(ranks)


def test_collections_count_by_weight_or_the_worst_counts():
    scores_CP = np.array([[0.2, 0.8], [0.6, 0.4]])
    np.testing.assert_allclose(combine(scores_CP, np.array([1.0, 3.0]), "mean")[0], [0.65, 0.45])
    np.testing.assert_allclose(combine(scores_CP, np.array([1.0, 3.0]), "worst")[0], [0.2, 0.4])
    pools = [DevPool("x", ("q",), ("q",), (), {}, weight=3.0), DevPool("y", ("q",), ("q",), (), {})]
    per_query = {"x": np.array([0.4]), "y": np.array([0.8])}
    assert score_queries(pools, per_query).score == pytest.approx(0.5)
    assert score_queries(pools, per_query, objective="worst").score == pytest.approx(0.4)


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=20))
def test_the_front_is_what_nothing_dominates(points):
    rows = np.array(points, float)
    expected = {
        i for i, p in enumerate(points)
        if not any(q[0] >= p[0] and q[1] >= p[1] and q != p for q in points)
    }  # fmt: skip
    found = front_of(rows)
    assert set(found) == expected
    assert [points[i][0] for i in found] == sorted((points[i][0] for i in found), reverse=True)


def test_search_json_holds_the_front_of_domain_against_general():
    embed, [pool], _ = linear_world()
    half = len(pool.query_ids) // 2
    first = DevPool("domain:dev", pool.query_ids[:half], pool.queries[:half], pool.passages, pool.judgements)
    second = DevPool(
        "general:dev",
        pool.query_ids[half:],
        pool.queries[half:],
        pool.passages,
        pool.judgements,
        general=True,
    )

    def embed_both(effective_KS):
        [v] = embed(effective_KS)
        return [PoolVectors(v.queries[:half], v.passages), PoolVectors(v.queries[half:], v.passages)]

    space = SearchSpace(("a", "b", "c"), (0.0, 0.5, 1.0), method="task_arithmetic")
    found = search(embed_both, [first, second], space, asked("grid", 30))
    front = found.as_json()["front"]
    assert found.candidates[front["chosen"]] is found.best
    assert front["chosen"] in front["candidates"], "the best mean is never dominated"
    for index in front["candidates"]:
        own = found.candidates[index].scores
        assert not any(all(other.scores[name] > own[name] for name in own) for other in found.candidates)
    assert pareto_front(found.candidates, found.best, [first]) is None


def test_a_pool_holds_what_an_expert_ranks_high_and_bm25_does_not(tiny_model_folder):
    collection = make_collection(120, 4, seed=3)
    retriever = build_retriever(str(tiny_model_folder), FLOAT32, device="cpu")
    lexical = build_pool(collection, max_passages=30)
    pool = hard_pool(collection, [retriever], max_passages=30, max_queries=10, wider=4)
    assert len(pool.passages) == 30 and pool.query_ids == lexical.query_ids
    judged = {p for q in pool.query_ids for p in collection.judgements[q]}
    assert judged <= {p.id for p in pool.passages}
    passages = sorted(collection.corpus, key=lambda p: p.id)
    scores_QD = encode_queries(retriever, pool.queries) @ encode_passages(retriever, passages).T
    firsts = {passages[column].id for column in scores_QD.argmax(axis=1)}
    assert firsts <= {p.id for p in pool.passages}, (
        "the whole corpus is preselected, so its first ones are in"
    )
    assert hard_pool(collection, [], max_passages=30, max_queries=10) == lexical
    [(pooled, whole)] = agreement(collection, pool, [retriever])
    assert pooled >= whole
    everything = build_pool(collection, max_passages=200)
    [(same, whole)] = agreement(collection, everything, [retriever])
    assert same == whole == score_vectors([everything], [embed_pool(retriever, everything)]).score


def test_the_surrogate_searches_methods_that_do_not_add_deltas(tiny_model_folder, tmp_path):
    retriever, experts, layout, pools = attached_world(tiny_model_folder, tmp_path)
    parameters = MergeParameters.model_validate({"density": 0.5})
    space = SearchSpace(("a", "b"), (0.0, 0.5, 1.0), method="ties")
    with candidates(retriever, experts, method="ties", parameters=parameters, layout=layout) as apply:

        def embed(effective_KS):
            return [embed_pool(apply(effective_KS), pool) for pool in pools]

        found = search(embed, pools, space, asked("surrogate", 7, patience=7))
        assert found.encodings <= 7 and found.best.real
        again = score_vectors(pools, embed(found.best.weights)).score
    assert found.best.score == pytest.approx(again)


def test_methods_that_divide_by_the_sum_of_the_weights_are_mergekits():
    from mergekit import merge_methods
    from mergekit.merge_methods import GeneralizedTaskArithmeticMerge

    from medley.merge.settings import METHODS

    for name in METHODS:
        kernel = merge_methods.get(name)
        if isinstance(kernel, GeneralizedTaskArithmeticMerge):
            assert kernel.default_normalize == (name in NORMALISED), name


def test_weights_and_general_must_name_dev_collections():
    file = {"base": "tiny", "experts": {"a": "x"}, "search": {"dev": ["demo/medicine:dev"]}}
    for change, message in (
        ({"general": ["demo/medicin:dev"]}, "did you mean 'demo/medicine:dev'"),
        ({"weights": {"other": 2.0}}, r"search\.weights: 'other' is no collection"),
        ({"weights": {"demo/medicine:dev": 0.0}}, "above 0"),
    ):
        with pytest.raises(RecipeError, match=message):
            parse_merge_file({**file, "search": {**file["search"], **change}}, "x.yaml")
    assert SearchSettings().objective == "mean"


def test_a_collection_in_memory_can_be_pooled_twice():
    collection = make_collection(30, 3)
    again = in_memory("demo", "dev", list(collection.corpus), collection.queries, collection.judgements)
    assert build_pool(again, max_passages=20) == build_pool(collection, max_passages=20)
