"""A training that was killed continues from its last checkpoint and ends with the very weights it would have had."""

from __future__ import annotations

import os
import random
import shutil
import signal
import time

import pytest
import torch

from medley.encoder import RetrieverSettings, build_retriever
from medley.files import read_json
from medley.pairs import TrainingPair
from medley.train import trainer as training
from medley.train.contrastive import train
from medley.train.settings import LoraSettings, TrainSettings
from medley.train.stopping import trainable_weights

PAIRS = [
    TrainingPair(
        f"query about fox {i}",
        f"the fox {i} jumps " * (1 + i % 5),
        (f"the dog {i} sleeps",),
        source="ab"[i % 2],
    )
    for i in range(20)
]


def wanted(**changes) -> TrainSettings:
    """Everything that a resume could lose: dropout's random numbers, warm-up, momentum, the place in the data."""
    given = {"lora": LoraSettings(rank=4, alpha=8, dropout=0.2), "learning_rate": 1e-2, "batch_size": 6, "epochs": 5,
             "warmup": 0.3, "weight_decay": 0.1, "mini_batch_size": 2, "checkpoint_minutes": 0,
             "source_temperature": 2.0}  # fmt: skip
    return TrainSettings(**(given | changes))


def trained(folder, settings=None, checkpoints=None, pairs=PAIRS, seed=5):
    """The weights after training, and what was reported."""
    how = RetrieverSettings(dtype="float32", max_length=48)
    retriever = build_retriever(str(folder), how, instruction="Find", device="cpu")
    report = train(retriever, pairs, settings or wanted(), seed=seed, checkpoints=checkpoints)
    return trainable_weights(retriever), report


def same(first, second) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


class Killed(BaseException):
    """Stands for the kill where a process of its own would take too long."""


@pytest.fixture
def killed_after(monkeypatch):
    """Kill the training after so many checkpoints, the last of them half-written."""

    def after(count: int) -> None:
        written = []

        def write(path, value):
            if path.name == training.FINISHED:
                written.append(path)
                if len(written) == count:
                    raise Killed
            return real(path, value)

        monkeypatch.setattr(training, "write_json", write)

    real = training.write_json
    yield after


@pytest.mark.parametrize("lora", [wanted().lora, None], ids=["adapter", "all weights"])
def test_resumed_is_uninterrupted_to_the_bit(
    tiny_model_folder, tmp_path, killed_after, monkeypatch, capfd, lora
):
    settings = wanted(lora=lora)
    weights, report = trained(tiny_model_folder, settings)
    with monkeypatch.context():
        killed_after(4)
        with pytest.raises(Killed):
            trained(tiny_model_folder, settings, tmp_path)
        monkeypatch.undo()
    assert (tmp_path / "checkpoint-4" / training.WEIGHTS).is_file(), "the fourth is there, but not finished"
    resumed, again = trained(tiny_model_folder, settings, tmp_path)
    assert "continues from step 3 of" in capfd.readouterr().err
    assert same(resumed, weights)
    assert again.losses == report.losses and again.steps == report.steps == 20
    assert len(list(tmp_path.glob("checkpoint-*"))) == 2, "the last and the one before"


def test_a_finished_training_is_not_made_again(tiny_model_folder, tmp_path):
    weights, report = trained(tiny_model_folder, checkpoints=tmp_path)
    again, second = trained(tiny_model_folder, checkpoints=tmp_path)
    assert same(again, weights) and second.losses == report.losses and second.tokens == 0


def test_checkpoints_of_another_training_are_left_alone(tiny_model_folder, tiny_models, tmp_path, capfd):
    settings = wanted(max_steps=2)
    trained(tiny_model_folder, settings, tmp_path)
    for change in (
        {"settings": settings.model_copy(update={"learning_rate": 2e-2})},
        {"seed": 6},
        {"pairs": PAIRS[:-1]},
        {"folder": tiny_models["llama"]},
    ):
        kept = tmp_path.with_name("kept")
        shutil.copytree(tmp_path, kept)
        trained(**({"folder": tiny_model_folder, "settings": settings, "checkpoints": kept} | change))
        shutil.rmtree(kept)
    assert "goes on" not in capfd.readouterr().err
    cheaper = settings.model_copy(update={"mini_batch_size": 1, "activation_memory_gb": 0.0})
    trained(tiny_model_folder, cheaper, tmp_path)
    assert "continues from step 2 of 2" in capfd.readouterr().err, "memory and time may change"


def test_what_ran_out_of_memory_before_does_not_do_so_again(tiny_model_folder, tmp_path):
    trained(tiny_model_folder, wanted(max_steps=1), tmp_path)
    finished = read_json(tmp_path / "checkpoint-1" / training.FINISHED)
    assert finished["max_tokens"] == 2 * 48


@pytest.mark.slow
def test_five_real_kills_at_random_moments(tiny_model_folder, tmp_path):
    draw = random.Random(int(time.time()))
    settings = wanted(epochs=12)
    steps_seen, kills = [], 0
    while kills < 5:
        target = draw.randrange(max(steps_seen, default=0) + 1, max(steps_seen, default=0) + 8)
        child = os.fork()
        if child == 0:
            try:
                torch.save(trained(tiny_model_folder, settings, tmp_path / "c"), tmp_path / "result.pt")
            finally:
                os._exit(0)
        while (
            not (tmp_path / "c" / f"checkpoint-{target}").exists() and os.waitpid(child, os.WNOHANG)[0] == 0
        ):
            time.sleep(0.002)
        time.sleep(draw.random() * 0.2)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        kills += 1
        finished = [
            int(path.parent.name.rpartition("-")[2])
            for path in (tmp_path / "c").glob(f"*/{training.FINISHED}")
        ]
        steps_seen.append(max(finished, default=0))
    assert not (tmp_path / "result.pt").exists() and sorted(steps_seen) == steps_seen and steps_seen[0] > 0
    print(f"killed after steps {steps_seen}")
    resumed, report = trained(tiny_model_folder, settings, tmp_path / "c")
    weights, uninterrupted = trained(tiny_model_folder, settings)
    assert same(resumed, weights) and report.losses == uninterrupted.losses
