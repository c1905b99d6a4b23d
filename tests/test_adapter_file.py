"""Adapters that do not fit together, or are no plain delta, are refused in one sentence that names the cause."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from medley.adapter_file import read_layers
from medley.errors import ModelError
from medley.merge.opening import open_merge
from medley.merge.settings import MergeFile
from small import medley
from test_expert import make_expert

A, B = (f"base_model.model.layers.0.self_attn.q_proj.lora_{side}.weight" for side in "AB")


@pytest.fixture
def folder(tiny_model_folder, tmp_path) -> Path:
    """A sound adapter of rank 4, for a test to break."""
    return make_expert(tiny_model_folder, tmp_path / "e")


def with_config(folder: Path, **values) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def with_tensors(folder: Path, **values) -> None:
    """Replace tensors by name; None takes one away."""
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path) | values
    save_file({name: tensor for name, tensor in tensors.items() if tensor is not None}, path)


def refused(folder: Path, match: str) -> None:
    with pytest.raises(ModelError, match=match) as caught:
        read_layers(folder)
    assert "\n" not in str(caught.value) and str(caught.value).endswith(".")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({B: torch.ones(32, 3)}, r"lora_A \(4, 32\) and lora_B \(32, 3\)"),
        ({A: torch.ones(32)}, r"lora_A \(32,\)"),
        ({A: torch.ones(0, 32), B: torch.ones(32, 0)}, r"lora_A \(0, 32\)"),
        ({A: torch.ones(2, 32), B: torch.ones(32, 2)}, "says rank 4 .* have rank 2"),
        ({A: None}, "lora_B without its lora_A"),
        ({B: None}, "lora_A without its lora_B"),
        ({A: torch.ones(4, 32, dtype=torch.int8)}, "not stored as floating-point"),
        ({"base_model.model.lm_head.weight": torch.ones(2, 2)}, "resized for new tokens"),
        ({"base_model.model.embed_tokens.lora_embedding_A": torch.ones(2, 2)}, "update of the embeddings"),
    ],
)
def test_tensors_that_make_no_delta(folder, change, says):
    with_tensors(folder, **change)
    refused(folder, says)


@pytest.mark.parametrize("alpha", [0, -8, math.nan, math.inf, 1e9, 10**400, "8", None, True])
def test_an_alpha_that_is_no_factor(folder, alpha):
    with_config(folder, lora_alpha=alpha)
    refused(folder, "lora_alpha")
    with_config(folder, lora_alpha=8, alpha_pattern={"q_proj": alpha})
    refused(folder, "alpha")


@pytest.mark.parametrize("pattern", ["(x+x+)+y", "(a|a)*b", "(.*)*$q"])
def test_a_pattern_that_backtracks_for_ever_ends_in_seconds(folder, pattern):
    module = "base_model.model.layers.0." + "xa" + "x" * 60
    with_tensors(
        folder, **{f"{module}.lora_A.weight": torch.ones(4, 3), f"{module}.lora_B.weight": torch.ones(3, 4)}
    )
    with_config(folder, alpha_pattern={pattern: 3}, rank_pattern={})
    started = time.monotonic()
    try:
        read_layers(folder)
    except ModelError as problem:
        assert "nested repetitions" in str(problem)
    assert time.monotonic() - started < 10


def test_patterns_that_are_none(folder):
    with_config(folder, alpha_pattern={"(": 3})
    refused(folder, "no regular expression")
    with_config(folder, alpha_pattern=["q_proj"])
    refused(folder, "alpha_pattern must give")


def test_files_that_are_none(folder):
    (folder / "adapter_config.json").write_text("[]")
    refused(folder, "no JSON object")
    with_tensors_of = folder / "adapter_model.safetensors"
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    for content in (b"", b"{}", with_tensors_of.read_bytes()[:-7]):
        with_tensors_of.write_bytes(content)
        refused(folder, "not a complete safetensors file")
    save_file({}, with_tensors_of)
    refused(folder, "holds no LoRA layer")


@pytest.mark.parametrize("output", ["weights", "checkpoint"])
def test_layers_that_the_base_does_not_have_are_named_however_it_is_merged(
    folder, tiny_model_folder, tmp_path, output
):
    """A streamed checkpoint left them out, silently."""
    strange = {
        A.replace("layers.0", "layers.9"): torch.ones(4, 32),
        B.replace("layers.0", "layers.9"): torch.ones(32, 4),
    }
    with_tensors(folder, **strange)
    file = {"base": str(tiny_model_folder), "experts": {"e": str(folder)}, "weights": {"e": 1.0}, "method": "ties",
            "output": output}  # fmt: skip
    (tmp_path / "merge.yaml").write_text(json.dumps(file))
    done = medley("merge", tmp_path / "merge.yaml", "--out", tmp_path / "m")
    assert done.code == 2 and "layers.9.self_attn.q_proj" in done.err and not (tmp_path / "m").exists()


def test_layers_of_another_size_are_named(folder, tiny_model_folder):
    with_tensors(folder, **{A: torch.ones(4, 16)})
    file = {"base": str(tiny_model_folder), "experts": {"e": str(folder)}, "weights": {"e": 1.0}}
    with pytest.raises(ModelError, match=r"of size \(32, 16\), in the base .* \(32, 32\)"):
        open_merge(MergeFile.model_validate(file))
