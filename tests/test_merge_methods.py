"""Every merge method against mergekit 0.1.5's own functions, tensor by tensor, in float32 and to 1e-6."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medley.errors import ModelError, RecipeError
from medley.merge import methods
from medley.merge.fullweights import rows_of
from medley.merge.methods import KeptEntries, TensorMerge, merge_tensor
from medley.merge.settings import METHODS, MergeParameters
from medley.merge.sources import ShrunkSource, arc_coefficients
from medley.merge.trim import order_statistic, trim_seed

SHAPES = {"matrix": (700, 300), "square": (40, 40), "vector": (512,)}  # the matrix takes two blocks of rows
RANDOM = {"dare_ties", "dare_linear", "della", "della_linear"}
TWO = {"slerp", "nuslerp", "nearswap", "arcee_fusion"}
NEEDED = {"slerp": {"t": 0.3}, "nearswap": {"t": 0.01}}
WEIGHTS = np.array([0.84, 0.41, 0.12])


@dataclass(frozen=True)
class Given:
    """An expert whose update is in memory."""

    update: object

    def delta(self, tensor, shape, base, start, stop):
        return None if self.update is None else self.update[start:stop].clone()

    def changes(self, tensor):
        return self.update is not None


def tensors(shape, count=3, *, seed=0, dtype="float32", size=0.05, distinct=False):
    """A base and experts near it."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    base = torch.randn(shape, generator=generator)
    deltas = [torch.randn(shape, generator=generator) * size for _ in range(count)]
    if (
        distinct
    ):  # updates that float32 holds exactly, no two of one magnitude: mergekit breaks ties by chance
        base = torch.round(base * 8).clamp(-31, 31) / 8
        ranks = [torch.randperm(2**18, generator=generator)[: base.numel()].view(shape) + 1 for _ in deltas]
        deltas = [rank * delta.sign() * 2.0**-20 for rank, delta in zip(ranks, deltas, strict=True)]
    experts = [(base + delta).to(getattr(torch, dtype)) for delta in deltas]
    return base.to(getattr(torch, dtype)), experts


def ours(method, base, experts, weights, parameters, name="layers.0.mlp.up_proj.weight"):
    import torch

    sources = [Given(expert.float() - base.float()) for expert in experts]
    merge = TensorMerge(name, tuple(base.shape), rows_of(base), sources, weights, parameters)
    rows = list(merge_tensor(method, merge, KeptEntries()))
    assert [start for start, *_ in rows] == [0, *(stop for _, stop, _ in rows)][:-1]
    return torch.cat([part for *_, part in rows])


def mergekits(method, base, experts, weights, parameters, *, with_base=True):
    import torch
    from mergekit.merge_methods import BasePolicy, get
    from mergekit.merge_methods.api import merge_tensors

    kernel = get(method)
    known = {parameter.name for parameter in kernel.spec.parameters}
    values = dict(parameters)
    ids = list(range(len(experts)))
    if "weight" in known:
        values["weight"] = dict(zip(ids, map(float, weights), strict=True))
    inputs = list(experts)
    based = with_base and kernel.spec.contract.base in (BasePolicy.REQUIRED, BasePolicy.OPTIONAL)
    if based and not kernel.spec.contract.max_inputs == len(experts) == 2:
        ids, inputs = ["base", *ids], [base, *inputs]
    return merge_tensors(
        inputs, kernel, ids=ids, base_index=0 if based else None, dtype=torch.float32, parameters=values
    )


def assert_close(found, expected, tolerance=1e-6):
    """To 1e-6 of the tensor's largest entry."""
    error = float((found - expected).abs().max() / expected.abs().max())
    assert error <= tolerance, error


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("method", sorted(set(METHODS) - RANDOM))
def test_every_method_with_its_defaults_equals_mergekits(method, shape):
    base, experts = tensors(shape, 2 if method in TWO else 3, distinct=True)
    weights = WEIGHTS[: len(experts)]
    given_ = NEEDED.get(method, {})
    found = ours(method, base, experts, weights, MergeParameters.model_validate(given_))
    assert_close(found, mergekits(method, base, experts, weights, given_))


