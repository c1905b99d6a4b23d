"""Paired tests against scipy, closed forms, and their own false-positive rate."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from medley.artefact import STAGES, marks
from medley.collections import BUNDLED
from medley.errors import DemandError, InputError
from medley.files import write_json, write_text
from medley.pipeline.publish import hand_over
from medley.recipe import load_recipe
from medley.statistics.compare import compare, compare_seeds
from medley.statistics.demands import Demand, by_task, check_demand
from medley.statistics.family import compare_family, holm
from medley.statistics.paired import bootstrap_means, sign_flip_p_value
from medley.statistics.power import detectable_difference


def scores(values: np.ndarray | list[float]) -> dict[str, float]:
    return {f"q{index:04d}": float(value) for index, value in enumerate(values)}


@pytest.mark.parametrize("count", [5, 11, 60])
def test_p_value_agrees_with_scipy(count: int) -> None:
    rng = np.random.default_rng(count)
    a, b = rng.random(count) + 0.12, rng.random(count)
    ours = compare({"t": scores(a)}, {"t": scores(b)}, seed=1).p_value
    theirs = stats.permutation_test(
        (a, b), lambda x, y: np.mean(x - y), permutation_type="samples", n_resamples=20_000, rng=2
    ).pvalue
    assert ours == pytest.approx(theirs, abs=1e-9 if count <= 11 else 0.015)


def test_closed_forms() -> None:
    up = {"t": scores([0.5] * 10)}
    down = {"t": scores([0.25] * 10)}
    result = compare(up, down, seed=0)
    assert result.difference == 0.25 and (result.ci_low, result.ci_high) == (0.25, 0.25)
    assert result.p_value == 2 / 2**10  # only all heads and all tails are as extreme
    assert (result.wins, result.ties, result.losses) == (10, 0, 0)
    same = compare(up, up, seed=0)
    assert same.p_value == 1.0 and same.effect_size == 0.0 and same.ties == 10


def test_effect_size_is_mean_over_standard_deviation() -> None:
    differences = [0.1, 0.3, -0.1, 0.2]
    result = compare({"t": scores(differences)}, {"t": scores([0] * 4)}, seed=0)
    assert result.effect_size == pytest.approx(np.mean(differences) / np.std(differences, ddof=1))


def test_tasks_weigh_the_same_or_queries_do() -> None:
    a = {"small": scores([1.0, 1.0]), "large": scores([0.0] * 8)}
    b = {"small": scores([0.0, 0.0]), "large": scores([0.0] * 8)}
    result = compare(a, b, seed=0)
    assert result.difference == pytest.approx(0.5) and result.pooled_difference == pytest.approx(0.2)
    assert result.p_value == result.pooled_p_value == 0.5
    assert (result.queries, result.tasks) == (10, 2)


def test_interval_is_near_the_normal_one() -> None:
    d = np.random.default_rng(0).normal(0.05, 0.3, 400)
    result = compare({"t": scores(d)}, {"t": scores(np.zeros(400))}, seed=3)
    half = 1.96 * d.std(ddof=1) / 20
    assert [result.ci_low, result.ci_high] == pytest.approx([d.mean() - half, d.mean() + half], abs=0.004)


def test_false_positive_rate_is_near_alpha() -> None:
    rng = np.random.default_rng(11)
    p_values = [sign_flip_p_value(rng.normal(0, 1, 40), rng, permutations=500) for _ in range(600)]
    assert 0.03 < np.mean(np.array(p_values) < 0.05) < 0.075  # three standard errors about 0.05


def test_seed_decides_and_order_of_queries_does_not_matter() -> None:
    rng = np.random.default_rng(5)
    a, b = scores(rng.random(50)), scores(rng.random(50))
    backwards = dict(reversed(a.items()))
    assert compare({"t": a}, {"t": b}, seed=1) == compare({"t": backwards}, {"t": b}, seed=1)
    assert compare({"t": a}, {"t": b}, seed=1) != compare({"t": a}, {"t": b}, seed=2)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(-1, 1), min_size=1, max_size=12))
def test_swapping_the_models_mirrors_the_result(differences: list[float]) -> None:
    a, b = {"t": scores(differences)}, {"t": scores([0.0] * len(differences))}
    there, back = compare(a, b, seed=0, resamples=10), compare(b, a, seed=0, resamples=10)
    assert there.difference == pytest.approx(-back.difference)
    assert there.p_value == pytest.approx(back.p_value)
    assert (there.wins, there.losses) == (back.losses, back.wins)


def test_results_about_different_queries_are_refused() -> None:
    with pytest.raises(InputError, match="different queries"):
        compare({"t": {"a": 1.0}}, {"t": {"b": 1.0}}, seed=0)
    with pytest.raises(InputError, match="no task in common"):
        compare({"t": {"a": 1.0}}, {"u": {"a": 1.0}}, seed=0)


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0] and holm([]) == []


def test_bootstrap_means_have_the_standard_error() -> None:
    d = np.random.default_rng(0).random(100)
    means_R = bootstrap_means(d, np.random.default_rng(1), resamples=5_000)
    assert means_R.shape == (5_000,) and means_R.std() == pytest.approx(d.std() / 10, rel=0.06)


def test_holm_covers_means_and_tasks_of_every_pair() -> None:
    rng = np.random.default_rng(2)
    variants = {name: [{"t": scores(rng.random(30)), "u": scores(rng.random(20))}] for name in "abc"}
    tested = compare_family(variants, [("a", "b"), ("a", "c")], seed=1)
    assert [(one.b, one.task) for one in tested] == [(b, task) for b in "bc" for task in ("", "t", "u")]
    assert [one.p_holm for one in tested] == holm([one.found.p_value for one in tested])
    whole = compare(variants["a"][0], variants["b"][0], seed=1)
    assert tested[0].found == whole and tested[0].in_words == "no difference shown"


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_is_that_of_statsmodels_definition(p_values: list[float]) -> None:
    ours = holm(p_values)
    order = np.argsort(p_values, kind="stable")
    expected = np.minimum(
        1, np.maximum.accumulate((len(order) - np.arange(len(order))) * np.array(p_values)[order])
    )
    assert [ours[i] for i in order] == pytest.approx(expected.tolist())


def test_detectable_difference_is_the_one_that_power_tables_give() -> None:
    d = np.random.default_rng(0).normal(0, 0.3, 64)
    effect = detectable_difference([d]) / d.std(ddof=1)  # Cohen's d_z for 64 pairs, alpha .05, power .8
    freedom, noncentral = 63, effect * 8
    power = stats.nct.sf(stats.t.ppf(0.975, freedom), freedom, noncentral)
    assert power == pytest.approx(0.8, abs=0.01)
    assert detectable_difference([d[:1]]) is None and detectable_difference([np.zeros(5)]) is None
    assert detectable_difference([np.array([0.01] + [0.0] * 63)]) is None, (
        "one query that differs promises nothing"
    )
    halves = detectable_difference([d, d])
    assert halves == pytest.approx(detectable_difference([d]) / np.sqrt(2), rel=0.02)


def seeded(rng: np.random.Generator, seeds: int, queries: int, by_seed: float, mean: float = 0.0) -> list:
    query_effect = rng.normal(0, 0.1, queries)
    return [
        {"t": scores(mean + query_effect + rng.normal(0, by_seed) + rng.normal(0, 0.2, queries))}
        for _ in range(seeds)
    ]


def test_seeds_widen_the_interval_where_they_differ() -> None:
    rng = np.random.default_rng(3)
    nothing = [{"t": scores(np.zeros(80))}] * 3
    steady = compare_seeds(seeded(rng, 3, 80, 0.0, 0.05), nothing, seed=1)
    shaky = compare_seeds(seeded(rng, 3, 80, 0.2, 0.05), nothing, seed=1)
    assert steady.seeds == 3 and steady.queries == 80
    assert shaky.ci_high - shaky.ci_low > 2 * (steady.ci_high - steady.ci_low)
    assert shaky.p_value > shaky.pooled_p_value


def test_seeds_without_interaction_are_the_two_way_anova() -> None:
    """With no seed effect at all, the test is Student's over queries."""
    d = np.random.default_rng(4).normal(0.05, 0.2, 40)
    runs = [{"t": scores(d)}] * 2
    found = compare_seeds(runs, [{"t": scores(np.zeros(40))}] * 2, seed=0)
    student = stats.ttest_1samp(d, 0)
    assert found.p_value == pytest.approx(student.pvalue) and found.difference == pytest.approx(d.mean())
    assert (found.ci_low, found.ci_high) == pytest.approx(tuple(student.confidence_interval()))


