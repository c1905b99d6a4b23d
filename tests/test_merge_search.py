"""Pools, nDCG and the search: scores against trec_eval, strategies against exhaustive answers."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medley.collections import Passage, in_memory
from medley.encoder import build_retriever
from medley.errors import ModelError, RecipeError
from medley.expert import read_expert
from medley.merge.concatenated import ConcatenatedAdapter
from medley.merge.outcome import write_search
from medley.merge.pool import (
    DevPool,
    PoolVectors,
    build_pool,
    embed_pool,
    judged_pairs,
    ndcg_at_10,
    score_candidate,
    score_vectors,
    unit,
)
from medley.merge.search import plan_search, search
from medley.merge.settings import SearchSettings
from medley.merge.space import SearchSpace
from medley.merge.surrogate import Surrogate
from test_expert import FLOAT32, make_expert

WORDS = [
    "insulin", "glucose", "metformin", "liver", "stroke", "aura", "migraine", "tram", "harbour", "fracture",
    "vitamin", "dog", "fox", "asthma", "beta",
]  # fmt: skip


def make_collection(passages=40, queries=8, seed=0):
    generator = np.random.default_rng(seed)
    texts = [" ".join(generator.choice(WORDS, 6)) for _ in range(passages)]
    corpus = [Passage(f"d{index:03}", text) for index, text in enumerate(texts)]
    judgements = {
        f"q{q}": {
            f"d{d:03}": int(generator.integers(0, 3)) for d in generator.choice(passages, 5, replace=False)
        }
        for q in range(queries)
    }
    for scores in judgements.values():
        scores[next(iter(scores))] = 2
    asked = {f"q{q}": " ".join(generator.choice(WORDS, 3)) for q in range(queries)}
    return in_memory("demo", "dev", corpus, asked, judgements)


def pool_of(judgements, passage_ids):
    queries = tuple(judgements)
    passages = tuple(Passage(p, p) for p in sorted(passage_ids))
    return DevPool("x:dev", queries, queries, passages, judgements)


def test_ndcg_equals_trec_eval():
    import pytrec_eval

    generator = np.random.default_rng(3)
    ids = [f"d{index:03}" for index in range(60)]
    judgements = {
        f"q{q}": {ids[d]: int(generator.integers(0, 4)) for d in generator.choice(60, 25, replace=False)}
        | {ids[0]: 1}
        for q in range(12)
    }
    scores_QD = generator.permutation(12 * 60).reshape(12, 60).astype(np.float32)
    run = {
        q: dict(zip(ids, map(float, row), strict=True)) for q, row in zip(judgements, scores_QD, strict=True)
    }
    reference = pytrec_eval.RelevanceEvaluator(judgements, {"ndcg_cut_10"}).evaluate(run)
    found = ndcg_at_10(scores_QD, judged_pairs(pool_of(judgements, ids)))
    np.testing.assert_allclose(found, [reference[q]["ndcg_cut_10"] for q in judgements], atol=1e-12)


def test_ndcg_ties_go_to_the_first_id():
    pool = pool_of({"q": {"b": 1}}, ["c", "a", "b"])
    assert ndcg_at_10(np.zeros((1, 3), np.float32), judged_pairs(pool)).tolist() == [1 / np.log2(3)]


@given(st.integers(0, 10_000))
def test_ndcg_is_one_exactly_for_an_ideal_ranking(seed):
    generator = np.random.default_rng(seed)
    grades = generator.integers(0, 4, 15)
    grades[0] = 1
    ids = [f"d{index:02}" for index in range(15)]
    pool = pool_of({"q": {p: int(g) for p, g in zip(ids, grades, strict=True)}}, ids)
    ideal = ndcg_at_10(grades[None].astype(np.float32), judged_pairs(pool))[0]
    other = ndcg_at_10(generator.normal(size=(1, 15)).astype(np.float32), judged_pairs(pool))[0]
    assert ideal == pytest.approx(1.0)
    assert 0 <= other <= 1 + 1e-12


def test_pool_takes_a_small_corpus_whole_and_keeps_what_is_judged_of_a_large_one():
    collection = make_collection()
    whole = build_pool(collection, max_passages=40)
    assert [p.id for p in whole.passages] == sorted(p.id for p in collection.corpus)
    pool = build_pool(collection, max_passages=34, max_queries=6, seed=5)
    assert len(pool.passages) == 34
    assert len(pool.query_ids) == 6
    ids = {p.id for p in pool.passages}
    assert all(set(collection.judgements[q]) <= ids for q in pool.query_ids)
    assert pool == build_pool(collection, max_passages=34, max_queries=6, seed=5)
    assert pool.identity != whole.identity


def test_pool_fills_up_with_the_hardest_of_the_rankings():
    collection = make_collection(queries=1)
    judged = set(collection.judgements["q0"])
    others = [p.id for p in collection.corpus if p.id not in judged][::-1]
    ranking = {"q0": [(passage_id, 1.0) for passage_id in others]}
    pool = build_pool(collection, max_passages=8, rankings=[ranking])
    assert {p.id for p in pool.passages} == judged | set(others[:3])


def test_a_pool_that_judged_passages_fill_says_so(capsys):
    collection = make_collection(queries=6)
    judged = {passage_id for grades in collection.judgements.values() for passage_id in grades}
    build_pool(collection, max_passages=len(judged) + 1)
    assert not capsys.readouterr().err
    build_pool(collection, max_passages=len(judged))
    said = capsys.readouterr().err
    assert f"{len(judged)} judged passages fill a pool of {len(judged)}" in said and "pool_size" in said


def test_scores_of_a_retriever_equal_mean_ndcg_and_are_deterministic(tiny_model_folder):
    retriever = build_retriever(str(tiny_model_folder), FLOAT32, device="cpu")
    pools = [build_pool(make_collection(seed=s)) for s in (0, 1)]
    pools[1] = DevPool(**{**vars(pools[1]), "name": "other:dev"})
    score = score_candidate(retriever, pools)
    assert score == score_candidate(retriever, pools)
    assert score.score == pytest.approx(np.mean(list(score.scores.values())))
    assert set(score.scores) == {"demo:dev", "other:dev"}


def test_vectors_that_are_not_finite_are_an_error_not_a_score(tiny_model_folder):
    import torch

    retriever = build_retriever(str(tiny_model_folder), FLOAT32, device="cpu")
    with torch.no_grad():
        next(retriever.model.parameters()).fill_(float("nan"))
    with pytest.raises(ModelError, match="not finite"):
        embed_pool(retriever, build_pool(make_collection()))


def linear_world(seed=0, experts=3, nonlinearity=0.0):
    """A made-up embedder, linear in the coefficients up to a quadratic term, and its pool."""
    generator = np.random.default_rng(seed)
    pool = build_pool(make_collection(60, 20, seed=seed))
    shapes = [(len(pool.queries), 16), (len(pool.passages), 16)]
    base = [generator.normal(size=shape).astype(np.float32) for shape in shapes]
    deltas = [[generator.normal(size=shape).astype(np.float32) for shape in shapes] for _ in range(experts)]
    curved = [generator.normal(size=shape).astype(np.float32) for shape in shapes]
    calls = []

    def embed(effective_KS):
        calls.append(effective_KS.copy())
        vectors = [
            b + sum(np.float32(c) * d[side] for c, d in zip(effective_KS.ravel(), deltas, strict=True))
            + np.float32(nonlinearity * (effective_KS**2).sum()) * curved[side]
            for side, b in enumerate(base)
        ]  # fmt: skip
        if nonlinearity == 0.0:
            return [PoolVectors(*vectors)]
        return [PoolVectors(*map(unit, vectors))]

    return embed, [pool], calls


GRID = (0.0, 0.25, 0.5, 0.75, 1.0)


def asked(strategy, encodings, **more):
    return SearchSettings.model_validate({"strategy": strategy, "encodings": encodings, "seed": 0, **more})


def test_grid_search_encodes_every_distinct_merge_once_and_finds_the_best():
    embed, pools, calls = linear_world()
    space = SearchSpace(("a", "b", "c"), GRID)
    result = search(embed, pools, space, asked("grid", 200))
    distinct = {tuple(np.round(np.array(p) / sum(p), 9)) for p in np.ndindex(5, 5, 5) if sum(p)}
    assert len(calls) == len(result.candidates) == result.encodings == len(distinct)
    scores = [score_vectors(pools, embed(c)).score for c in calls[: len(distinct)]]
    assert result.best.score == max(scores)
    assert all(candidate.real for candidate in result.candidates)
    with pytest.raises(RecipeError, match=f"{len(distinct)} points.*12 encodings"):
        search(embed, pools, space, asked("grid", 12))


def test_ties_go_to_the_more_uniform_candidate():
    pool = build_pool(make_collection())

    def embed(_):
        return [
            PoolVectors(
                np.ones((len(pool.queries), 2), np.float32), np.ones((len(pool.passages), 2), np.float32)
            )
        ]

    result = search(embed, [pool], SearchSpace(("a", "b"), GRID), asked("grid", 100))
    assert result.best.coefficients == {"a": 0.25, "b": 0.25}


def test_random_search_keeps_to_its_budget_repeats_and_includes_uniform():
    embed, pools, calls = linear_world()
    space = SearchSpace(("a", "b", "c"), GRID, method="task_arithmetic")
    result = search(embed, pools, space, asked("random", 9, seed=4))
    assert len(calls) == result.encodings == 9
    assert result.candidates[0].coefficients == pytest.approx(dict.fromkeys("abc", 1 / 3))
    assert result == search(embed, pools, space, asked("random", 9, seed=4))
    assert result != search(embed, pools, space, asked("random", 9, seed=5))
    assert len({tuple(c.coefficients.values()) for c in result.candidates}) == 9


def test_a_huge_space_is_sampled_without_listing_it():
    space = SearchSpace(tuple("abcd"), GRID, segment_count=8)
    sample = space.sample(20, seed=1)
    assert len(sample) == 20
    assert all(space.valid(point) for point in sample)


@pytest.mark.parametrize("method", ["linear", "task_arithmetic"])
def test_where_vectors_are_linear_the_surrogate_finds_the_best_of_the_whole_grid(method):
    embed, pools, calls = linear_world()
    space = SearchSpace(("a", "b", "c"), GRID, method=method)
    exhaustive = search(embed, pools, space, asked("grid", 200)).best
    calls.clear()
    result = search(embed, pools, space, asked("surrogate", 7))
    assert len(calls) == result.encodings == 7
    assert result.best.score == pytest.approx(exhaustive.score)
    assert any(not candidate.real for candidate in result.candidates)


def test_where_they_are_not_it_verifies_and_never_reports_a_guess_as_best():
    embed, pools, calls = linear_world(nonlinearity=2.0)
    result = search(embed, pools, SearchSpace(("a", "b", "c"), GRID), asked("surrogate", 12, patience=12))
    real = [candidate for candidate in result.candidates if candidate.real]
    assert len(calls) == 12
    assert result.best.real
    assert result.best.score == max(candidate.score for candidate in real)
    assert len({tuple(c.coefficients.values()) for c in result.candidates}) == len(result.candidates)
    weights = np.array(list(result.best.coefficients.values()))[:, None]
    again = score_vectors(pools, embed(weights / weights.sum())).score
    assert again == pytest.approx(result.best.score)


def test_surrogate_with_segments_and_budgets_too_small():
    embed, pools, calls = linear_world(experts=4)
    space = SearchSpace(("a", "b"), (0.0, 0.5, 1.0), segment_count=2)
    result = search(embed, pools, space, asked("surrogate", 8))
    assert len(calls) == 8
    assert all(len(row) == 2 for row in result.best.coefficients.values())
    with pytest.raises(RecipeError, match="5 encodings"):
        search(embed, pools, space, asked("surrogate", 6))


def test_the_real_surrogate_is_exact_at_its_basis_and_near_between(tiny_model_folder, tmp_path):
    experts = [
        read_expert(make_expert(tiny_model_folder, tmp_path / str(s), seed=s, size=0.01)) for s in (1, 2)
    ]
    retriever = build_retriever(str(tiny_model_folder), FLOAT32, device="cpu")
    pools = [build_pool(make_collection())]
    with ConcatenatedAdapter(retriever, experts) as adapter:

        def embed(effective_KS):
            adapter.set_coefficients(effective_KS)
            return [embed_pool(retriever, pool) for pool in pools]

        surrogate = Surrogate.of_basis(
            pools, [embed(np.array(p)) for p in ([[0], [0]], [[1], [0]], [[0], [1]])]
        )
        basis = np.array([[0.0], [1.0]])
        np.testing.assert_allclose(surrogate.vectors(basis)[0].passages, embed(basis)[0].passages, atol=1e-6)
        between = np.array([[0.5], [0.5]])
        base, real = embed(np.zeros((2, 1)))[0].passages, embed(between)[0].passages
        guess = surrogate.vectors(between)[0].passages
        assert np.linalg.norm(guess - real) < 0.3 * np.linalg.norm(base - real)
        space = SearchSpace(("a", "b"), GRID)
        result = search(embed, pools, space, SearchSettings(encodings=6))
        assert result == search(embed, pools, space, SearchSettings(encodings=6))
    write_search(tmp_path / "search.json", result)
    written = json.loads((tmp_path / "search.json").read_text())
    assert written["strategy"] == "surrogate"
    assert written["best"] in written["candidates"]
    assert set(written["candidates"][0]) >= {"coefficients", "score", "scores", "real"}


def test_plan_and_dev_mistakes():
    embed, pools, _ = linear_world()
    space = SearchSpace(("a", "b", "c"), GRID)
    plan = plan_search(space, SearchSettings(strategy="grid"))
    assert plan["encodings"] == plan["grid_points"] > 12
    assert plan_search(space, SearchSettings(encodings=9))["encodings"] == 9
    with pytest.raises(RecipeError, match=r"search\.dev"):
        search(embed, [], space, SearchSettings())
    with pytest.raises(RecipeError, match="twice"):
        search(embed, [*pools, *pools], space, SearchSettings())


def test_within_one_standard_error_the_simplest_wins():
    """Closed form: differences of 0 and 0.2 over 4 queries have mean 0.1 and standard error 0.1 / sqrt(3)."""
    from medley.merge.outcome import Candidate, best_of
    from medley.merge.outcome import simplest_of as simplest_beside
    from medley.merge.pool import CandidateScore, standard_error

    def simplest_of(candidates):
        return simplest_beside(candidates, best_of(candidates))

    def candidate(weights, scores_Q):
        scores_Q = np.array(scores_Q)
        measured = CandidateScore(scores_Q.mean(), {"dev": scores_Q.mean()}, {"dev": scores_Q}, {"dev": 1.0})
        return Candidate(
            dict(zip("ab", weights, strict=True)), scores_Q.mean(), measured.scores, True, measured
        )

    uneven = candidate((1.0, 0.0), [0.5, 0.7, 0.5, 0.7])
    near = candidate((0.4, 0.4), [0.5, 0.7, 0.5, 0.5])
    far = candidate((0.2, 0.2), [0.5, 0.5, 0.5, 0.5])
    assert standard_error(uneven.measured, far.measured) == pytest.approx(0.1 / np.sqrt(3))
    assert best_of([far, near, uneven]) is uneven
    assert simplest_of([far, near, uneven]) is near, (
        "0.05 behind, within 0.05; the other is 0.1 behind, beyond .058"
    )
    assert simplest_of([far, uneven]) is uneven
