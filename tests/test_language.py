"""Language-model training: the loss falls, the result merges with a retriever, a killed training ends the same."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch

from medley.backbone import base_fingerprint
from medley.documents import shards_of
from medley.encoder import RetrieverSettings, build_retriever
from medley.errors import DivergedError, PairsError
from medley.expert import read_expert
from medley.merge.compatible import check_compatible
from medley.train.blocks import token_file
from medley.train.language import train_language
from medley.train.settings import LanguageSettings, LoraSettings
from small import medley, write_lines

TEXTS = [f"insulin lowers blood glucose number {n} and the quick fox jumps over dog {n}" for n in range(40)]


@pytest.fixture
def shards(tmp_path):
    return shards_of(write_lines(tmp_path / "t.jsonl", [{"text": t, "title": "T"} for t in TEXTS]))


def settings(**changes) -> LanguageSettings:
    given = {"lora": LoraSettings(rank=4, alpha=8), "learning_rate": 1e-2, "block_tokens": 16, "batch_size": 8,
             "mini_batch_size": 4, "max_steps": 4, "held_out": 0.1, "dtype": "float32"}  # fmt: skip
    return LanguageSettings(**(given | changes))


def tensors(folder):
    from safetensors.torch import load_file

    name = "adapter_model.safetensors" if (folder / "adapter_config.json").is_file() else "model.safetensors"
    return load_file(folder / name)


def test_the_loss_is_the_models_own_and_an_adapter_lowers_it(tiny_model_folder, shards, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    report = train_language(str(tiny_model_folder), shards, settings(), tmp_path / "out", seed=3)
    assert report.steps == 4 == len(report.losses)
    assert report.loss_after < report.loss_before
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_folder)
    tokens = token_file(tokenizer, shards, tmp_path / "tokens.bin")
    assert tokenizer.decode(tokens[: tokens.tolist().index(2)]) == f"T\n\n{TEXTS[0]}"
    assert (tokens == 2).sum() == len(TEXTS) and len(tokens) == report.tokens
    blocks = len(tokens) // 16
    held = sorted(np.random.default_rng(3).choice(blocks, round(0.1 * blocks), replace=False).tolist())
    model = AutoModelForCausalLM.from_pretrained(tiny_model_folder, dtype=torch.float32)
    ids = torch.from_numpy(tokens[: blocks * 16].reshape(blocks, 16)[held].astype(np.int64))
    with torch.no_grad():
        expected = model(input_ids=ids, labels=ids).loss.item()
    assert report.loss_before == pytest.approx(expected, abs=1e-5)

    expert = read_expert(tmp_path / "out")
    retriever = build_retriever(str(tiny_model_folder), RetrieverSettings(dtype="float32"))
    assert expert.description["base_identity"] == base_fingerprint(retriever)
    check_compatible([expert], base_identity=base_fingerprint(retriever))
    assert expert.is_adapter and all(layer.up.abs().max() > 0 for layer in expert.layers.values())
    assert all(name.startswith("layers.") for name in expert.layers), "the head is not trained"


def test_full_weights_give_a_checkpoint_that_can_be_a_base(tiny_model_folder, shards, tmp_path):
    out = tmp_path / "out"
    train_language(
        str(tiny_model_folder), shards, settings(lora=None, learning_rate=1e-3, max_steps=2), out, seed=3
    )
    before, after = tensors(tiny_model_folder), tensors(out)
    changed = [name for name in before if not torch.equal(before[name], after[name])]
    assert len(changed) > len(before) / 2
    assert not read_expert(out).is_adapter
    build_retriever(str(out), RetrieverSettings())


class KilledError(Exception):
    pass


@pytest.mark.parametrize("lora", [LoraSettings(rank=4, alpha=8), None])
def test_a_killed_training_ends_with_the_same_weights(tiny_model_folder, shards, tmp_path, monkeypatch, lora):
    import transformers

    given = settings(lora=lora, checkpoint_minutes=0, max_steps=5, learning_rate=1e-3)
    whole = train_language(str(tiny_model_folder), shards, given, tmp_path / "whole", seed=3)
    checkpoints = tmp_path / "checkpoints"

    def dies(self, args, state, control, **_):
        if state.global_step == 3:
            raise KilledError

    with monkeypatch.context() as patch, pytest.raises(KilledError):
        patch.setattr(transformers.ProgressCallback, "on_step_begin", dies)
        patch.setattr(transformers.DefaultFlowCallback, "on_step_begin", dies)
        train_language(
            str(tiny_model_folder), shards, given, tmp_path / "again", seed=3, checkpoints=checkpoints
        )
    assert not (tmp_path / "again").exists() and (checkpoints / "checkpoint-3").is_dir()
    (checkpoints / "checkpoint-4").mkdir()
    (checkpoints / "checkpoint-4" / "trainer_state.json").write_text('{"half')
    again = train_language(
        str(tiny_model_folder), shards, given, tmp_path / "again", seed=3, checkpoints=checkpoints
    )
    assert not checkpoints.exists()
    first, second = tensors(tmp_path / "whole"), tensors(tmp_path / "again")
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert again.losses == whole.losses and again.loss_after == whole.loss_after
    assert again.loss_before == whole.loss_before


def test_too_little_text_is_told(tiny_model_folder, tmp_path):
    little = write_lines(tmp_path / "t.jsonl", [{"text": "a few words"}])
    with pytest.raises(PairsError, match="fewer than two blocks of 16"):
        train_language(str(tiny_model_folder), [little], settings(), tmp_path / "out", seed=1)


@pytest.mark.slow
def test_the_command_trains_a_domain_base_that_merges_by_segment(tiny_model_folder, shards, tmp_path):
    done = medley(
        "train", "--objective", "language", "--base", tiny_model_folder, "--text", shards[0], "--out", tmp_path / "lm",
        "--set", "block_tokens=16", "--set", "max_steps=3", "--set", "lora.rank=2", "--batch-size", 4, "--learning-rate", 0.05,
    )  # fmt: skip
    assert done.code == 0, done.err
    printed = json.loads(done.out)
    assert printed["steps"] == 3 and math.isfinite(printed["held_out_loss_after"])
    assert read_expert(tmp_path / "lm").rank == 2
    assert not (tmp_path / "lm.checkpoints").exists()
    merge = tmp_path / "m.yaml"
    merge.write_text(
        f"base: {tiny_model_folder}\nexperts: {{lm: {tmp_path / 'lm'}}}\nmethod: task_arithmetic\n"
        "segments: 2\nweights: {lm: [0.5, 1.0]}\ndtype: float32\n"
    )
    assert medley("merge", merge, "--out", tmp_path / "merged").code == 0
    assert (tmp_path / "merged" / "modules.json").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--objective", "language", "--pairs", "p.jsonl"], "give raw text with --text"),
        (["--text", "t.jsonl"], "give a pairs file with --pairs"),
        (["--objective", "other"], "choose contrastive or language"),
        (["--objective", "language", "--text", "nothing.txt"], "no such file"),
        (["--objective", "language", "--text", "README.md", "--set", "block_token=3"], "block_token"),
    ],
)
def test_wrong_arguments_are_told_in_one_sentence(tiny_model_folder, tmp_path, arguments, message):
    done = medley("train", "--base", tiny_model_folder, "--out", tmp_path / "out", *arguments)
    assert done.code == 2 and message in done.err and done.err.count("\n") == 1


@pytest.mark.parametrize(
    ("steps", "where"),
    [(3, "the loss is nan at step 2"), (1, "(no finite loss|held-out text is nan) at step 1")],
)
@pytest.mark.parametrize("held_out", [0.0, 0.1])
def test_a_training_that_diverges_ends_at_that_step(
    tiny_model_folder, shards, tmp_path, steps, where, held_out
):
    diverging = settings(learning_rate=1e30, warmup=0.0, max_steps=steps, held_out=held_out)
    with pytest.raises(DivergedError, match=where):
        train_language(str(tiny_model_folder), shards, diverging, tmp_path / "out", seed=3)
    assert not (tmp_path / "out").exists()
