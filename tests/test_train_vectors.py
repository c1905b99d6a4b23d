"""The vector that training sees is the one that is evaluated and exported: any mini-batch, either padding side."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from conftest import ARCHITECTURES
from medley.encoder import RetrieverSettings, build_retriever, encode_passages, encode_queries, save_retriever
from medley.pairs import TrainingPair
from medley.train.batches import keys_of
from medley.train.collate import Collator, as_contrast, batch_texts
from medley.train.gradient_cache import GradientCache, _Tokens
from medley.train.loss import InfoNCE
from medley.train.settings import TrainSettings

PAIRS = [
    TrainingPair("what does the fox do", "the quick brown fox jumps over the lazy dog", ("a cat",)),
    TrainingPair("insulin", "insulin lowers blood glucose and metformin reduces hepatic glucose production"),
    TrainingPair("first treatment of type 2 diabetes in adults", "metformin", ("the dog", "insulin " * 30)),
]


def as_trained(model, *, max_tokens: int):
    """The vectors of a training step by text, in training mode, adapter and all."""
    settings = TrainSettings(negatives=2)
    batch = Collator(model, PAIRS, settings, keys_of(PAIRS))([{"row": row} for row in range(len(PAIRS))])
    features = {name.removeprefix("text_"): tensor for name, tensor in batch.items()}
    cache = GradientCache(InfoNCE(0.05), pad_token_id=0, max_tokens=max_tokens, keep_bytes=0)
    tokens = _Tokens.of(features)
    model.model.train()
    with torch.no_grad():
        vectors = torch.cat([cache._embed(model.model, tokens, cut) for cut in cache._cuts(tokens)])
    model.model.eval()
    contrast, texts = as_contrast(features), batch_texts(model, PAIRS, negatives=2)
    return (
        vectors[contrast.query_Q].numpy(),
        vectors[contrast.passage_D].numpy(),
        [texts.texts[place].removeprefix(model.document_prompt) for place in texts.passages],
    )


@pytest.mark.parametrize("pooling", ["last", "mean"])
@pytest.mark.parametrize("attention", ["bidirectional", "causal"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_trained_evaluated_and_exported_alike(tiny_models, architecture, attention, pooling, tmp_path):
    from peft import LoraConfig
    from sentence_transformers import SentenceTransformer

    how = RetrieverSettings(dtype="float32", max_length=64, pooling=pooling, attention=attention)
    model = build_retriever(str(tiny_models[architecture]), how, instruction="Find", device="cpu")
    torch.manual_seed(3)
    model.model.add_adapter(LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False))
    queries, passages, texts = as_trained(model, max_tokens=100)
    for max_tokens in (1, 10_000):
        again = as_trained(model, max_tokens=max_tokens)
        np.testing.assert_allclose(again[0], queries, atol=1e-5)
        np.testing.assert_allclose(again[1], passages, atol=1e-5)
    for side in ("right", "left"):
        model.model.tokenizer.padding_side = side
        for size in (1, 8):
            asked = encode_queries(model, [pair.query for pair in PAIRS], batch_size=size)
            np.testing.assert_allclose(asked, queries, atol=1e-5)
            np.testing.assert_allclose(encode_passages(model, texts, batch_size=size), passages, atol=1e-5)
    model.model.tokenizer.padding_side = "right"
    if architecture == ARCHITECTURES[0]:
        _fold(model)
        save_retriever(model, tmp_path / "model", card="")
        plain = SentenceTransformer(str(tmp_path / "model"), device="cpu")
        np.testing.assert_allclose(plain.encode_document(texts), passages, atol=1e-5)
        np.testing.assert_allclose(plain.encode_query([pair.query for pair in PAIRS]), queries, atol=1e-5)


def _fold(model) -> None:
    """Merge PEFT's adapter into the weights."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    from medley.train.adapter import remove_adapter

    for module in model.model.modules():
        if isinstance(module, BaseTunerLayer):
            module.merge()
    remove_adapter(model)