def test_crossed_seeds_are_calibrated() -> None:
    rng = np.random.default_rng(8)
    nothing = [{"t": scores(np.zeros(40))}] * 3
    p_values = [
        compare_seeds(seeded(rng, 3, 40, 0.05), nothing, seed=0, resamples=10).p_value for _ in range(300)
    ]
    assert np.mean(np.array(p_values) < 0.05) < 0.09


def test_seeds_must_come_in_pairs() -> None:
    one = {"t": {"q": 1.0}}
    with pytest.raises(InputError, match="the same number"):
        compare_seeds([one, one], [one], seed=0)


GENERAL = {"near": scores([0.5] * 40), "far": scores([0.5] * 40)}


@pytest.mark.parametrize(
    ("loss", "evidence", "met"),
    [(0.005, "estimate", True), (0.02, "estimate", False), (0.0, "estimate", True), (0.0, "interval", False)],
)
def test_demands_name_the_tasks_that_break_them(loss: float, evidence: str, met: bool) -> None:
    noise = np.tile([0.2, -0.2], 20)
    merged = {"near": GENERAL["near"], "far": scores(0.5 - loss + noise)}
    demand = Demand(group="general", by=0.01, evidence=evidence)
    outcome = check_demand(demand, merged, GENERAL, ["near", "far"], seed=1)
    assert outcome.met == met and outcome.tasks == 2
    assert [one.task for one in outcome.broken] == ([] if met else ["far"])
    assert ("met on 2 tasks" if met else "broken by far") in outcome.sentence


