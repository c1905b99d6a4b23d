"""Training: the loss is the formula's, the adapter changes the model and only the adapter changes."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import numpy as np
import pytest

from medley.collections import Passage
from medley.encoder import RetrieverSettings, build_retriever, encode_queries
from medley.errors import PairsError
from medley.pairs import TrainingPair
from medley.train.contrastive import contrastive_loss, train, training_dataset
from medley.train.settings import LoraSettings, TrainSettings
from medley.train.unlabelled import unlabelled_pairs

sys.path.insert(0, str(Path(__file__).parent.parent / "examples"))

PAIRS = [
    TrainingPair(f"query about fox {i}", f"the fox number {i} jumps", (f"the dog number {i} sleeps",))
    for i in range(8)
]
SETTINGS = RetrieverSettings(dtype="float32", max_length=48)


def fast(**changes) -> TrainSettings:
    given = {"lora": LoraSettings(rank=4, alpha=8), "learning_rate": 1e-2, "batch_size": 8, "warmup": 0.0}
    return TrainSettings(**(given | changes))


def retriever(folder, **changes):
    return build_retriever(str(folder), SETTINGS.model_copy(update=changes), instruction="Find", device="cpu")


def test_same_losses_as_the_loop_without_abstractions(tiny_model_folder):
    from train_loop import train_loop

    model = retriever(tiny_model_folder)
    trained = train(model, PAIRS, fast(max_steps=4, epochs=4), seed=3)
    columns = training_dataset(model, PAIRS, negatives=1, seed=3).to_dict()
    # one batch holds all pairs, and the loss does not depend on their order
    loop = train_loop(str(tiny_model_folder), [[columns]] * 4, learning_rate=1e-2, temperature=0.02, seed=3)
    np.testing.assert_allclose([entry["loss"] for entry in trained.losses], loop, rtol=2e-4)


def test_equal_vectors_give_log_of_the_number_of_passages(tiny_model_folder):
    import torch

    model = retriever(tiny_model_folder).model
    same = [torch.ones(5, 32)] * 3
    loss = contrastive_loss(model, fast(), 5)
    assert loss.compute_loss_from_embeddings(same, None).item() == pytest.approx(math.log(10), abs=1e-5)


def test_gradient_caching_changes_memory_not_the_loss(tiny_model_folder):
    plain = train(retriever(tiny_model_folder), PAIRS, fast(max_steps=3), seed=3)
    cached = train(retriever(tiny_model_folder), PAIRS, fast(max_steps=3, mini_batch_size=3), seed=3)
    np.testing.assert_allclose(
        [e["loss"] for e in cached.losses], [e["loss"] for e in plain.losses], rtol=1e-4
    )


def test_only_the_adapter_changes_and_it_does(tiny_model_folder):
    model = retriever(tiny_model_folder, dtype="bfloat16")
    before = {n: p.clone() for n, p in model.model.named_parameters()}
    vectors = encode_queries(model, ["the fox"])
    report = train(model, PAIRS, fast(epochs=3), seed=3)
    after = {n.replace(".base_layer", ""): p for n, p in model.model.named_parameters() if "lora_" not in n}
    assert all((after[name] == value).all() for name, value in before.items())
    assert abs(encode_queries(model, ["the fox"]) - vectors).max() > 1e-3
    assert report.steps == 3 and report.losses[-1]["loss"] < report.losses[0]["loss"]
    lora = [p for n, p in model.model.named_parameters() if "lora_" in n]
    assert lora and {str(p.dtype) for p in lora} == {"torch.float32"}
    assert {str(p.dtype) for p in after.values()} == {"torch.bfloat16"}, (
        "a base is never loaded wider than asked"
    )


def test_the_same_seed_gives_the_same_losses(tiny_model_folder):
    first, second = (train(retriever(tiny_model_folder), PAIRS, fast(batch_size=4), seed=3) for _ in range(2))
    other = train(retriever(tiny_model_folder), PAIRS, fast(batch_size=4), seed=4)
    assert first.losses == second.losses != other.losses


def test_full_weights_train_without_a_rank(tiny_model_folder):
    model = retriever(tiny_model_folder)
    before = model.identity()
    train(model, PAIRS, fast(lora=None, max_steps=1), seed=3)
    assert model.identity() != before
    assert not any("lora_" in name for name, _ in model.model.named_parameters())


def test_texts_are_what_the_encoder_reads(tiny_model_folder):
    pairs = [TrainingPair("q", "p", ("n", "m"), "Own task"), TrainingPair("q2", "p2")]
    rows = training_dataset(retriever(tiny_model_folder), pairs, negatives=3, seed=1).to_dict()
    assert rows["query"] == ["Own task\nQuery: q", "Find\nQuery: q2"]
    assert rows["positive"] == ["Represent this passage\npassage: p", "Represent this passage\npassage: p2"]
    assert [rows[f"negative_{i}"][0].rsplit(" ", 1)[1] for i in (1, 2, 3)] == ["n", "m", "n"]
    assert {rows[f"negative_{i}"][1].rsplit(" ", 1)[1] for i in (1, 2, 3)} == {"p"}, "another pair's positive"


def test_a_contrast_needs_two_different_passages(tiny_model_folder):
    with pytest.raises(PairsError, match="give at least two"):
        train(retriever(tiny_model_folder), PAIRS[:1], fast(), seed=1)
    same = [TrainingPair("a", "p"), TrainingPair("b", "p")]
    with pytest.raises(PairsError, match="two different passages"):
        training_dataset(retriever(tiny_model_folder), same, negatives=1, seed=1)


def test_unlabelled_pairs_never_overlap():
    passages = [Passage("1", "One here. Two here. Three here.", "Title"), Passage("2", "Only one sentence")]
    pairs = unlabelled_pairs(passages, titles=True, spans=True, max_pairs=10, seed=1)
    kinds = sorted(pair.provenance["unlabelled"] for pair in pairs)
    assert kinds == ["spans", "title"]
    spans = next(pair for pair in pairs if pair.provenance["unlabelled"] == "spans")
    assert not set(spans.query.split(". ")) & set(spans.positive.split(". "))
    assert len(unlabelled_pairs(passages * 9, titles=True, spans=True, max_pairs=5, seed=1)) == 5
