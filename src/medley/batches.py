"""Texts through a sentence-transformers model: tokenized at once, in batches of equal length and bounded size.

In: a model and texts with the prompt already in front. Out: vectors, as `SentenceTransformer.encode` gives them.
`encode` orders texts by characters, makes batches of so many texts whatever their length, and tokenizes each batch
when its turn comes. Here texts are tokenized first, all cores together, ordered by tokens, and a batch is a number of
tokens: short texts come by the hundred, long ones a few at a time, with next to no padding, so memory is bounded and
the working set fits the cache. A text that comes twice is encoded once. encoder.py is the only caller.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from medley.errors import ModelError

if TYPE_CHECKING:
    import torch
    from sentence_transformers import SentenceTransformer
    from tokenizers import Tokenizer

SHORTEST = 0.8
"""A batch that is a quarter full takes no text shorter than this share of its longest: padding costs more than a
further batch does."""


def takes_tokens(model: SentenceTransformer) -> bool:
    """Whether a model is a plain text transformer, for which tokens are all there is to prepare.

    Others (routes by task, chat messages, prompts left out of pooling, packed inputs for FlashAttention, weights on
    several devices, ONNX, static embeddings) prepare their own batches, so `SentenceTransformer.encode` serves them.
    """
    from sentence_transformers.base.modules import Transformer
    from transformers import PreTrainedTokenizerBase

    first: Any = model[0]
    return (
        type(first) is Transformer
        and first.backend == "torch"
        and first.transformer_task == "feature-extraction"
        and set(first.modality_config) == {"text"}
        and isinstance(first.processor, PreTrainedTokenizerBase)
        and not (
            first.processing_kwargs or first.query_expansion or first.query_length or first.document_length
        )
        and not first.can_flatten_inputs
        and not getattr(first.model, "hf_device_map", None)
        and all(getattr(module, "include_prompt", True) for module in model)
    )


def encode_in_batches(
    model: SentenceTransformer, texts: Sequence[str], max_tokens: int
) -> tuple[torch.Tensor, np.ndarray]:
    """Vectors (N, H) of texts, in the model's own dtype and on its device; and which texts (N,) were cut.

    For a model that `takes_tokens`.

    `max_tokens` bounds a batch, padding counted. Where an accelerator's memory does not hold a batch it is halved.
    Raises ModelError when the memory does not hold a single text.
    """
    import torch

    places: dict[str, int] = {}
    inverse = np.array([places.setdefault(text, len(places)) for text in texts])
    tokens = model.tokenizer(list(places), truncation="longest_first")
    lengths = np.array([len(ids) for ids in tokens["input_ids"]])
    parts, order = [], []
    model.eval()  # a model that was just trained would drop out
    with torch.no_grad():  # not inference mode, of which a base that training has sharded keeps tensors
        for batch in plan_batches(lengths, max_tokens):
            parts += _forward(model, tokens, batch)
            order.append(batch)
    back = np.empty(len(places), dtype=np.int64)
    back[np.concatenate(order)] = np.arange(len(places))
    vectors = torch.cat(parts)
    cut = were_cut(tokens, model.max_seq_length)
    return vectors[torch.from_numpy(back[inverse]).to(vectors.device)], cut[inverse]


def were_cut(tokens: Any, max_length: int | None) -> np.ndarray:
    """Which texts (N,) of a tokenizer's answer were longer than `max_length` tokens.

    One of just that length is whole if the tokenizer has left nothing over; only these are asked.
    """
    full_N = np.array(
        [max_length is not None and len(ids) >= max_length for ids in tokens["input_ids"]], dtype=bool
    )
    if tokens.encodings:  # a tokenizer in Python says nothing of what it cuts
        for row in np.flatnonzero(full_N).tolist():
            full_N[row] = bool(tokens.encodings[row].overflowing)
    return full_N


def plan_batches(lengths: np.ndarray, max_tokens: int) -> list[np.ndarray]:
    """Positions of texts with these lengths, longest first, in batches of at most `max_tokens` with their padding.

    A text longer than that is a batch of its own.
    """
    order = np.argsort(-lengths, kind="stable")
    batches, start = [], 0
    while start < len(order):
        longest = max(1, int(lengths[order[start]]))
        most = max(1, max_tokens // longest)
        end = min(start + most, len(order))
        # lengths fall along the order: where they get below the limit is found by bisection
        similar = start + int(np.searchsorted(-lengths[order[start:end]], -SHORTEST * longest, side="right"))
        end = min(end, max(similar, start + most // 4, start + 1))
        batches.append(order[start:end])
        start = end
    return batches


def _forward(model: SentenceTransformer, tokens: Any, batch: np.ndarray) -> list[torch.Tensor]:
    """Vectors of a batch, in parts where it had to be halved."""
    import torch

    try:
        return [model(_features(model, tokens, batch))["sentence_embedding"]]
    except torch.OutOfMemoryError as problem:
        if len(batch) == 1:
            length = len(tokens["input_ids"][batch[0]])
            raise ModelError(
                f"the accelerator's memory does not hold one text of {length} tokens; set a smaller max_length, "
                "a smaller dtype, or use the CPU."
            ) from problem
    torch.cuda.empty_cache()
    middle = len(batch) // 2
    return _forward(model, tokens, batch[:middle]) + _forward(model, tokens, batch[middle:])


def _features(model: SentenceTransformer, tokens: Any, batch: np.ndarray) -> dict[str, Any]:
    """What the model's first module takes: padded tokens, on its device."""
    from transformers.data.data_collator import pad_without_fast_tokenizer_warning

    rows = {name: [values[position] for position in batch] for name, values in tokens.items()}
    padded = pad_without_fast_tokenizer_warning(model.tokenizer, rows, padding=True, return_tensors="pt")
    device = model.device
    features = {name: values.to(device, non_blocking=True) for name, values in padded.items()}
    return {**features, "modality": "text"}


def share_cut(folder: Path, texts: Sequence[str], max_length: int) -> float | None:
    """The share of texts, prompts included, that a model in a folder cuts; None where its tokenizer is not there.

    Reads tokenizer.json alone, so that a plan need not load a model; a token more is the end of the sequence.
    """
    path = folder / "tokenizer.json"
    if not path.is_file() or not texts:
        return None
    encodings = _uncut(path).encode_batch(list(texts))
    return sum(len(encoding.ids) + 1 > max_length for encoding in encodings) / len(texts)


@cache
def _uncut(path: Path) -> Tokenizer:
    """A tokenizer that leaves texts whole; a large vocabulary takes half a second to read."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def padded(ids: torch.Tensor, lengths: Sequence[int], pad_token_id: int) -> dict[str, Any]:
    """The model's input for texts whose tokens stand one after another in `ids`, padded on the right."""
    import torch

    width = max(lengths)
    real_NT = torch.arange(width, device=ids.device) < torch.tensor(lengths, device=ids.device)[:, None]
    ids_NT = ids.new_full(real_NT.shape, pad_token_id)
    ids_NT[real_NT] = ids
    return {"input_ids": ids_NT, "attention_mask": real_NT.to(ids.dtype), "modality": "text"}