def test_the_worst_task_and_those_improved() -> None:
    found = by_task({"a": 0.5, "b": 0.4, "c": 0.3}, {"a": 0.4, "b": 0.45, "d": 1.0})
    assert found is not None and (found.worst, found.improved, found.tasks) == ("b", 1, 2)
    assert found.worst_difference == pytest.approx(-0.05) and by_task({"a": 1.0}, {}) is None


def test_a_run_that_breaks_a_demand_hands_over_no_model(tmp_path: Path) -> None:
    sentence = "no general task worse than base by more than 0.01: broken by far (-0.0200, ...)"
    recipe = load_recipe(BUNDLED / "demo" / "recipe.yaml")

    def made(step: str, files: tuple[str, ...], **summary: object) -> None:
        folder = tmp_path / STAGES / step
        for name in files:
            write_text(folder / name, "made")
        known = {"id": step, "key": "k", "ingredients": {}, "seconds": 0, "finished": "", "summary": summary}
        write_json(
            folder / "artefact.json",
            {**known, "files": {n: m.model_dump() for n, m in marks(folder).items()}},
        )

    outcome = ("report.html", "results.json", "recipe.yaml", "failures.json", "model/README.md")
    made("merge/model", ("model/weights",))
    made("report/report", outcome, broken_demands=[])
    hand_over(recipe, tmp_path, [])
    assert (tmp_path / "model/weights").is_file()
    made("report/report", outcome, broken_demands=[sentence])
    with pytest.raises(DemandError, match=r"broken by far.*No model is handed over") as problem:
        hand_over(recipe, tmp_path, [])
    assert problem.value.exit_code == 1
    assert not (tmp_path / "model").exists() and (tmp_path / "report.html").is_file()
