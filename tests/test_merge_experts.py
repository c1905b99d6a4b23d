"""What base and experts must share, what of it `keep` and `retriever` resolve, and what the result is made of."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from conftest import make_model
from medley.encoder import build_retriever, encode_queries, open_retriever, save_retriever
from medley.errors import ModelError, RecipeError
from medley.merge.checkpoint import Checkpoint
from medley.merge.compatible import tokenizer_content
from medley.merge.export import licences
from medley.merge.model import merge_model, write_as_mergekit
from medley.merge.opening import open_merge
from medley.merge.settings import parse_merge_file
from test_expert import FLOAT32, TEXTS, make_expert


def merge_file(base, experts, **more):
    content = {
        "base": str(base), "experts": {name: str(path) for name, path in experts.items()}, "method": "linear",
        "weights": dict.fromkeys(experts, 0.5),
    }  # fmt: skip
    return parse_merge_file(content | more, "MERGE.yaml")


@pytest.fixture(scope="module")
def stranger(base_folder, tmp_path_factory) -> Path:
    """A checkpoint of the base's shape with a vocabulary of its own, smaller by ten entries."""
    from transformers import AutoModelForCausalLM

    folder = tmp_path_factory.mktemp("stranger") / "model"
    shutil.copytree(base_folder, folder)
    model = AutoModelForCausalLM.from_pretrained(base_folder)
    size = model.config.vocab_size - 10
    model.resize_token_embeddings(size, mean_resizing=False)
    torch.manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.03 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    path = folder / "tokenizer.json"
    whole = json.loads(path.read_text(encoding="utf-8"))
    whole["model"]["vocab"] = {word: i for word, i in whole["model"]["vocab"].items() if i < size}
    whole["model"]["merges"] = [
        pair
        for pair in whole["model"]["merges"]
        if "".join(pair if isinstance(pair, list) else pair.split()) in whole["model"]["vocab"]
    ]
    path.write_text(json.dumps(whole), encoding="utf-8")
    return folder


def test_another_tokenizer_is_refused_until_it_is_kept_from_one(base_folder, stranger, checkpoints):
    experts = {"domain": stranger, "own": checkpoints[0]}
    with pytest.raises(ModelError, match=r"'domain'.*tokenizers \(.*entries, not .*keep: \{from: base"):
        open_merge(merge_file(base_folder, experts))
    with pytest.raises(RecipeError, match="embed_tokens"):
        open_merge(merge_file(base_folder, experts, keep={"from": "base", "tensors": ["tokenizer"]}))
    keep = {"from": "base", "tensors": ["embed_tokens", "tokenizer"]}
    merge = open_merge(merge_file(base_folder, experts, keep=keep))
    assert merge.layout.keeps("embed_tokens.weight")
    assert not merge.layout.keeps("layers.0.mlp.up_proj.weight")


def test_a_tokenizer_kept_from_an_expert_comes_with_its_embeddings(tmp_path, base_folder, stranger):
    keep = {"from": "domain", "tensors": ["embed_tokens", "tokenizer"]}
    file = merge_file(
        base_folder, {"domain": stranger}, keep=keep, weights={"domain": 0.25}, method="task_arithmetic"
    )
    gate = merge_model(file, tmp_path / "merged")
    assert gate is not None
    assert gate.min_cosine_to_scored > 0.9999
    assert tokenizer_content(tmp_path / "merged") == tokenizer_content(stranger)
    found, theirs = Checkpoint(tmp_path / "merged", name="m"), Checkpoint(stranger, name="s")
    shape = theirs.tensors["embed_tokens.weight"].shape
    kept = found.whole(found.stored("embed_tokens.weight", shape))
    np.testing.assert_allclose(kept, theirs.whole(theirs.stored("embed_tokens.weight", shape)), atol=1e-6)


def test_another_architecture_or_pooling_is_named(tmp_path, base_folder, checkpoints):
    other = make_model("llama", tmp_path / "llama")
    with pytest.raises(ModelError, match=r"'other' has model_type llama.*qwen3"):
        open_merge(merge_file(base_folder, {"other": other}))
    mean = build_retriever(
        str(checkpoints[0]), FLOAT32.model_copy(update={"pooling": "mean"}), instruction="x", device="cpu"
    )
    save_retriever(mean, tmp_path / "mean", card="")
    last = build_retriever(str(checkpoints[1]), FLOAT32, instruction="x", device="cpu")
    save_retriever(last, tmp_path / "last", card="")
    experts = {"one": tmp_path / "last", "two": tmp_path / "mean"}
    with pytest.raises(ModelError, match=r"'one' and 'two' differ in pooling \(last and mean\).*`retriever`"):
        open_merge(merge_file(base_folder, experts))
    merge = open_merge(merge_file(base_folder, experts, retriever={"pooling": "mean"}))
    assert "mean" in str(merge.base.model[1])


def test_kinds_must_cover_what_experts_change(base_folder, checkpoints, adapter):
    with pytest.raises(RecipeError, match=r"kinds: expert 'full' changes .*embed_tokens.*'embedding'"):
        open_merge(merge_file(base_folder, {"full": checkpoints[0]}, kinds=["attention", "mlp"], weights={}))
    merge = open_merge(
        merge_file(base_folder, {"lora": adapter}, kinds=["attention", "mlp"], segments=2, weights={})
    )
    assert merge.layout.segment_count == 4


