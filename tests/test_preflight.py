"""What a training will take is measured before it starts, and nothing is learnt by that."""

from __future__ import annotations

import pytest

from medley.backbone import base_fingerprint
from medley.encoder import RetrieverSettings, build_retriever
from medley.errors import PairsError
from medley.pairs import TrainingPair
from medley.train.contrastive import train
from medley.train.preflight import preflight
from medley.train.settings import LoraSettings, TrainSettings

PAIRS = [
    TrainingPair(f"query about fox {i}", f"the fox {i} jumps " * (1 + i % 4), (f"the dog {i} sleeps",))
    for i in range(40)
]


def opened(folder):
    return build_retriever(str(folder), RetrieverSettings(dtype="float32", max_length=48), device="cpu")


@pytest.mark.parametrize("lora", [LoraSettings(rank=4, alpha=8), None], ids=["adapter", "all weights"])
def test_the_plan_is_what_training_does(tiny_model_folder, lora):
    retriever = opened(tiny_model_folder)
    before = base_fingerprint(retriever)
    settings = TrainSettings(
        lora=lora, batch_size=10, epochs=1.5, mini_batch_size=2, activation_memory_gb=0.0
    )
    plan = preflight(retriever, PAIRS, settings, seed=3)
    assert base_fingerprint(retriever) == before
    assert not any("lora" in name for name, _ in retriever.model.named_parameters())
    weights = sum(parameter.numel() for parameter in retriever.model.parameters())
    report = train(retriever, PAIRS, settings, seed=3)
    trained = sum(p.numel() for p in retriever.model.parameters() if p.requires_grad)
    assert (plan.steps, plan.batch_size, plan.pairs) == (report.steps, 10, 40) == (6, 10, 40)
    assert plan.trained_parameters == trained and plan.parameters == weights + (trained if lora else 0)
    assert plan.state_bytes == 4 * (plan.parameters + 3 * trained)
    assert plan.tokens_per_step == pytest.approx(report.tokens / report.steps, rel=0.1)
    assert plan.padding == pytest.approx(report.padding, abs=0.05)
    assert plan.kept == 0.0 and plan.seconds == pytest.approx(6 * plan.seconds_per_step, rel=0.1)
    assert plan.seconds > 0 and 0 < plan.mini_batch_bytes < 2 * 48 * 200_000


def test_more_memory_keeps_more_and_takes_less_time(tiny_model_folder):
    plans = [
        preflight(
            opened(tiny_model_folder), PAIRS, TrainSettings(batch_size=10, activation_memory_gb=gb), seed=3
        )
        for gb in (0.0, 1e-3, 10.0)
    ]
    assert plans[0].kept == 0.0 < plans[1].kept < plans[2].kept == 1.0
    assert len({plan.mini_batch_bytes for plan in plans}) == 1


def test_it_refuses_what_training_refuses(tiny_model_folder):
    same = [TrainingPair("a", "p"), TrainingPair("b", "p")]
    with pytest.raises(PairsError, match="two different passages"):
        preflight(opened(tiny_model_folder), same, TrainSettings(), seed=1)
