"""Paired tests against scipy, closed forms, and their own false-positive rate."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from medley.errors import InputError
from medley.evaluate.compare import bootstrap_means, compare, holm, sign_flip_p_value


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