@pytest.mark.parametrize(
    ("method", "dtype"),
    [
        ("ties", "float32"),
        pytest.param("linear", "float32", marks=pytest.mark.slow),
        pytest.param("linear", "bfloat16", marks=pytest.mark.slow),
    ],
)
def test_streamed_checkpoint_equals_the_merge_in_memory(
    tmp_path, base_folder, checkpoints, adapter, method, dtype
):
    """Experts of every kind, weights by segment, a kept tensor: the same numbers, in transformers' layout."""
    import torch
    from transformers import AutoModelForCausalLM

    experts = {"full": checkpoints[0], "half": checkpoints[1], "lora": adapter}
    more = {
        "method": method, "segments": 2, "weights": {"full": [0.2, 0.6], "half": 0.5, "lora": [1.0, 0.1]},
        "keep": {"from": "half", "tensors": ["layers.0.mlp.down_proj"]},
        "parameters": {"density": 0.4} if method == "ties" else {}, "shrink": {"full": 0.25}, "dtype": dtype,
    }  # fmt: skip
    merge_model(merge_file(base_folder, experts, **more, output="checkpoint"), tmp_path / "plain")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "plain", dtype="auto")
    assert plain.dtype == getattr(torch, dtype)
    assert tokenizer_content(tmp_path / "plain") == tokenizer_content(Path(base_folder))
    merge_model(merge_file(base_folder, experts, **more), tmp_path / "gated")
    gated = dict(open_retriever(str(tmp_path / "gated"), dtype=dtype).model[0].model.named_parameters())
    found = dict(plain.model.named_parameters())
    assert set(found) == set(gated)
    for name, tensor in gated.items():
        size = 2e-3 if dtype == "bfloat16" else 1e-6  # in memory the base is rounded first
        torch.testing.assert_close(found[name], tensor, atol=size, rtol=1e-2 if dtype == "bfloat16" else 1e-5)


def test_a_merged_adapter_is_gated_and_hot_loads(tmp_path, base_folder, adapter):
    from peft import PeftModel

    other = make_expert(Path(base_folder), tmp_path / "other", seed=5, r=2)
    file = merge_file(base_folder, {"a": adapter, "b": other}, output="adapter")
    gate = merge_model(file, tmp_path / "merged")
    assert gate is not None
    assert gate.min_cosine_to_scored > 0.9999
    assert gate.min_cosine_to_base < 0.9999
    merge_model(merge_file(base_folder, {"a": adapter, "b": other}), tmp_path / "whole")
    expected = encode_queries(open_retriever(str(tmp_path / "whole")), TEXTS)
    plain = build_retriever(base_folder, FLOAT32, instruction="Find it", device="cpu")
    PeftModel.from_pretrained(plain.model[0].model, tmp_path / "merged")
    np.testing.assert_allclose(encode_queries(plain, TEXTS), expected, atol=1e-5)
    assert (tmp_path / "merged" / "README.md").read_text(encoding="utf-8").count("`") >= 4


@pytest.mark.slow
def test_cards_name_licences_and_fingerprints(tmp_path, base_folder, adapter):
    folders = {}
    for name, licence in (("base", "apache-2.0"), ("a", "mit"), ("silent", None)):
        folders[name] = tmp_path / name
        folders[name].mkdir()
        if licence:
            (folders[name] / "README.md").write_text(f"---\nlicense: {licence}\ntags: [x]\n---\n# {name}\n")
    assert licences(folders) == {"base": "apache-2.0", "a": "mit"}
    (folders["a"] / "README.md").write_text("---\nlicense: [\n---\n")
    assert licences(folders) == {"base": "apache-2.0"}
    merge_model(merge_file(base_folder, {"lora": adapter}), tmp_path / "merged")
    card = (tmp_path / "merged" / "README.md").read_text(encoding="utf-8")
    assert "| lora | 0.5 | `" in card
    assert "not stated" in card
    made = json.loads((tmp_path / "merged" / "medley.json").read_text())["merge"]
    assert made["method"] == "linear"
    assert made["experts"]["lora"] in card


def test_a_merge_file_is_written_as_mergekits_and_merges_alike(tmp_path, base_folder, checkpoints, adapter):
    """Segments, kinds and keep become slices and filters; mergekit itself then gives the same tensors."""
    from mergekit.config import MergeConfiguration
    from mergekit.merge import run_merge
    from mergekit.options import MergeOptions

    experts = {"full": checkpoints[0], "half": checkpoints[1]}
    file = merge_file(
        base_folder, experts, method="ties", segments=2, kinds=["attention", "mlp", "norm", "embedding"],
        weights={"full": {"attention": [0.2, 0.9], "mlp": 0.4, "norm": 0.3, "embedding": 0.1}, "half": [0.5] * 7},
        parameters={"density": {"full": 0.5, "half": 1.0}, "normalize": False},
    )  # fmt: skip
    write_as_mergekit(file, tmp_path / "mergekit.yml")
    import yaml

    config = yaml.safe_load((tmp_path / "mergekit.yml").read_text())
    options = MergeOptions(quiet=True, copy_tokenizer=False, write_model_card=False)
    run_merge(MergeConfiguration.model_validate(config), str(tmp_path / "theirs"), options)
    merge_model(file.model_copy(update={"output": "checkpoint"}), tmp_path / "ours")
    found, expected = Checkpoint(tmp_path / "ours", name="o"), Checkpoint(tmp_path / "theirs", name="t")
    assert set(expected.tensors) <= set(found.tensors)
    for name, stored in expected.tensors.items():
        np.testing.assert_allclose(
            found.whole(found.tensors[name]), expected.whole(stored), atol=1e-6, err_msg=name
        )
