"""Training: the loss is the formula's, the adapter changes the model and only the adapter changes."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medley.encoder import RetrieverSettings, build_retriever, encode_passages, encode_queries
from medley.errors import DivergedError, InputError, PairsError
from medley.pairs import TrainingPair
from medley.train.batches import Batches, keys_of
from medley.train.collate import batch_texts
from medley.train.contrastive import train
from medley.train.settings import LoraSettings, TrainSettings

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
    columns = {
        "query": [model.query_prompt() + pair.query for pair in PAIRS],
        "positive": [model.document_prompt + pair.positive for pair in PAIRS],
        "negative": [model.document_prompt + pair.negatives[0] for pair in PAIRS],
    }
    # one batch holds all pairs, and the loss does not depend on their order
    loop = train_loop(str(tiny_model_folder), [[columns]] * 4, learning_rate=1e-2, temperature=0.02, seed=3)
    np.testing.assert_allclose([entry["loss"] for entry in trained.losses], loop, rtol=2e-4)


def test_gradient_caching_changes_memory_not_the_loss(tiny_model_folder):
    plain = train(retriever(tiny_model_folder), PAIRS, fast(max_steps=3), seed=3)
    little = fast(max_steps=3, mini_batch_size=2, activation_memory_gb=0)
    cached = train(retriever(tiny_model_folder), PAIRS, little, seed=3)
    np.testing.assert_allclose(
        [e["loss"] for e in cached.losses], [e["loss"] for e in plain.losses], rtol=1e-4
    )
    again = fast(max_steps=3, gradient_checkpointing=True)
    checkpointed = train(retriever(tiny_model_folder), PAIRS, again, seed=3)
    np.testing.assert_allclose(
        [e["loss"] for e in checkpointed.losses], [e["loss"] for e in plain.losses], rtol=1e-4
    )
    assert plain.tokens == cached.tokens > 0 and 0 <= plain.padding < 0.2


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
    pairs = [TrainingPair("q", "p", ("n", "m"), "Own task"), TrainingPair("q2", "n")]
    batch = batch_texts(retriever(tiny_model_folder), pairs, negatives=3)
    assert [batch.texts[place] for place in batch.queries] == ["Own task\nQuery: q", "Find\nQuery: q2"]
    passages = [batch.texts[place] for place in batch.passages]
    assert passages == [f"Represent this passage\npassage: {text}" for text in "pnm"], "each once"
    assert batch.positives == [0, 1] and batch.negatives == [[1, 2], []]


def test_options_of_peft_pass_through_and_those_that_cannot_be_merged_do_not(tiny_model_folder):
    model = retriever(tiny_model_folder)
    lora = LoraSettings(rank=4, alpha=8, targets=["q_proj", "down_proj"], options={"use_rslora": True})
    train(model, PAIRS, fast(lora=lora, max_steps=1), seed=3)
    layers = {name for name, module in model.model.named_modules() if hasattr(module, "lora_A")}
    assert len(layers) == 4 and {name.rpartition(".")[2] for name in layers} == {"q_proj", "down_proj"}
    assert model.model[0].model.peft_config["default"].use_rslora
    for options, message in (
        ({"use_dora": True}, "use_dora"),
        ({"ranks": 3}, "ranks"),
        ({"bias": "all"}, "bias"),
    ):
        with pytest.raises(InputError, match=message):
            refused = fast(lora=LoraSettings(options=options))
            train(retriever(tiny_model_folder), PAIRS, refused, seed=3)


def test_bfloat16_is_where_it_was_asked_for(tiny_model_folder):
    plain = train(retriever(tiny_model_folder), PAIRS, fast(max_steps=1), seed=3)
    halved = train(retriever(tiny_model_folder), PAIRS, fast(max_steps=1, bf16=True), seed=3)
    assert halved.losses != plain.losses
    assert halved.losses[0]["loss"] == pytest.approx(plain.losses[0]["loss"], rel=0.1)


def test_matryoshka_trains_the_short_vectors_too(tiny_model_folder):
    def short_loss(**changes):
        model = retriever(tiny_model_folder)
        train(model, PAIRS, fast(epochs=12, temperature=0.1, **changes), seed=3)
        queries = encode_queries(model, [pair.query for pair in PAIRS])[:, :2]
        passages = encode_passages(model, [pair.positive for pair in PAIRS])[:, :2]
        scores = (
            queries @ passages.T / np.linalg.norm(queries, axis=1)[:, None] / np.linalg.norm(passages, axis=1)
        )
        return -np.log(np.exp(np.diag(scores) / 0.1) / np.exp(scores / 0.1).sum(axis=1)).mean()

    assert short_loss(matryoshka=(2,)) < short_loss()


def test_a_contrast_needs_two_different_passages(tiny_model_folder):
    with pytest.raises(PairsError, match="give at least two"):
        train(retriever(tiny_model_folder), PAIRS[:1], fast(), seed=1)
    same = [TrainingPair("a", "p"), TrainingPair("b", "P.")]
    with pytest.raises(PairsError, match="two different passages"):
        train(retriever(tiny_model_folder), same, fast(), seed=1)


def rows_of(pairs, size, steps, **how):
    return list(Batches(keys_of(pairs), batch_size=size, steps=steps, seed=3, **how))


def test_batches_are_full_and_see_every_pair_before_any_twice():
    batches = rows_of(PAIRS, 3, 8)
    assert [len(batch) for batch in batches] == [3] * 8
    seen = [row for batch in batches for row in batch]
    assert all(sorted(seen[start : start + 8]) == list(range(8)) for start in (0, 8, 16))
    assert seen[:8] != seen[8:16] and batches == rows_of(PAIRS, 3, 8)
    assert rows_of(PAIRS, 3, 4) == batches[:4], "a later step does not depend on how many there are"


@given(st.lists(st.tuples(*[st.integers(0, 5)] * 3), min_size=2, max_size=30), st.integers(2, 8))
@settings(max_examples=60, deadline=None)
def test_no_batch_holds_a_query_or_a_positive_twice(rows, size):
    pairs = [TrainingPair(f"q{q}", f"p{p}", source=f"s{s}") for q, p, s in rows]
    for how in ({}, {"mode": "one_source"}, {"temperature": 3.0}):
        for batch in rows_of(pairs, size, 12, **how):
            assert 1 <= len(batch) <= size
            assert len({pairs[row].query for row in batch}) == len(batch)
            assert len({pairs[row].positive for row in batch}) == len(batch)
            if how.get("mode"):
                assert len({pairs[row].source for row in batch}) == 1


def test_pairs_that_cannot_meet_wait_and_are_not_lost():
    pairs = [TrainingPair(f"q{i}", f"p{i // 4}") for i in range(40)]
    batches = rows_of(pairs, 10, 4)
    assert sorted(row for batch in batches for row in batch) == list(range(40))


def test_sources_are_drawn_by_temperature():
    pairs = [TrainingPair(f"q{i}", f"p{i}", source="large" if i < 90 else "small") for i in range(100)]

    def share(**how):
        rows = [row for batch in rows_of(pairs, 10, 200, **how) for row in batch]
        return sum(row >= 90 for row in rows) / len(rows)

    assert share() == pytest.approx(0.1, abs=0.005)
    for mode in ("mixed", "one_source"):
        assert share(mode=mode, temperature=2.0) == pytest.approx(0.25, abs=0.005), "1 : 3"
        assert share(mode=mode, temperature=1e9) == pytest.approx(0.5, abs=0.005)


@pytest.mark.parametrize(
    ("changes", "where"),
    [
        (
            {"learning_rate": 1e30, "epochs": 3},
            r"train: the loss is nan at step 2, where the learning rate was",
        ),
        (
            {"learning_rate": 1e30, "max_steps": 1},
            "the trained model gives no vectors but zeros or what is no number at step 1",
        ),
        (
            {"learning_rate": 1e30, "epochs": 3, "lora": None},
            "no vectors but zeros or what is no number at step 3",
        ),
        ({"learning_rate": 1e39, "max_steps": 1}, "the trained weights are not finite numbers at step 1"),
    ],
)
def test_a_training_that_diverges_ends_at_that_step(tiny_model_folder, tmp_path, changes, where):
    settings = fast(checkpoint_minutes=0.0, **changes)
    with pytest.raises(DivergedError, match=where) as told:
        train(retriever(tiny_model_folder), PAIRS, settings, seed=3, checkpoints=tmp_path)
    assert "lower the learning rate" in str(told.value) and told.value.exit_code == 2
    with pytest.raises(DivergedError):  # what a killed training left to go on from is no way round it
        train(retriever(tiny_model_folder), PAIRS, settings, seed=3, checkpoints=tmp_path)


def test_a_base_that_is_broken_is_told_as_such(tiny_model_folder):
    broken = retriever(tiny_model_folder)
    with torch.no_grad():
        next(broken.model.parameters()).fill_(torch.nan)
    with pytest.raises(
        DivergedError, match="the loss is nan before any weight has changed; check the texts and the base"
    ):
        train(broken, PAIRS, fast(), seed=3)


def test_settings_and_negatives_without_effect_are_told(tiny_model_folder, capsys):
    pairs = [TrainingPair(pair.query, pair.positive, (pair.positive.upper() + "!",)) for pair in PAIRS[:3]]
    train(retriever(tiny_model_folder), [*pairs, *PAIRS[3:]], fast(batch_size=256, epochs=0.001), seed=3)
    told = capsys.readouterr().err
    assert (
        "batch_size 256 is more than the 8 pairs" in told
        and "epochs 0.001 of 8 pairs is less than a step" in told
    )
    assert "3 of 8 pairs with negatives have only such as are empty or equal their positive" in told
    train(retriever(tiny_model_folder), PAIRS, fast(), seed=3)
    assert not capsys.readouterr().err