@pytest.mark.parametrize("density", [0.1, 0.5, 0.9, (0.3, 0.2, 0.7), 1.0])
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("method", ["ties", "breadcrumbs", "breadcrumbs_ties"])
def test_trimmed_methods_at_several_densities_normalised_or_not(method, normalize, density):
    base, experts = tensors(SHAPES["matrix"], distinct=True)
    values = {"density": density, "normalize": normalize, "lambda": 0.7, "rescale": density == 0.5}
    if method != "ties":
        values["gamma"] = 0.05
    reference = values | {"density": dict(enumerate(density)) if isinstance(density, tuple) else density}
    found = ours(method, base, experts, WEIGHTS, MergeParameters.model_validate(values))
    assert_close(found, mergekits(method, base, experts, WEIGHTS, reference))


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("method", ["linear", "task_arithmetic"])
def test_sums_normalised_or_not_with_negative_weights_too(method, normalize):
    base, experts = tensors(SHAPES["matrix"])
    weights = np.array([0.9, -0.2, 0.6])
    values = {"normalize": normalize} | ({"lambda": 1.3} if method == "task_arithmetic" else {})
    found = ours(method, base, experts, weights, MergeParameters.model_validate(values))
    assert_close(found, mergekits(method, base, experts, weights, values))


@pytest.mark.parametrize("method", ["multislerp", "nuslerp"])
def test_methods_with_or_without_a_base(method):
    base, experts = tensors(SHAPES["square"], 2 if method == "nuslerp" else 3)
    weights = WEIGHTS[: len(experts)]
    parameters = MergeParameters(from_base=False)
    found = ours(method, base, experts, weights, parameters)
    assert_close(found, mergekits(method, base, experts, weights, {}, with_base=False))
    assert float((found - ours(method, base, experts, weights, MergeParameters())).abs().max()) > 1e-4


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("density", [0.3, 0.8])
@pytest.mark.parametrize("method", sorted(RANDOM))
def test_random_methods_by_seed(method, density, shape):
    """mergekit's sparsification under the same seed for each expert, then its merge of what is left."""
    import torch
    from mergekit.merge_methods import get
    from mergekit.sparsify import RescaleNorm, sparsify

    name = "layers.0.mlp.up_proj.weight"
    base, experts = tensors(shape)
    left = []
    for index, expert in enumerate(experts):
        torch.manual_seed(trim_seed(5, name, index))
        kind = get(method).sparsification_method
        sparse = sparsify(expert - base, density, kind, epsilon=0.1, rescale_norm=RescaleNorm.l1)
        left.append(base + sparse)
    values = {"density": density} | ({"epsilon": 0.1} if "della" in method else {})
    found = ours(method, base, experts, WEIGHTS, MergeParameters.model_validate(values | {"seed": 5}), name)
    assert_close(found, mergekits(method, base, left, WEIGHTS, {"density": 1.0}))


def test_dare_by_moments():
    """Over seeds, the share kept is the density and the mean update is the full one (rescaled to its norm)."""
    base, experts = tensors((300, 400), 1)
    full = (experts[0] - base).flatten()
    merged = [
        (
            ours("dare_linear", base, experts, np.ones(1), MergeParameters(density=0.4, seed=seed)) - base
        ).flatten()
        for seed in range(40)
    ]
    kept = np.mean([float((update.abs() > 1e-6).float().mean()) for update in merged])
    assert kept == pytest.approx(0.4, abs=0.003)
    mean = sum(merged) / len(merged)
    slope = float((mean * full).sum() / (full * full).sum())
    assert slope == pytest.approx(1.0, abs=0.01)
    # a kept entry is x / p, so the variance over seeds is x^2 (1 - p) / p
    variance = sum((update - mean) ** 2 for update in merged) / (len(merged) - 1)
    assert float(variance.sum() / (full * full).sum()) == pytest.approx(0.6 / 0.4, rel=0.03)


