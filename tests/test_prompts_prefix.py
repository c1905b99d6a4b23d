"""Many instructions at once give the vectors that one after another gives, for every architecture."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from conftest import ARCHITECTURES
from medley import prefix
from medley.backbone import backbone
from medley.encoder import Retriever, RetrieverSettings, build_retriever, encode_queries
from medley.errors import ModelError

INSTRUCTIONS = [
    "Given a question, retrieve passages that answer it",
    "Find evidence",
    "",
    "Given a question, retrieve passages that answer the question about insulin",
]
QUERIES = [
    "insulin",
    "first treatment of type 2 diabetes in adults",
    "the quick brown fox jumps over the lazy dog " * 12,  # cut at the end
    "metformin reduces hepatic glucose production",
    "",
]


def retriever_of(folder: Path, **settings: str) -> Retriever:
    return build_retriever(str(folder), RetrieverSettings(max_length=40, dtype="float32", **settings))


def one_by_one(retriever: Retriever, queries: list[str]) -> np.ndarray:
    return np.stack([encode_queries(retriever, queries, instruction=text) for text in INSTRUCTIONS])


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("attention", ["causal", "bidirectional"])
@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_together_equals_one_by_one(
    tiny_models: dict[str, Path], architecture: str, attention: str, pooling: str
) -> None:
    retriever = retriever_of(tiny_models[architecture], attention=attention, pooling=pooling)
    assert prefix.shares_prefix(retriever) == (attention == "causal")
    together = prefix.encode_under(retriever, QUERIES, INSTRUCTIONS)
    assert together.shape == (4, 5, 32) and together.dtype == np.float32
    np.testing.assert_allclose(together, one_by_one(retriever, QUERIES), atol=2e-6)


def test_the_prefix_is_computed_once_for_each_candidate_and_only_if_causal(tiny_model_folder: Path) -> None:
    for attention in ("causal", "bidirectional"):
        retriever = retriever_of(tiny_model_folder, attention=attention)
        tokens: list[int] = []
        hook = backbone(retriever).register_forward_pre_hook(
            lambda _, __, inputs, seen=tokens: seen.append(inputs["input_ids"].numel()), with_kwargs=True
        )
        queries = [f"{word} lowers blood glucose" for word in ("insulin", "metformin", "exercise")] * 20
        prefix.encode_under(retriever, queries, INSTRUCTIONS[:1])
        hook.remove()
        own = sum(
            len(retriever.model.tokenizer(retriever.query_prompt(INSTRUCTIONS[0]) + q)["input_ids"])
            for q in queries
        )
        shared = len(retriever.model.tokenizer(retriever.query_prompt(INSTRUCTIONS[0]))["input_ids"]) - 1
        if attention == "causal":
            assert sum(tokens) <= own - 59 * (shared - 1)
        else:
            assert sum(tokens) >= own


def test_batches_hold_rows_of_several_candidates(
    tiny_model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    retriever = retriever_of(tiny_model_folder, attention="bidirectional")
    seen: list[set[int]] = []
    encode = prefix._encode
    monkeypatch.setattr(
        prefix,
        "_encode",
        lambda r, batch, p: (seen.append({row.candidate for row in batch}), encode(r, batch, p))[1],
    )
    prefix.encode_under(retriever, QUERIES, INSTRUCTIONS)
    assert max(map(len, seen)) > 1


def test_small_batches_change_nothing(tiny_model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    retriever = retriever_of(tiny_model_folder, attention="causal")
    whole = prefix.encode_under(retriever, QUERIES, INSTRUCTIONS)
    monkeypatch.setattr(prefix, "BATCH_TOKENS_CPU", 30)
    monkeypatch.setattr(prefix, "FEW_ROWS", 1)
    np.testing.assert_allclose(prefix.encode_under(retriever, QUERIES, INSTRUCTIONS), whole, atol=2e-6)


def test_a_short_sliding_window_is_not_shared(tiny_models: dict[str, Path]) -> None:
    retriever = retriever_of(tiny_models["mistral"], attention="causal")
    backbone(retriever).config.sliding_window = 8
    assert not prefix.shares_prefix(retriever)
    backbone(retriever).config.sliding_window = 40
    assert prefix.shares_prefix(retriever)


def test_edge_cases(tiny_model_folder: Path) -> None:
    retriever = retriever_of(tiny_model_folder)
    assert prefix.encode_under(retriever, [], INSTRUCTIONS).shape == (4, 0, 32)
    assert prefix.encode_under(retriever, QUERIES, []).shape == (0, 5, 32)
    one = prefix.encode_under(retriever, QUERIES[:1], INSTRUCTIONS[:1])
    np.testing.assert_allclose(
        one[0], encode_queries(retriever, QUERIES[:1], instruction=INSTRUCTIONS[0]), atol=2e-6
    )
    with pytest.raises(ModelError, match="not made by Medley"):
        prefix.encode_under(replace(retriever, template=None), QUERIES, INSTRUCTIONS)


@settings(deadline=None)
@given(st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=8), min_size=1, max_size=6))
def test_common_start_is_the_longest_and_leaves_each_a_token(rows: list[list[int]]) -> None:
    found = prefix._common(rows)
    assert all(len(row) > found for row in rows) and len({tuple(row[:found]) for row in rows}) == 1
    shortest = min(map(len, rows))
    if found < shortest - 1:
        assert len({row[found] for row in rows}) > 1


def test_vectors_follow_the_weights_dtype(tiny_model_folder: Path) -> None:
    retriever = build_retriever(str(tiny_model_folder), RetrieverSettings(max_length=40, attention="causal"))
    vectors = prefix.encode_under(retriever, QUERIES, INSTRUCTIONS)
    assert next(retriever.model.parameters()).dtype == torch.bfloat16
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=-1), 1, atol=1e-6)
