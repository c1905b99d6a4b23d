"""Several processes: two that share a batch do what one does, experts side by side are those trained in turn."""

from __future__ import annotations

import contextlib
import io
import json
import os
import runpy
import socket
import subprocess
import sys
import time
from pathlib import Path
from unittest import mock

import numpy as np
import pytest

from medley.errors import InputError
from medley.pipeline.devices import Devices
from medley.train.processes import join
from medley.train.settings import TrainSettings
from medley.train.sharded import is_sharded
from small import contents, medley, medley_process, write_collection, write_lines, write_recipe

SCRIPT = """
import json, os, sys
from pathlib import Path
from safetensors.torch import load_file
from medley.batches import encode_in_batches
from medley.documents import shards_of
from medley.encoder import RetrieverSettings, build_retriever
from medley.pairs import TrainingPair
from medley.train.contrastive import train
from medley.train.language import train_language
from medley.train.processes import is_first, join
from medley.train.settings import EarlyStopping, LanguageSettings, LoraSettings, TrainSettings
from medley.train.stopping import trainable_weights

base, folder = sys.argv[1], Path(sys.argv[2])
join()
# an odd number of texts of many lengths, hard negatives, a repeated text and an in-batch false negative
pairs = [TrainingPair(f"query about fox {i} " * (1 + i % 4), f"the fox number {i % 10} jumps " * (1 + i % 3),
                      tuple(f"the dog number {i + k} sleeps" for k in range(i % 3))) for i in range(11)]
retriever = build_retriever(base, RetrieverSettings(dtype="float32", max_length=48), instruction="Find", device="cpu")
settings = TrainSettings(lora=LoraSettings(rank=4, alpha=8), learning_rate=1e-2, batch_size=7, negatives=2, epochs=3,
                         mini_batch_size=2, checkpoint_minutes=0.0,
                         early_stopping=EarlyStopping(every_steps=1, patience=9, scales=(0.5,)))
def score(retriever):
    vectors, _ = encode_in_batches(retriever.model, ["fox 1", "the fox number 1 jumps", "the dog"], 100)
    return {"dev": float(vectors[0] @ vectors[1] - vectors[0] @ vectors[2])}
report = train(retriever, pairs, settings, seed=3, score=score, checkpoints=folder / "checkpoints")
weights = trainable_weights(retriever)
again = build_retriever(base, RetrieverSettings(dtype="float32", max_length=48), instruction="Find", device="cpu")
whole = sum(p.numel() for p in again.model.parameters())
identity = again.identity()
divided = train(again, pairs, settings.model_copy(update={"shard_base": True}), seed=3, score=score)
getattr(again.model[0].model, "reshard", lambda: None)()  # the outermost part stays together between two passes
held = sum(getattr(p, "to_local", lambda p=p: p)().numel() for n, p in again.model.named_parameters() if "lora_" not in n)
language = train_language(base, shards_of(folder / "t.jsonl"), LanguageSettings(
    lora=LoraSettings(rank=4, alpha=8), learning_rate=1e-2, block_tokens=16, batch_size=8, mini_batch_size=4,
    max_steps=3, held_out=0.1, dtype="float32"), folder / "lm", seed=3, checkpoints=folder / "lm.checkpoints")
if is_first():
    print(json.dumps({
        "losses": [entry["loss"] for entry in report.losses], "divided": [entry["loss"] for entry in divided.losses],
        "divided_dev": [point.score for point in divided.dev.points], "held": held / whole,
        "divided_norm": sum(float(w.norm()) for w in trainable_weights(again).values()), "dev": [point.score for point in report.dev.points],
        "kept": [report.dev.chosen.step, report.dev.chosen.scale], "norm": sum(float(w.norm()) for w in weights.values()),
        "language": [entry["loss"] for entry in language.losses], "held_out": language.loss_after,
        "lm": float(sum(t.norm() for t in load_file(folder / "lm" / "adapter_model.safetensors").values())),
    }))
"""


def two_processes(*command: object) -> list[str]:
    """What each of two processes of one command prints, started as a launcher starts them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    place = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    started = [
        subprocess.Popen(
            [sys.executable, *map(str, command)], text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            env={**os.environ, "OMP_NUM_THREADS": "1", **place, "RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(2)
    ]  # fmt: skip
    try:
        printed = [process.communicate(timeout=580) for process in started]
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [0, 0], printed[0][1][-3000:]
    return [out for out, _ in printed]


@pytest.mark.slow
def test_two_processes_train_as_one_does(tiny_model_folder, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    rows = [{"text": f"insulin lowers glucose {n} and the fox jumps over dog {n}"} for n in range(40)]
    for folder in (tmp_path / "one", tmp_path / "two"):
        folder.mkdir()
        write_lines(folder / "t.jsonl", rows)
    with (
        mock.patch.object(sys, "argv", ["", str(tiny_model_folder), str(tmp_path / "one")]),
        contextlib.redirect_stdout(io.StringIO()) as printed,
    ):
        runpy.run_path(str(script))
    one = json.loads(printed.getvalue().splitlines()[-1])
    first, second = two_processes(script, tiny_model_folder, tmp_path / "two")
    two = json.loads(first.splitlines()[-1])
    assert not second, "only the first process reports"
    assert len(one["losses"]) == 6 and one["kept"] == two["kept"]
    for key in ("losses", "dev", "language", "held_out"):
        np.testing.assert_allclose(two[key], one[key], atol=1e-5, err_msg=key)
    assert one["held"] == 1 and two["held"] < 0.51, "each process holds its half of the base"
    for key, same in (("divided", "losses"), ("divided_dev", "dev")):
        np.testing.assert_allclose(two[key], one[same], atol=1e-5, err_msg=key)
    assert two["divided_norm"] == pytest.approx(one["norm"], rel=1e-5)
    for key in ("norm", "lm"):
        assert two[key] == pytest.approx(one[key], rel=1e-5), key


DIVERGING = """
import sys
import time
from pathlib import Path
from medley.documents import shards_of
from medley.encoder import RetrieverSettings, build_retriever
from medley.errors import DivergedError
from medley.pairs import TrainingPair
from medley.train.contrastive import train
from medley.train.language import train_language
from medley.train.processes import join
from medley.train.settings import LanguageSettings, LoraSettings, TrainSettings

