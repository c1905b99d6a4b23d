"""Merging: exact against closed forms, dense folding and mergekit itself, for every shape of coefficients."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medley.backbone import base_tensors
from medley.encoder import build_retriever, encode_queries, save_retriever
from medley.errors import ModelError, RecipeError
from medley.expert import open_expert, read_expert
from medley.merge.coefficients import (
    Layout,
    delta_coefficients,
    layer_cuts,
    weights_array,
    weights_mapping,
)
from medley.merge.concatenated import ConcatenatedAdapter, dense_merge, merge_adapters
from medley.merge.fullweights import merge_weights
from medley.merge.methods import is_linear_in_deltas
from medley.merge.settings import METHODS, MergeParameters
from test_expert import ATTENTION, FLOAT32, TEXTS, make_expert

NAMES = ("a", "b", "c")
PLAIN = MergeParameters()


@pytest.fixture(scope="module")
def base_folder(tiny_model_folder) -> str:
    return str(tiny_model_folder)


@pytest.fixture(scope="module")
def expert_folders(base_folder, tmp_path_factory) -> list[Path]:
    """Three experts of different rank, layers and scaling."""
    root = tmp_path_factory.mktemp("experts")
    base = Path(base_folder)
    return [
        make_expert(base, root / "a", seed=1),
        make_expert(base, root / "b", seed=2, r=2, target_modules="all-linear", use_rslora=True),
        make_expert(base, root / "c", seed=3, r=3, target_modules=["down_proj", *ATTENTION]),
    ]


@pytest.fixture(scope="module")
def experts(expert_folders):
    return [read_expert(folder) for folder in expert_folders]


@pytest.fixture
def retriever(base_folder):
    return build_retriever(base_folder, FLOAT32, instruction="Find it", device="cpu")


def tensors_of(retriever):
    return {name: tensor.detach().clone() for name, tensor in base_tensors(retriever).items()}


def by_hand(base, experts, coefficients_KS, layout=None):
    """W0 + sum_k c_k s_k B_k A_k in float64, tensor by tensor."""
    layout = layout or Layout()
    merged = {}
    for name, tensor in base.items():
        result = tensor.double()
        for k, expert in enumerate(experts):
            layer = expert.layers.get(name.removesuffix(".weight"))
            if layer is not None:
                delta = layer.up.double() @ (layer.scale.double()[:, None] * layer.down.double())
                result = result + float(coefficients_KS[k, layout.segment(name)]) * delta
        merged[name] = result.float()
    return merged


def assert_tensors(found, expected, atol=1e-6):
    import torch

    assert set(found) == set(expected)
    for name in expected:
        torch.testing.assert_close(
            found[name], expected[name], atol=atol, rtol=1e-5, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.mark.parametrize("layout", [Layout(), Layout((1,))])
def test_the_concatenated_adapter_equals_the_dense_merge_and_the_closed_form(retriever, experts, layout):
    coefficients_KS = np.random.default_rng(0).uniform(-0.5, 1, (3, layout.segment_count))
    base = tensors_of(retriever)
    with ConcatenatedAdapter(retriever, experts, layout=layout) as adapter:
        adapter.set_coefficients(coefficients_KS)
        attached = encode_queries(retriever, TEXTS)
    assert_tensors(tensors_of(retriever), base, atol=0)
    dense_merge(retriever, experts, coefficients_KS, layout=layout)
    np.testing.assert_allclose(encode_queries(retriever, TEXTS), attached, atol=1e-5)
    assert_tensors(tensors_of(retriever), by_hand(base, experts, coefficients_KS, layout))


def test_weight_one_gives_the_expert_and_all_zero_the_base(retriever, experts, expert_folders):
    base = encode_queries(retriever, TEXTS)
    with ConcatenatedAdapter(retriever, experts) as adapter:
        assert np.array_equal(encode_queries(retriever, TEXTS), base)
        for index, folder in enumerate(expert_folders):
            adapter.set_coefficients(np.eye(3)[:, [index]])
            expert = encode_queries(open_expert(folder, device="cpu"), TEXTS)
            np.testing.assert_allclose(encode_queries(retriever, TEXTS), expert, atol=1e-5)
            assert np.abs(expert - base).max() > 0.01
        adapter.set_coefficients(np.zeros((3, 1)))
        assert np.array_equal(encode_queries(retriever, TEXTS), base)
    assert np.array_equal(encode_queries(retriever, TEXTS), base)


def test_identity_changes_with_the_coefficients(retriever, experts):
    with ConcatenatedAdapter(retriever, experts) as adapter:
        adapter.set_coefficients(np.full((3, 1), 0.5))
        first = retriever.identity()
        adapter.set_coefficients(np.full((3, 1), 0.6))
        assert retriever.identity() != first


@pytest.mark.parametrize("method", ["linear", "task_arithmetic"])
@pytest.mark.parametrize("cuts", [(), (1,)])
def test_our_merge_equals_mergekits(retriever, base_folder, experts, method, cuts):
    layout = Layout(cuts)
    weights_KS = np.random.default_rng(1).uniform(0.1, 1, (3, layout.segment_count))
    reference = build_retriever(base_folder, FLOAT32, device="cpu")
    merge_weights(reference, experts, weights_KS, method=method, parameters=PLAIN, layout=layout)
    dense_merge(retriever, experts, delta_coefficients(method, weights_KS), layout=layout)
    assert_tensors(tensors_of(retriever), tensors_of(reference))


def test_task_arithmetic_normalised_and_with_lambda_equals_mergekits(retriever, base_folder, experts):
    weights_KS = np.array([[0.5], [0.25], [0.75]])
    reference = build_retriever(base_folder, FLOAT32, device="cpu")
    parameters = MergeParameters.model_validate({"normalize": True, "lambda": 0.7})
    merge_weights(reference, experts, weights_KS, method="task_arithmetic", parameters=parameters)
    effective_KS = delta_coefficients("task_arithmetic", weights_KS, normalize=True, scale=0.7)
    dense_merge(retriever, experts, effective_KS)
    assert_tensors(tensors_of(retriever), tensors_of(reference))


@pytest.mark.parametrize("method", ["linear", "task_arithmetic", "ties", "slerp"])
def test_merging_in_memory_equals_mergekit_on_disk(tmp_path, base_folder, experts, method):
    """Experts folded to checkpoints, merged on disk by mergekit's own run_merge, tensor by tensor."""
    from mergekit.config import MergeConfiguration
    from mergekit.merge import run_merge
    from mergekit.options import MergeOptions
    from safetensors.torch import load_file

    chosen = experts[:2]
    full = build_retriever(base_folder, FLOAT32, device="cpu")
    full.model[0].model.save_pretrained(tmp_path / "base")
    for index, expert in enumerate(chosen):
        folded = build_retriever(base_folder, FLOAT32, device="cpu")
        dense_merge(folded, [expert], np.ones((1, 1)))
        folded.model[0].model.save_pretrained(tmp_path / str(index))
    weights = [0.7, 0.4]
    models = [
        {"model": str(tmp_path / str(i)), "parameters": {"weight": weights[i], "density": 0.5}}
        for i in range(2)
    ]
    config = {
        "models": models,
        "merge_method": method,
        "base_model": str(tmp_path / "base"),
        "dtype": "float32",
    }
    parameters = MergeParameters(density=0.5) if method == "ties" else PLAIN
    if method == "slerp":
        config |= {"base_model": str(tmp_path / "0"), "parameters": {"t": 0.3}}
        parameters = MergeParameters(t=0.3)
    if method in ("linear", "slerp"):
        for model in models:
            model["parameters"].pop("density")
            if method == "slerp":
                model.pop("parameters")
    if method == "linear":
        config.pop("base_model")
    options = MergeOptions(quiet=True, copy_tokenizer=False, write_model_card=False)
    run_merge(MergeConfiguration.model_validate(config), str(tmp_path / "out"), options)
    merge_weights(full, chosen, np.array(weights)[:, None], method=method, parameters=parameters)
    reference = {}
    for path in (tmp_path / "out").glob("*.safetensors"):
        reference |= {name.removeprefix("model."): tensor for name, tensor in load_file(path).items()}
    reference.pop("lm_head.weight", None)
    assert_tensors(tensors_of(full), reference)


