"""Experts: PEFT adapters of every plain kind act as PEFT says, others are refused, folders round-trip."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from medley.backbone import base_fingerprint
from medley.encoder import (
    RetrieverSettings,
    build_retriever,
    encode_passages,
    encode_queries,
    open_retriever,
    save_retriever,
)
from medley.errors import ModelError
from medley.expert import open_base, open_expert, read_expert, save_expert
from medley.lowrank import attach, attached, detach, fold
from medley.merge.compatible import check_compatible

TEXTS = ["insulin lowers glucose", "the lazy dog", "what is the first treatment of type 2 diabetes in adults"]
FLOAT32 = RetrieverSettings(dtype="float32")
ATTENTION = ["q_proj", "v_proj"]


def train_randomly(retriever, *, seed=0, size=0.05, **options):
    """Put a LoRA adapter with random weights on a retriever, as training would leave it."""
    import torch
    from peft import LoraConfig

    generator = torch.Generator().manual_seed(seed)
    options = {"r": 4, "lora_alpha": 8, "target_modules": ATTENTION, **options}
    retriever.model.add_adapter(LoraConfig(**options))
    with torch.no_grad():
        for name, parameter in retriever.model.named_parameters():
            if ".lora_" in name:
                parameter.copy_(
                    torch.randn(parameter.shape, generator=generator) * size * parameter.shape[0] ** 0.5
                )
    retriever.model.eval()
    return retriever


def make_expert(base: Path, folder: Path, settings=FLOAT32, instruction="Find it", **options) -> Path:
    """An expert folder with random deltas."""
    retriever = build_retriever(str(base), settings, instruction=instruction, device="cpu")
    identity = base_fingerprint(retriever)
    train_randomly(retriever, **options)
    save_expert(retriever, folder, base=str(base), base_identity=identity, settings=settings)
    return folder


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"target_modules": "all-linear", "use_rslora": True},
        {"alpha_pattern": {"layers.1.self_attn.q_proj": 32}, "rank_pattern": {"v_proj": 2}},
    ],
)
def test_attached_and_folded_adapters_give_pefts_own_vectors(tiny_model_folder, tmp_path, options):
    trained = train_randomly(build_retriever(str(tiny_model_folder), FLOAT32, device="cpu"), **options)
    expected = encode_queries(trained, TEXTS)
    save_expert(trained, tmp_path / "e", base=str(tiny_model_folder), base_identity="x", settings=FLOAT32)

    opened = open_expert(tmp_path / "e", device="cpu")
    np.testing.assert_allclose(encode_queries(opened, TEXTS), expected, atol=1e-5)

    folded = build_retriever(str(tiny_model_folder), FLOAT32, device="cpu")
    assert np.abs(encode_queries(folded, TEXTS) - expected).max() > 0.01
    fold(folded, read_expert(tmp_path / "e").layers)
    np.testing.assert_allclose(encode_queries(folded, TEXTS), expected, atol=1e-5)


@pytest.mark.parametrize("architecture", ["qwen3", "llama", "mistral", "gemma", "phi3"])
def test_every_architecture(tiny_models, tmp_path, architecture):
    base = tiny_models[architecture]
    trained = train_randomly(build_retriever(str(base), FLOAT32, device="cpu"), target_modules="all-linear")
    expected = encode_passages(trained, TEXTS)
    save_expert(trained, tmp_path / "e", base=str(base), base_identity="x", settings=FLOAT32)
    np.testing.assert_allclose(encode_passages(open_expert(tmp_path / "e"), TEXTS), expected, atol=1e-5)


def test_in_bfloat16_the_adapter_acts_in_float32_as_in_peft(tiny_model_folder, tmp_path):
    settings = RetrieverSettings(dtype="bfloat16")
    trained = train_randomly(build_retriever(str(tiny_model_folder), settings, device="cpu"))
    save_expert(trained, tmp_path / "e", base=str(tiny_model_folder), base_identity="x", settings=settings)
    ours, pefts = encode_queries(open_expert(tmp_path / "e"), TEXTS), encode_queries(trained, TEXTS)
    assert (ours * pefts).sum(axis=1).min() > 0.9999


def test_adapter_saved_by_peft_from_a_model_with_a_head(tiny_model_folder, tmp_path):
    """Layers are called base_model.model.model.layers...; loaders that miss this load nothing, silently."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_model_folder)
    config = LoraConfig(
        r=2, lora_alpha=6, target_modules=ATTENTION, alpha_pattern={r"^model\.layers\.0\..*q_proj": 5}
    )
    adapted = get_peft_model(model, config).eval()
    torch.manual_seed(1)
    for name, parameter in adapted.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    adapted.save_pretrained(tmp_path / "foreign")
    token_ids = torch.arange(5, 15)[None]
    with torch.no_grad():
        expected = adapted.base_model.model.model(token_ids).last_hidden_state

    expert = read_expert(tmp_path / "foreign")
    assert expert.rank == 2
    assert "layers.1.self_attn.v_proj" in expert.layers
    causal = RetrieverSettings(dtype="float32", attention="causal")
    retriever = open_expert(tmp_path / "foreign", str(tiny_model_folder), causal, device="cpu")
    with torch.no_grad():
        found = retriever.model[0].model(token_ids).last_hidden_state
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    with pytest.raises(ModelError, match="layer"):
        attach(retriever, expert.layers)


