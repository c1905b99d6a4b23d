"""Numbers that are not finite are found wherever they hide, in one pass, and refused by name."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from medley.encoder import RetrieverSettings, build_retriever, encode_passages
from medley.errors import ModelError, RecipeError, VectorError
from medley.finite import check_finite, check_vectors, is_finite
from medley.merge.settings import parse_merge_file
from small import medley, write_collection
from test_expert import make_expert


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float8_e4m3fn])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [0, 7, 8_191, 65_536, 70_000])
def test_one_number_among_many_is_found(dtype, value, place):
    tensor = torch.linspace(-3, 3, 70_001).to(dtype)
    assert is_finite(tensor) and is_finite(tensor[:0]) and is_finite(torch.arange(3))
    if dtype == torch.float8_e4m3fn and np.isinf(value):
        return  # it has none
    tensor.view(-1)[place] = value
    assert not is_finite(tensor)
    assert not is_finite(tensor[None].expand(2, -1).T if dtype.itemsize > 1 else tensor)


def test_the_tensor_and_the_count_are_named():
    good, bad = torch.zeros(3), torch.tensor([[1.0, torch.nan], [torch.inf, 0.0]])
    with pytest.raises(
        ModelError, match=r"^m: tensor b has NaN or infinity in 2 of its 4 numbers \(float32\); it is"
    ):
        check_finite([("a", good), ("b", bad)], "m")
    with pytest.raises(ModelError, match=r"too large for float16 \(past 65,504\): use bfloat16 or float32"):
        check_finite([("a", torch.tensor([70_000.0]).to(torch.float16))], "m")


def test_a_vector_is_named_by_its_text():
    vectors = np.ones((3, 4), dtype=np.float32)
    check_vectors(vectors, ["a", "b", "c"])
    vectors[1, 2] = np.nan
    with pytest.raises(VectorError, match=r"to 1 of 3 texts, the first being 'b'") as told:
        check_vectors(vectors, ["a", "b", "c"])
    assert told.value.text == "b"


def with_nan(source, folder, *, tensor: str, row: int):
    """A copy of a model or adapter folder in which one number of one row is not one."""
    shutil.copytree(source, folder)
    path = next(folder.glob("*.safetensors"))
    tensors = load_file(path)
    key = next(key for key in tensors if tensor in key)
    tensors[key][row, 3] = torch.nan
    save_file(tensors, path, metadata={"format": "pt"})
    return folder


def test_a_rare_row_that_is_no_number_is_refused_wherever_it_is_opened(tiny_model_folder, tmp_path):
    base = with_nan(tiny_model_folder, tmp_path / "base", tensor="embed_tokens", row=17)
    expert = make_expert(tiny_model_folder, tmp_path / "expert", seed=1)
    broken = with_nan(expert, tmp_path / "broken", tensor="lora_B", row=1)
    data = write_collection(tmp_path / "data")
    named = "has NaN or infinity in 1 of its"
    merges = {
        "base": {"base": base, "experts": {"a": expert}},
        "adapter": {"base": tiny_model_folder, "experts": {"a": broken}},
        "full": {"base": tiny_model_folder, "experts": {"a": base, "b": tiny_model_folder}, "method": "ties"},
        "streamed": {
            "base": tiny_model_folder,
            "experts": {"a": base},
            "method": "ties",
            "output": "checkpoint",
        },
    }
    for name, content in merges.items():
        content = {"weights": dict.fromkeys(content["experts"], 0.5), **content}
        (tmp_path / f"{name}.yaml").write_text(json.dumps(content, default=str))
        done = medley("merge", tmp_path / f"{name}.yaml", "--out", tmp_path / f"{name}-out")
        assert done.code == 2 and named in done.err, (name, done.err)
        assert not (tmp_path / f"{name}-out").exists()
    for model in (base, broken):
        done = medley("evaluate", model, "--task", f"{data}:test")
        assert done.code == 2 and named in done.err, done.err
    with pytest.raises(ModelError, match=r"tensor embed_tokens.weight has NaN"):
        build_retriever(str(base), RetrieverSettings())


def test_what_float16_cannot_hold_is_refused_when_it_is_merged(tiny_model_folder, tmp_path):
    expert = make_expert(tiny_model_folder, tmp_path / "expert", seed=1)
    for output, content in (
        ("weights", {"experts": {"a": expert}, "method": "task_arithmetic", "weights": {"a": 1e8}}),
        ("checkpoint", {"experts": {"a": expert}, "method": "task_arithmetic", "weights": {"a": 1e8}}),
    ):
        file = {"base": tiny_model_folder, "dtype": "float16", "output": output, **content}
        (tmp_path / "m.yaml").write_text(json.dumps(file, default=str))
        done = medley("merge", tmp_path / "m.yaml", "--out", tmp_path / "out")
        assert done.code == 2 and "too large for float16" in done.err, done.err
        assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize(
    "content",
    [
        lambda v: {"weights": {"a": v}},
        lambda v: {"weights": {"a": [0.5, v]}, "segments": 2},
        lambda v: {"method": "ties", "weights": {"a": 0.5}, "parameters": {"density": v}},
        lambda v: {"method": "ties", "weights": {"a": 0.5}, "parameters": {"density": {"a": v}}},
        lambda v: {"weights": {"a": 0.5}, "search": {"grid": [0.0, v]}},
        lambda v: {"weights": {"a": 0.5}, "shrink": {"a": v}},
    ],
)
def test_a_merge_file_holds_finite_numbers_only(value, content):
    with pytest.raises(RecipeError, match="finite number"):
        parse_merge_file({"base": "b", "experts": {"a": "x"}, **content(value)}, "m.yaml")


def test_a_model_whose_vectors_overflow_is_told_by_the_text(tiny_model_folder):
    retriever = build_retriever(str(tiny_model_folder), RetrieverSettings(dtype="float32"), device="cpu")
    with torch.no_grad():
        retriever.model[0].model.embed_tokens.weight.fill_(torch.nan)
    with pytest.raises(VectorError, match="'the fox'"):
        encode_passages(retriever, ["the fox", "the dog"])