def test_every_method_of_mergekit_is_known():
    from mergekit.merge_methods import registered_methods

    assert {method.spec.name for method in registered_methods()} == {*METHODS, "passthrough"}


def test_random_methods_repeat_with_their_seed(base_folder, experts):
    def merged(seed):
        retriever = build_retriever(base_folder, FLOAT32, device="cpu")
        parameters = MergeParameters(density=0.5, seed=seed)
        merge_weights(retriever, experts, np.full((3, 1), 0.5), method="dare_ties", parameters=parameters)
        return encode_queries(retriever, TEXTS)

    first = merged(1)
    assert np.array_equal(first, merged(1))
    assert np.abs(first - merged(2)).max() > 1e-4


def test_unnormalised_linear_scales_the_base_and_is_no_adapter(retriever, experts):
    parameters = MergeParameters(normalize=False)
    assert not is_linear_in_deltas("linear", parameters, experts)
    base = tensors_of(retriever)
    merge_weights(retriever, experts, np.full((3, 1), 0.5), method="linear", parameters=parameters)
    norm = "layers.0.input_layernorm.weight"
    np.testing.assert_allclose(tensors_of(retriever)[norm], base[norm] * 1.5, rtol=1e-6)


def test_full_checkpoints_merge_like_their_adapters(tmp_path, retriever, base_folder, experts):
    for index, expert in enumerate(experts):
        folded = build_retriever(base_folder, FLOAT32, device="cpu")
        dense_merge(folded, [expert], np.ones((1, 1)))
        save_retriever(folded, tmp_path / str(index), card="")
    full = [read_expert(tmp_path / str(index)) for index in range(3)]
    assert not is_linear_in_deltas("linear", PLAIN, full)
    weights_KS = np.array([[0.2, 0.5], [0.5, 0.25], [0.3, 0.25]])
    layout = Layout((1,), ("embed_tokens", "layers.0.mlp"), 1)
    reference = build_retriever(base_folder, FLOAT32, device="cpu")
    merge_weights(retriever, full, weights_KS, method="linear", parameters=PLAIN, layout=layout)
    dense_merge(reference, experts, weights_KS, layout=layout)
    assert_tensors(tensors_of(retriever), tensors_of(reference))
    kept = "layers.0.mlp.down_proj"
    import torch

    base = tensors_of(build_retriever(base_folder, FLOAT32, device="cpu"))[f"{kept}.weight"]
    expected = base + experts[1].layers[kept].matrix()
    torch.testing.assert_close(tensors_of(retriever)[f"{kept}.weight"], expected, atol=1e-6, rtol=1e-5)


