"""Candidates in memory: exact, without drift, for adapters, full checkpoints and a mix, at any storage dtype."""

from __future__ import annotations

import json

import numpy as np
import pytest

from medley.backbone import base_tensors
from medley.encoder import build_retriever, encode_queries
from medley.errors import ModelError, RecipeError
from medley.expert import read_expert
from medley.merge.candidates import candidates
from medley.merge.checkpoint import Checkpoint, write_checkpoint
from medley.merge.coefficients import Layout, delta_coefficients, kind_of, weights_array
from medley.merge.concatenated import dense_merge
from medley.merge.fullweights import merge_weights
from medley.merge.settings import MergeParameters
from test_expert import FLOAT32, TEXTS

PLAIN = MergeParameters()


def opened(base_folder, dtype="float32"):
    return build_retriever(base_folder, FLOAT32.model_copy(update={"dtype": dtype}), device="cpu")


def tensors_of(retriever):
    return {name: tensor.detach().clone() for name, tensor in base_tensors(retriever).items()}


def same(left, right):
    import torch

    return set(left) == set(right) and all(torch.equal(left[name], right[name]) for name in left)


@pytest.mark.parametrize(("dtype", "count"), [("float32", 50), ("bfloat16", 1000)])
@pytest.mark.slow
def test_no_drift_after_a_thousand_candidates(base_folder, checkpoints, adapter, dtype, count):
    """The thousandth candidate is bit for bit what it is when made first, and so is the base afterwards."""
    experts = [read_expert(folder) for folder in checkpoints]
    drawn = np.random.default_rng(0).uniform(-1, 2, (count, 2, 1))
    fresh, retriever = opened(base_folder, dtype), opened(base_folder, dtype)
    base = tensors_of(retriever)
    merge_weights(fresh, experts, drawn[-1], method="task_arithmetic", parameters=PLAIN)
    with candidates(retriever, experts, method="task_arithmetic", parameters=PLAIN) as apply:
        for weights_KS in drawn:
            apply(weights_KS)
        assert same(tensors_of(retriever), tensors_of(fresh))
        assert not same(tensors_of(retriever), base)
    assert same(tensors_of(retriever), base)
    with candidates(retriever, [read_expert(adapter)], method="linear", parameters=PLAIN) as apply:
        first = encode_queries(apply(np.array([[0.7]])), TEXTS)
        for weights_KS in drawn[:, :1]:
            apply(weights_KS)
        assert np.array_equal(encode_queries(apply(np.array([[0.7]])), TEXTS), first)
    assert same(tensors_of(retriever), base)


@pytest.mark.parametrize("method", ["linear", "task_arithmetic", "ties", "dare_ties", "slerp"])
def test_candidates_in_any_order_equal_single_merges(base_folder, checkpoints, adapter, method):
    """Adapters and full checkpoints mixed; densities by candidate; each against a merge from scratch."""
    experts = [read_expert(checkpoints[0]), read_expert(adapter)]
    parameters = MergeParameters(t=0.4) if method == "slerp" else PLAIN
    trimmed = method in ("ties", "dare_ties")
    retriever = opened(base_folder)
    base = tensors_of(retriever)
    with candidates(retriever, experts, method=method, parameters=parameters) as apply:
        for density in (0.3, 0.6, 0.3) if trimmed else (None,):
            for weights in ([0.5, 0.9], [0.2, 0.8]):
                weights_KS = np.array(weights)[:, None]
                wanted = delta_coefficients(method, weights_KS) if method == "linear" else weights_KS
                found = tensors_of(apply(wanted, density=[density, 0.5] if trimmed else None))
                fresh = opened(base_folder)
                given = MergeParameters(density=(density, 0.5)) if trimmed else parameters
                merge_weights(fresh, experts, weights_KS, method=method, parameters=given)
                expected = tensors_of(fresh)
                assert max(float((found[n] - expected[n]).abs().max()) for n in found) < 1e-6
                assert not same(found, base)
    assert same(tensors_of(retriever), base)


@pytest.mark.parametrize("method", ["task_arithmetic", "ties"])
@pytest.mark.parametrize("weights_KS", [[[0.0, 0.7]], [[0.7, 0.0]], [[0.0, 0.0]]])
def test_a_weight_of_zero_takes_back_what_the_last_candidate_did(
    base_folder, checkpoints, method, weights_KS
):
    layout, experts = Layout((1,)), [read_expert(checkpoints[0])]
    alone, after = opened(base_folder), opened(base_folder)
    with candidates(alone, experts, method=method, parameters=PLAIN, layout=layout) as apply:
        expected = tensors_of(apply(np.array(weights_KS)))
    with candidates(after, experts, method=method, parameters=PLAIN, layout=layout) as apply:
        apply(np.array([[0.4, 0.9]]))
        assert same(tensors_of(apply(np.array(weights_KS))), expected)
    assert same(expected, tensors_of(after)) == (not np.any(weights_KS))


