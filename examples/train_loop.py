"""Contrastive LoRA training without abstractions: what `medley train` does, in one loop.

    python examples/train_loop.py tiny pairs.jsonl

loss_i = -log( exp(q_i . p_i / t) / sum over all positives and negatives x of the batch of exp(q_i . x / t) )
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from peft import LoraConfig
from torch.nn.functional import cross_entropy, normalize

from medley import RetrieverSettings, build_retriever, read_pairs


def train_loop(
    base: str,
    batches: list[list[dict[str, list[str]]]],
    *,
    learning_rate: float,
    temperature: float,
    seed: int,
) -> list[float]:
    """Train a fresh adapter on batches (each a list of one dict of columns of texts); return the loss of each step.

    A column holds B texts as the model reads them, prompts included: `query`, `positive`, `negative_1`, ...
    """
    retriever = build_retriever(base, RetrieverSettings(dtype="float32", max_length=48), device="cpu")
    model = retriever.model
    torch.manual_seed(seed)
    model.add_adapter(LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", bias="none"))
    model.train()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=learning_rate, weight_decay=0.0)
    losses = []
    for step, (columns,) in enumerate(batches):
        for group in optimizer.param_groups:  # linear decay without warm-up
            group["lr"] = learning_rate * (1 - step / len(batches))
        features = [model.preprocess(texts) for texts in columns.values()]
        vectors = [normalize(model(texts)["sentence_embedding"], dim=-1) for texts in features]
        queries_BH, passages_DH = vectors[0], torch.cat(vectors[1:])
        scores_BD = queries_BH @ passages_DH.T / temperature
        loss = cross_entropy(scores_BD, torch.arange(len(queries_BH)))  # passage i is query i's positive
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        losses.append(loss.item())
    return losses


if __name__ == "__main__":
    base, pairs = sys.argv[1], read_pairs(Path(sys.argv[2]))
    columns = {"query": [pair.query for pair in pairs], "positive": [pair.positive for pair in pairs]}
    for step, loss in enumerate(
        train_loop(base, [[columns]] * 10, learning_rate=1e-3, temperature=0.05, seed=13), start=1
    ):
        print(f"step {step}: loss {loss:.4f}")