def test_detaching_restores_the_model_exactly_and_identity_sees_the_adapter(tiny_model_folder, tmp_path):
    expert = read_expert(make_expert(tiny_model_folder, tmp_path / "e"))
    retriever = build_retriever(str(tiny_model_folder), FLOAT32, device="cpu")
    before, vectors, identity = (
        dict(retriever.model.state_dict()),
        encode_queries(retriever, TEXTS),
        retriever.identity(),
    )
    attach(retriever, expert.layers)
    assert len(attached(retriever)) == 4
    assert retriever.identity() != identity
    detach(retriever)
    assert list(retriever.model.state_dict()) == list(before)
    assert retriever.identity() == identity
    assert np.array_equal(encode_queries(retriever, TEXTS), vectors)


def test_an_expert_folder_says_what_it_was_trained_on_and_holds_no_paths(tiny_model_folder, tmp_path):
    retriever = train_randomly(
        build_retriever(str(tiny_model_folder), FLOAT32, instruction="Find it", device="cpu")
    )
    extra = {"pairs": "abc"}
    save_expert(retriever, tmp_path / "e", base="my/base", base_identity="f00", settings=FLOAT32, extra=extra)
    expert = read_expert(tmp_path / "e", name="med")
    positions = 256  # of the base: its texts are cut there, whatever was asked
    settings = FLOAT32.model_copy(update={"max_length": positions})
    assert (expert.name, expert.rank, expert.instruction, expert.settings) == ("med", 4, "Find it", settings)
    assert expert.description["base_identity"] == "f00"
    assert expert.description["pairs"] == "abc"
    assert str(tiny_model_folder) not in (tmp_path / "e" / "adapter_config.json").read_text()
    first = (tmp_path / "e" / "adapter_config.json").read_bytes()
    save_expert(retriever, tmp_path / "f", base="my/base", base_identity="f00", settings=FLOAT32, extra=extra)
    assert (tmp_path / "f" / "adapter_config.json").read_bytes() == first