def test_methods_refuse_what_they_cannot_merge(tmp_path, retriever, experts, tiny_models):
    with pytest.raises(RecipeError, match="slerp"):
        merge_weights(retriever, experts, np.ones((3, 1)), method="slerp", parameters=MergeParameters(t=0.5))
    with pytest.raises(RecipeError, match="has no density"):
        merge_weights(
            retriever, experts, np.ones((3, 1)), method="linear", parameters=MergeParameters(density=0.5)
        )
    with pytest.raises(RecipeError, match="slerp"):
        merge_weights(retriever, experts[:2], np.ones((2, 1)), method="slerp", parameters=PLAIN)
    other = [read_expert(tiny_models["phi3"]), experts[0]]
    with pytest.raises(ModelError, match="phi3"):
        merge_weights(retriever, other, np.ones((2, 1)), method="linear", parameters=PLAIN)


def test_merged_adapter_is_an_expert_and_pefts_loader_agrees(tmp_path, retriever, experts, base_folder):
    from peft import PeftModel

    coefficients_KS = np.array([[0.5, 1.0], [0.3, -0.2], [0.2, 0.0]])
    layout = Layout((1,))
    with ConcatenatedAdapter(retriever, experts, layout=layout) as adapter:
        adapter.set_coefficients(coefficients_KS)
        expected = encode_queries(retriever, TEXTS)
    merge_adapters(experts, coefficients_KS, tmp_path / "merged", layout=layout)
    assert read_expert(tmp_path / "merged").rank == 4 + 2 + 3
    opened = open_expert(tmp_path / "merged", device="cpu")
    assert opened.instruction == "Find it"
    np.testing.assert_allclose(encode_queries(opened, TEXTS), expected, atol=1e-5)
    plain = build_retriever(base_folder, FLOAT32, instruction="Find it", device="cpu")
    PeftModel.from_pretrained(plain.model[0].model, tmp_path / "merged")  # injects into the backbone in place
    np.testing.assert_allclose(encode_queries(plain, TEXTS), expected, atol=1e-5)