@pytest.mark.parametrize("method", ["ties", "dare_ties", "breadcrumbs"])
def test_bfloat16_updates_with_ties_keep_the_exact_share(method):
    """Updates of bfloat16 weights repeat; the number kept stays exact and kept ones are the largest."""
    base, experts = tensors((512, 300), dtype="bfloat16", size=0.01)
    merge = TensorMerge(
        "x", (512, 300), rows_of(base), [Given(e.float() - base.float()) for e in experts], WEIGHTS,
        MergeParameters(density=0.2),
    )  # fmt: skip
    kept = KeptEntries()
    list(merge_tensor(method, merge, kept))
    for (_, expert, _), found in kept.found.items():
        bits = np.unpackbits(found.bits)[: 512 * 300].astype(bool)
        magnitude = (experts[expert].float() - base.float()).abs().numpy().ravel()
        if method == "dare_ties":
            assert bits.mean() == pytest.approx(0.2, abs=0.01)
            continue
        assert bits.sum() == int(0.2 * 512 * 300)
        if method == "ties":
            assert magnitude[bits].min() >= magnitude[~bits].max()


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 3000), st.floats(0, 1), st.integers(1, 6), st.integers(0, 1000))
def test_order_statistics_are_exact_whatever_repeats(count, share, levels, seed):
    import torch

    values = np.random.default_rng(seed).integers(-levels, levels + 1, count).astype(np.float32)
    place = 1 + int(share * (count - 1))
    halves = [torch.from_numpy(values[: count // 2]), torch.from_numpy(values[count // 2 :])]
    value, needed, equal = order_statistic(lambda: [h for h in halves if len(h)], count, place)
    ordered = np.sort(np.abs(values))[::-1]
    assert value == ordered[place - 1]
    assert needed == (ordered[:place] == value).sum()
    assert equal == (ordered == value).sum()


def test_what_is_kept_is_found_once_for_each_density(monkeypatch):
    base, experts = tensors(SHAPES["square"])
    sources = [Given(expert - base) for expert in experts]
    calls = []
    real = methods.find_kept
    monkeypatch.setattr(methods, "find_kept", lambda *a: calls.append(a[0].density) or real(*a))
    kept = KeptEntries()
    for density in (0.5, 0.5, 0.3, 0.5, (0.3, 0.5, 0.3)):
        for weights in (WEIGHTS, WEIGHTS[::-1].copy()):
            parameters = MergeParameters(density=density)
            merge = TensorMerge("x", (40, 40), rows_of(base), sources, weights, parameters)
            assert list(merge_tensor("ties", merge, kept))
    assert sorted(calls) == [0.3] * 3 + [0.5] * 3


@pytest.mark.parametrize("angle", [0.02, 0.5, 1.5])
@pytest.mark.parametrize("ratio", [0.1, 0.25, 0.5, 1.0])
def test_shrinking_toward_the_base_equals_mergekits_slerp(angle, ratio):
    import torch
    from mergekit.merge_methods.slerp import slerp

    base, (other,) = tensors(SHAPES["matrix"], 1, size=1.0)
    across = other - base - ((other - base) * base).sum() / (base * base).sum() * base
    expert = base * np.cos(angle) + across / across.norm() * base.norm() * np.sin(angle) * 1.1
    source = ShrunkSource(Given(expert - base), ratio)
    rows = rows_of(base)
    found = torch.cat(
        [base[a:b] + source.delta("x", SHAPES["matrix"], rows, a, b) for a, b in ((0, 400), (400, 700))]
    )
    expected = slerp(torch.tensor([ratio]), expert[None], base[None])[0]
    assert_close(found, expected, 2e-6)
    if ratio == 1.0:
        assert_close(found, base, 2e-6)
    if angle == 0.02:  # almost parallel: the update itself is scaled
        assert arc_coefficients(Given(expert - base), "x", SHAPES["matrix"], rows, ratio) == (
            ratio,
            1 - ratio,
        )


def test_what_a_method_cannot_do_is_refused():
    import torch

    base, experts = tensors(SHAPES["square"])
    with pytest.raises(RecipeError, match="needs t"):
        ours("slerp", base, experts[:2], WEIGHTS[:2], MergeParameters())
    with pytest.raises(RecipeError, match="has no gamma"):
        ours("ties", base, experts, WEIGHTS, MergeParameters(gamma=0.1))
    with pytest.raises(RecipeError, match="epsilon"):
        ours("della", base, experts, WEIGHTS, MergeParameters(density=0.05))
    with pytest.raises(ModelError, match="sum"):
        ours("linear", base, experts, np.array([1.0, -1.0, 0.0]), MergeParameters())
    experts[0][3:30] = torch.nan
    with pytest.raises(ModelError, match="not a number"):
        ours("ties", base, experts, WEIGHTS, MergeParameters(density=0.9))