def test_base_fingerprint_ignores_adapter_dtype_and_instruction_but_not_weights(tiny_models, tmp_path):
    import torch

    base = str(tiny_models["qwen3"])
    plain = base_fingerprint(build_retriever(base, FLOAT32, device="cpu"))
    other = build_retriever(
        base, RetrieverSettings(dtype="bfloat16", pooling="mean"), instruction="x", device="cpu"
    )
    assert base_fingerprint(other) == plain
    assert base_fingerprint(train_randomly(other)) == plain
    changed = build_retriever(base, FLOAT32, device="cpu")
    with torch.no_grad():
        next(changed.model.parameters()).mul_(1.1)
    assert base_fingerprint(changed) != plain
    assert base_fingerprint(build_retriever(str(tiny_models["llama"]), FLOAT32)) != plain


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"use_dora": True}, "use_dora"),
        ({"bias": "all"}, "bias"),
        ({"modules_to_save": ["embed_tokens"]}, "modules_to_save"),
        ({"init_lora_weights": "pissa"}, "pissa"),
        ({"peft_type": "LOHA"}, "LOHA"),
        ({"lora_bias": True}, "lora_bias"),
    ],
)
def test_adapters_that_are_no_plain_delta_are_refused(tiny_model_folder, tmp_path, change, word):
    folder = make_expert(tiny_model_folder, tmp_path / "e")
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ModelError, match=word) as caught:
        read_expert(folder)
    assert "\n" not in str(caught.value)


def test_damaged_folders_are_named(tiny_model_folder, tmp_path):
    with pytest.raises(ModelError, match="neither"):
        read_expert(tmp_path)
    folder = make_expert(tiny_model_folder, tmp_path / "e")
    weights = folder / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ModelError, match="safetensors"):
        read_expert(folder)
    weights.unlink()
    with pytest.raises(ModelError, match="no such file"):
        read_expert(folder)
    plain = build_retriever(str(tiny_model_folder), FLOAT32, device="cpu")
    with pytest.raises(ModelError, match="0 adapters"):
        save_expert(plain, tmp_path / "none", base="b", base_identity="x", settings=FLOAT32)
    assert not (tmp_path / "none").exists()


def test_incompatible_experts_are_named(tiny_models, tmp_path):
    base = tiny_models["qwen3"]
    one = read_expert(make_expert(base, tmp_path / "one"))
    two = read_expert(make_expert(base, tmp_path / "two", seed=1, instruction="another instruction is fine"))
    check_compatible([one, two], base_identity=one.description["base_identity"])
    mean = read_expert(
        make_expert(base, tmp_path / "mean", RetrieverSettings(dtype="float32", pooling="mean"))
    )
    with pytest.raises(ModelError, match=r"'one' and 'mean' differ in pooling"):
        check_compatible([one, mean])
    template = read_expert(
        make_expert(base, tmp_path / "t", RetrieverSettings(dtype="float32", template="e5"))
    )
    with pytest.raises(ModelError, match="template"):
        check_compatible([one, template])
    llama = read_expert(make_expert(tiny_models["llama"], tmp_path / "llama"))
    with pytest.raises(ModelError, match="base_identity"):
        check_compatible([one, llama])
    with pytest.raises(ModelError, match="another base"):
        check_compatible([one], base_identity="0000")


def test_wrong_base_is_named_when_attaching(tiny_models, tmp_path):
    expert = read_expert(make_expert(tiny_models["phi3"], tmp_path / "e", target_modules=["qkv_proj"]))
    retriever = build_retriever(str(tiny_models["qwen3"]), FLOAT32, device="cpu")
    with pytest.raises(ModelError, match="has no layer"):
        attach(retriever, expert.layers)
    assert not attached(retriever)


def test_full_checkpoints_are_experts_too(tiny_model_folder, tmp_path):
    retriever = build_retriever(str(tiny_model_folder), FLOAT32, instruction="Find", device="cpu")
    save_retriever(retriever, tmp_path / "full", card="")
    expert = read_expert(tmp_path / "full")
    assert not expert.is_adapter
    assert np.allclose(
        encode_queries(open_expert(tmp_path / "full"), TEXTS), encode_queries(retriever, TEXTS), atol=1e-5
    )
    assert (
        open_base(str(tmp_path / "full"), []).query_prompt()
        == open_retriever(str(tmp_path / "full")).query_prompt()
    )