def test_half_precision_bases_keep_their_weights(base_folder, experts):
    import torch

    retriever = build_retriever(base_folder, FLOAT32.model_copy(update={"dtype": "bfloat16"}), device="cpu")
    reference = build_retriever(base_folder, FLOAT32, device="cpu")
    coefficients_KS = np.full((3, 1), 0.4)
    dense_merge(reference, experts, coefficients_KS)
    with ConcatenatedAdapter(retriever, experts) as adapter:
        adapter.set_coefficients(coefficients_KS)
        assert {t.dtype for t in base_tensors(retriever).values()} == {torch.bfloat16}
        cosines = (encode_queries(retriever, TEXTS) * encode_queries(reference, TEXTS)).sum(axis=1)
    assert cosines.min() > 0.99


@given(st.integers(1, 40), st.data())
def test_segments_cover_every_layer_once_and_rise(layer_count, data):
    count = data.draw(st.integers(1, layer_count))
    layout = Layout(layer_cuts(count, layer_count))
    segments = [layout.segment(f"layers.{layer}.mlp.up_proj.weight") for layer in range(layer_count)]
    assert segments == sorted(segments)
    assert set(segments) == set(range(count))
    sizes = np.bincount(segments)
    assert sizes.max() - sizes.min() <= 1
    assert layout.segment("embed_tokens.weight") == 0
    assert layout.segment("norm.weight") == count - 1


def test_segments_by_cuts_and_by_layer():
    assert layer_cuts((8, 16), 32) == (8, 16)
    assert layer_cuts("layers", 4) == (1, 2, 3)
    assert Layout((8, 16)).segment("layers.8.self_attn.q_proj") == 1
    assert Layout((8, 16)).segment("layers.7.self_attn.q_proj") == 0
    for wrong in (0, 5, (4,), (2, 1), (0,)):
        with pytest.raises(RecipeError, match="segments"):
            layer_cuts(wrong, 4)


def test_weights_are_checked_by_name():
    weights = {"a": 0.5, "b": (0.2, 0.8)}
    weights_KS = weights_array(weights, ["b", "a"], 2)
    assert weights_KS.tolist() == [[0.2, 0.8], [0.5, 0.5]]
    assert weights_mapping(weights_KS, ["b", "a"]) == {"b": [0.2, 0.8], "a": [0.5, 0.5]}
    with pytest.raises(RecipeError, match="'c'"):
        weights_array(weights | {"c": 1.0}, ["a", "b"], 2)
    with pytest.raises(RecipeError, match="'z'"):
        weights_array(weights, ["a", "b", "z"], 2)
    with pytest.raises(RecipeError, match="3 segments"):
        weights_array(weights, ["a", "b"], 3)


@settings(max_examples=50)
@given(
    st.lists(st.floats(0, 1, allow_subnormal=False), min_size=1, max_size=5).filter(lambda w: sum(w) > 0.01),
    st.floats(0.1, 10),
)
def test_linear_coefficients_sum_to_one_whatever_the_scale(weights, factor):
    weights_KS = np.array(weights)[:, None]
    linear = delta_coefficients("linear", weights_KS)
    np.testing.assert_allclose(linear.sum(), 1.0)
    np.testing.assert_allclose(delta_coefficients("linear", weights_KS * factor), linear, atol=1e-12)
    np.testing.assert_allclose(
        delta_coefficients("task_arithmetic", weights_KS, scale=factor), weights_KS * factor
    )


def test_linear_weights_that_sum_to_zero_are_refused():
    with pytest.raises(ModelError, match="zero"):
        delta_coefficients("linear", np.array([[0.5, 0.0], [0.5, 0.0]]))
