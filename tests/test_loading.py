"""Model files that are not whole, need code of their own or do not fit their tokenizer are refused, with names."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForCausalLM, BertConfig, BertForMaskedLM, BertModel

from conftest import ARCHITECTURES, make_tokenizer
from medley.encoder import RetrieverSettings, build_retriever, open_retriever
from medley.errors import ModelError
from medley.llm import open_chat
from medley.llm.settings import LlmSettings
from medley.loading import opening
from medley.merge.opening import open_merge
from medley.merge.settings import MergeFile
from small import medley, training_rows, write_lines

FLOAT32 = RetrieverSettings(dtype="float32", max_length=64)


def changed(model: Path, folder: Path, change: Callable[[dict], dict]) -> Path:
    """A copy of a model folder with other tensors."""
    shutil.copytree(model, folder)
    path = folder / "model.safetensors"
    save_file(change(load_file(path)), path, metadata={"format": "pt"})
    return folder


def without(part: str) -> Callable[[dict], dict]:
    return lambda tensors: {name: tensor for name, tensor in tensors.items() if part not in name}


def one_sentence(caught: pytest.ExceptionInfo) -> None:
    assert "\n" not in str(caught.value) and str(caught.value).endswith(".")


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("kind", [AutoModel, AutoModelForCausalLM])
def test_whole_models_open_whatever_their_head(tiny_models, tmp_path, architecture, kind):
    """Saved with a head and opened without, and tied weights, are no faults."""
    with opening("m", "a model"):
        model = kind.from_pretrained(tiny_models[architecture])
    model.save_pretrained(tmp_path)
    with opening("m", "a model"):
        AutoModel.from_pretrained(tmp_path)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_missing_tensors_are_named(tiny_models, tmp_path, architecture):
    part = changed(tiny_models[architecture], tmp_path / "m", without("layers.1."))
    with pytest.raises(ModelError, match=r"lack \d+ tensors \(layers\.1\..* and \d+ more\)") as caught:
        build_retriever(str(part), FLOAT32)
    one_sentence(caught)


def test_wherever_a_model_is_opened_it_has_to_be_whole(tiny_model_folder, tmp_path):
    part = changed(tiny_model_folder, tmp_path / "m", without("layers.1.mlp.up_proj"))
    says = "lack 1 tensor \\(.*layers.1.mlp.up_proj.weight\\)"
    with pytest.raises(ModelError, match=says):
        open_chat(LlmSettings(local=str(part)))
    for base, expert in ((part, tiny_model_folder), (tiny_model_folder, part)):
        file = {"base": str(base), "experts": {"e": str(expert)}, "weights": {"e": 1.0}, "method": "linear"}
        with pytest.raises(ModelError, match=says):
            open_merge(MergeFile.model_validate(file))
        (tmp_path / "merge.yaml").write_text(json.dumps(file | {"output": "checkpoint"}))
        done = medley("merge", tmp_path / "merge.yaml", "--out", tmp_path / "merged")
        assert (
            done.code == 2
            and "layers.1.mlp.up_proj.weight" in done.err
            and not (tmp_path / "merged").exists()
        )
    pairs = write_lines(tmp_path / "pairs.jsonl", training_rows("train_a"))
    for command in (
        ("train", "--base", part, "--pairs", pairs, "--out", tmp_path / "e"),
        ("mine", "--retriever", part, "--pairs", pairs, "--out", tmp_path / "m.jsonl"),
    ):
        done = medley(*command)
        assert done.code == 2 and "layers.1.mlp.up_proj.weight" in done.err


def test_a_finished_retriever_has_to_be_whole_too(tiny_model_folder, tmp_path):
    build_retriever(str(tiny_model_folder), FLOAT32).model.save_pretrained(str(tmp_path / "st"))
    part = changed(tmp_path / "st", tmp_path / "m", without("layers.0.self_attn"))
    with pytest.raises(ModelError, match="lack"):
        open_retriever(str(part))


def test_other_shapes_and_tensors_without_a_place_are_named(tiny_model_folder, tmp_path):
    name = "model.layers.0.self_attn.q_proj.weight"
    shape = changed(tiny_model_folder, tmp_path / "shape", lambda tensors: tensors | {name: torch.ones(3, 4)})
    with pytest.raises(ModelError, match=r"q_proj.weight is \(3, 4\) in its files and \(32, 32\)") as caught:
        build_retriever(str(shape), FLOAT32)
    one_sentence(caught)
    more = {"model.layers.7.mlp.up_proj.weight": torch.ones(48, 32), "score.weight": torch.ones(2, 32)}
    over = changed(tiny_model_folder, tmp_path / "over", lambda tensors: tensors | more)
    with pytest.raises(ModelError, match=r"hold 1 tensor \(.*layers.7.mlp.up_proj.weight\)") as caught:
        build_retriever(str(over), FLOAT32)
    one_sentence(caught)


def test_an_encoder_without_its_pooler_is_the_same_each_time(tmp_path):
    make_tokenizer(tmp_path)
    config = BertConfig(
        vocab_size=400, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    BertForMaskedLM(config).save_pretrained(tmp_path)
    identities = {open_retriever(str(tmp_path), device="cpu").identity() for _ in range(2)}
    assert len(identities) == 1
    with opening("m", "a model"):
        assert not BertModel.from_pretrained(tmp_path).pooler.dense.weight.any()


@pytest.mark.parametrize("content", ["[]", "{", '{"model_type": "nothing"}'])
def test_a_configuration_that_is_none_is_one_sentence(tiny_model_folder, tmp_path, content):
    folder = tmp_path / "m"
    shutil.copytree(tiny_model_folder, folder)
    (folder / "config.json").write_text(content)
    with pytest.raises(ModelError, match="cannot be opened") as caught:
        build_retriever(str(folder), FLOAT32)
    one_sentence(caught)


def test_cut_weights_are_one_sentence(tiny_model_folder, tmp_path):
    folder = tmp_path / "m"
    shutil.copytree(tiny_model_folder, folder)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ModelError, match="cannot be opened") as caught:
        build_retriever(str(folder), FLOAT32)
    one_sentence(caught)


def test_code_that_comes_with_a_model_is_never_run_nor_asked_about(tiny_model_folder, tmp_path, monkeypatch):
    """transformers would print a question and wait for an answer."""
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked"))
    folder = tmp_path / "m"
    shutil.copytree(tiny_model_folder, folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "own.OwnConfig", "AutoModel": "own.OwnModel"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    with pytest.raises(ModelError, match="Python code of its own") as caught:
        build_retriever(str(folder), FLOAT32)
    one_sentence(caught)
    with pytest.raises(ModelError, match="Python code of its own"):
        open_chat(LlmSettings(local=str(folder)))
    build_retriever(str(tiny_model_folder), FLOAT32).model.save_pretrained(str(tmp_path / "st"))
    modules = json.loads((tmp_path / "st" / "modules.json").read_text())
    modules[1]["type"] = "own.Pooling"
    (tmp_path / "st" / "modules.json").write_text(json.dumps(modules))
    (tmp_path / "st" / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    with pytest.raises(ModelError, match="Python code of its own"):
        open_retriever(str(tmp_path / "st"))
    assert not (tmp_path / "ran").exists()


def test_a_token_without_a_row_is_told_at_opening(tiny_model_folder, tmp_path):
    from transformers import AutoTokenizer

    folder = tmp_path / "m"
    shutil.copytree(tiny_model_folder, folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    rows = len(tokenizer)
    tokenizer.add_tokens(["<drug7>"])
    tokenizer.save_pretrained(folder)
    with pytest.raises(
        ModelError, match=f"'<drug7>' as token {rows}, but the embeddings end at row {rows - 1}"
    ) as caught:
        build_retriever(str(folder), FLOAT32)
    one_sentence(caught)
    with pytest.raises(ModelError, match="<drug7>"):
        open_chat(LlmSettings(local=str(folder)))


def test_a_text_is_cut_where_the_positions_end_and_that_is_told(tiny_model_folder, capsys, tmp_path):
    """As sentence-transformers does when it opens the saved model."""
    retriever = build_retriever(str(tiny_model_folder), FLOAT32.model_copy(update={"max_length": 300}))
    assert retriever.model.max_seq_length == 256
    assert "256 positions" in capsys.readouterr().err