base, folder = sys.argv[1], Path(sys.argv[2])
join()
pairs = [TrainingPair(f"query about fox {i}", f"the fox number {i} jumps") for i in range(8)]
retriever = build_retriever(base, RetrieverSettings(dtype="float32"), device="cpu")
how = {"lora": LoraSettings(rank=4, alpha=8), "learning_rate": 1e30, "warmup": 0.0}
language = LanguageSettings(block_tokens=16, batch_size=8, mini_batch_size=4, max_steps=3, dtype="float32", **how)
for training in (
    lambda: train(retriever, pairs, TrainSettings(batch_size=8, epochs=3, **how), seed=3),
    lambda: train_language(base, shards_of(folder / "t.jsonl"), language, folder / "lm", seed=3),
):
    try:
        training()
    except DivergedError as problem:
        print(problem)
"""


@pytest.mark.slow
def test_two_processes_that_diverge_end_together(tiny_model_folder, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(DIVERGING)
    write_lines(
        tmp_path / "t.jsonl", [{"text": f"insulin lowers glucose {n} and the fox"} for n in range(40)]
    )
    first, second = two_processes(script, tiny_model_folder, tmp_path)
    assert first == second and first.count("the loss is nan at step 2") == 2, first
    assert not (tmp_path / "lm").exists()


@pytest.fixture
def place(tiny_model_folder, tmp_path) -> Path:
    write_recipe(tmp_path / "r.yaml", tiny_model_folder, write_collection(tmp_path / "data"))
    return tmp_path


def adapters(run: Path) -> dict[str, bytes]:
    train = run / "stages" / "train"
    return {
        name: data for name, data in contents(train).items() if name.endswith("adapter_model.safetensors")
    }


@pytest.mark.slow
def test_experts_side_by_side_are_those_trained_in_turn(place):
    for out, more in (("turn", []), ("beside", ["--devices", 2]),
                      ("launched", ["--launcher", f"{sys.executable} -m torch.distributed.run --standalone --nproc-per-node 2",
                                    "--set", "train.shard_base=true"])):  # fmt: skip
        done = medley_process("run", place / "r.yaml", "--out", place / out, "--until", "train", *more)
        assert done.code == 0, done.err
    assert adapters(place / "turn").keys() == {
        f"{name}/adapter/adapter_model.safetensors" for name in ("a", "b", "all")
    }
    assert adapters(place / "turn") == adapters(place / "beside")
    assert adapters(place / "turn").keys() == adapters(place / "launched").keys()
    for name in ("a", "all"):
        first, second = (
            [
                e["loss"]
                for e in json.loads((place / out / f"stages/train/{name}/training.json").read_text())[
                    "losses"
                ]
            ]
            for out in ("turn", "launched")
        )
        np.testing.assert_allclose(first, second, atol=1e-5)
    rows = medley("status", place / "beside", "--json").json()
    assert all(row["state"] == "done" for row in rows if row["step"].startswith("train/"))
    assert not list((place / "launched" / "stages" / "train").glob(".*")), "no process leaves anything behind"
    assert not (place / "launched" / "checkpoints" / "a").exists()


@pytest.mark.slow
def test_an_expert_that_fails_ends_the_others_and_what_is_finished_stays(place):
    wrong = ["--set", "train.lora.targets=[nothing]", "--devices", "2", "--until", "train"]
    done = medley_process("run", place / "r.yaml", "--out", place / "run", *wrong)
    assert done.code != 0 and "the reason stands above" in done.err
    again = medley_process(
        "run", place / "r.yaml", "--out", place / "run", "--until", "train", "--devices", "2"
    )
    assert again.code == 0, again.err


@pytest.mark.slow
def test_trainings_beside_one_another_end_with_a_killed_run(place):
    import psutil

    def trainings() -> list[psutil.Process]:
        children = psutil.Process(run.pid).children()
        return [child for child in children if "medley.pipeline.worker" in child.cmdline()]

    command = ["run", place / "r.yaml", "--out", place / "run", "--until", "train", "--devices", "2"]
    run = subprocess.Popen([sys.executable, "-m", "medley", *map(str, command)], stderr=subprocess.DEVNULL)
    while len(beside := trainings()) < 2:
        assert run.poll() is None, "it ended before its time"
        time.sleep(0.01)
    run.kill()
    run.wait()
    done = medley_process(*command)
    assert done.code == 0, done.err
    assert not any(training.is_running() for training in beside), "the next run waited for their end"
    assert set(adapters(place / "run")) == {
        f"{n}/adapter/adapter_model.safetensors" for n in ("a", "b", "all")
    }


def test_what_cannot_be_is_told(monkeypatch):
    with pytest.raises(ValueError, match=r"shard_base divides only the base under an adapter"):
        TrainSettings(lora=None, shard_base=True)
    assert not is_sharded(TrainSettings(shard_base=True)), "one process has nothing to divide"
    with pytest.raises(InputError, match="exclude each other"):
        Devices(2, "torchrun")
    with pytest.raises(InputError, match="at least 1"):
        Devices(0)
    join()  # alone: nothing happens
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(InputError, match="FSDP"):
        join()