def test_a_failing_candidate_leaves_the_base_as_it_was(base_folder, checkpoints):
    retriever = opened(base_folder)
    base = tensors_of(retriever)
    experts = [read_expert(folder) for folder in checkpoints]
    with (
        pytest.raises(RecipeError, match="needs t"),
        candidates(retriever, experts, method="slerp", parameters=PLAIN) as apply,
    ):
        apply(np.ones((2, 1)))
    assert same(tensors_of(retriever), base)


def test_coefficients_by_kind_of_tensor(base_folder, checkpoints, adapter):
    """Attention of one expert and MLP of the other; what is `other` stays the base's at weight zero."""
    layout = Layout((1,), kinds=("attention", "mlp", "other"))
    assert layout.parts[:3] == (("attention", 0), ("attention", 1), ("mlp", 0))
    weights = {
        "a": layout.flat({"attention": (1, 0), "mlp": 0, "other": 0}, "weights.a"),
        "b": layout.flat({"attention": 0, "mlp": 1, "other": 0}, "weights.b"),
    }
    weights_KS = weights_array(weights, ["a", "b"], layout.segment_count)
    experts = [read_expert(folder) for folder in checkpoints]
    retriever = opened(base_folder)
    base = tensors_of(retriever)
    merge_weights(retriever, experts, weights_KS, method="task_arithmetic", parameters=PLAIN, layout=layout)
    files = [Checkpoint(folder, name="x") for folder in checkpoints]
    for name, tensor in tensors_of(retriever).items():
        kind, whose = kind_of(name), None
        if kind == "attention" and ".0." in name:
            whose = 0
        elif kind == "mlp":
            whose = 1
        expected = base[name]
        if whose is not None:
            expected = files[whose].whole(files[whose].stored(name, tensor.shape)).float()
        np.testing.assert_allclose(tensor, expected, atol=1e-6, err_msg=name)
    assert kind_of("layers.0.self_attn.q_norm.weight") == kind_of("norm.weight") == "norm"

    # adapters take the same coefficients, exactly
    lora = read_expert(adapter)
    one, other = opened(base_folder), opened(base_folder)
    merge_weights(one, [lora], weights_KS[:1], method="task_arithmetic", parameters=PLAIN, layout=layout)
    dense_merge(other, [lora], weights_KS[:1], layout=layout)
    for name, tensor in tensors_of(one).items():
        np.testing.assert_allclose(tensor, tensors_of(other)[name], atol=1e-6)
    with pytest.raises(RecipeError, match=r"weights\.a.*'mlp'"):
        layout.flat({"attention": 1, "other": 0}, "weights.a")
    with pytest.raises(RecipeError, match=r"weights\.a\.mlp.*3 numbers for 2"):
        layout.flat({"attention": 1, "mlp": (1, 2, 3), "other": 0}, "weights.a")


def test_rows_on_disk_are_read_and_written_as_safetensors_does(tmp_path):
    import torch
    from safetensors.torch import load_file, save_file

    tensors = {
        "a.weight": torch.randn(7, 5),
        "b.weight": torch.randn(3, 4, 2).bfloat16(),
        "c": torch.tensor(2.5, dtype=torch.float16),
        "d.weight": torch.randn(600, 1000),
    }
    save_file(tensors, tmp_path / "model.safetensors")
    read = Checkpoint(tmp_path, name="x")
    for name, tensor in tensors.items():
        assert torch.equal(read.whole(read.stored(name, tensor.shape)), tensor)
    assert torch.equal(read.rows(read.tensors["d.weight"], 100, 350), tensors["d.weight"][100:350])

    (tmp_path / "out").mkdir()
    shapes = {name: ("bfloat16", tuple(tensor.shape)) for name, tensor in tensors.items()}
    write_checkpoint(
        tmp_path / "out", shapes, lambda name: iter([tensors[name].bfloat16()]), shard_bytes=1_000_000
    )
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) == 2
    found = {}
    for file in set(index["weight_map"].values()):
        found |= load_file(tmp_path / "out" / file)
    assert {n: t.dtype for n, t in found.items()} == dict.fromkeys(tensors, torch.bfloat16)
    assert all(torch.equal(found[name], tensor.bfloat16()) for name, tensor in tensors.items())

    data = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(data[:-10])
    with pytest.raises(ModelError, match="copy the file again"):
        Checkpoint(tmp_path, name="x")
    (tmp_path / "model.safetensors").write_bytes(data[:20])
    with pytest.raises(ModelError, match="not a complete"):
        Checkpoint(tmp_path, name="x")
