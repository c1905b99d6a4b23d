"""Query vectors under many instructions at once: what candidates have in common is computed once.

In: a retriever, queries, instructions. Out: vectors (C, Q, H), the ones that `encode_queries` gives for each
instruction, but for rounding. Rows of all candidates are batched together, by length, so that next to nothing is
padding. A query's text begins with the template filled with the instruction; where attention is causal, the keys and
values of those first tokens do not depend on the query, so they are computed once for each candidate. With
bidirectional attention they do depend on it, and only the batching is left.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any

import numpy as np

from medley.backbone import backbone
from medley.batches import were_cut
from medley.encoder import Retriever
from medley.errors import ModelError
from medley.noticed import CUT, notice
from medley.progress import progress

if TYPE_CHECKING:
    import torch

BATCH_TOKENS, BATCH_TOKENS_CPU = 8_192, 2_048
"""Tokens of one forward pass, those of the shared prefix not counted; on a CPU few enough to stay in the cache."""
FEW_ROWS = 16
"""A batch with fewer rows takes longer texts in, and pads, rather than being cut where the length changes."""
SHAREABLE = {"full_attention", "sliding_attention"}
"""Kinds of layers whose state is keys and values alone."""


@dataclass(frozen=True)
class _Row:
    """One text to encode: its candidate, its query, its tokens, and how many of them the candidate's rows share."""

    candidate: int
    query: int
    tokens: tuple[int, ...]
    shared: int

    @property
    def length(self) -> int:
        """Tokens that are the row's own."""
        return len(self.tokens) - self.shared


@dataclass(frozen=True)
class _Prefixes:
    """What the candidates of one group share: keys and values of each layer (C, heads, P, d), hidden states
    (C, P, H)."""

    place_of: dict[int, int]
    layers: tuple[tuple[torch.Tensor, torch.Tensor], ...]
    hidden: torch.Tensor


def encode_under(
    retriever: Retriever, queries: Sequence[str], instructions: Sequence[str], *, label: str = ""
) -> np.ndarray:
    """Encode every query under every instruction.

    Returns float32 of shape (C, Q, H), C instructions and Q queries in the order given; length 1 where the retriever
    normalises. Raises ModelError for a retriever that Medley did not make: it has no template to put them in.
    """
    import torch

    _check(retriever)
    vectors_CQH = np.zeros(
        (len(instructions), len(queries), retriever.model.get_embedding_dimension() or 0), dtype=np.float32
    )
    if not queries:
        return vectors_CQH
    rows = _rows(retriever, queries, instructions)
    max_tokens = BATCH_TOKENS_CPU if retriever.model.device.type == "cpu" else BATCH_TOKENS
    with torch.inference_mode(), progress(label or "encoding queries", len(rows)) as advance:
        for shared, group in groupby(rows, key=lambda row: row.shared):
            members = list(group)
            prefixes = _prefixes(retriever, members) if shared else None
            for batch in _batches(members, max_tokens):
                vectors = _encode(retriever, batch, prefixes)
                places = [row.candidate for row in batch], [row.query for row in batch]
                vectors_CQH[places] = vectors.cpu().numpy()
                advance(len(batch))
    return vectors_CQH


def shares_prefix(retriever: Retriever) -> bool:
    """Whether the first tokens of a text get the same keys and values whatever follows them."""
    config = backbone(retriever).config
    window = getattr(config, "sliding_window", None) or float("inf")
    return (
        bool(getattr(config, "is_causal", True))
        and set(getattr(config, "layer_types", None) or SHAREABLE) <= SHAREABLE
        and window >= (retriever.model.max_seq_length or float("inf"))
    )


def _check(retriever: Retriever) -> None:
    from sentence_transformers.sentence_transformer.modules import Pooling

    pooling = next((module for module in retriever.model if isinstance(module, Pooling)), None)
    if retriever.template is None or pooling is None or pooling.pooling_mode not in ("lasttoken", "mean"):
        raise ModelError(
            "this model was not made by Medley, so instructions cannot be put into its prompts; "
            "give a model folder that Medley wrote."
        )


def _rows(retriever: Retriever, queries: Sequence[str], instructions: Sequence[str]) -> list[_Row]:
    """All texts as tokens, cut and ended as the tokenizer does; sorted so that batches are even."""
    tokenizer: Any = retriever.model.tokenizer
    share = shares_prefix(retriever)
    rows = []
    for candidate, instruction in enumerate(instructions):
        prompt = retriever.query_prompt(instruction)
        texts = [prompt + query for query in queries]
        length = retriever.model.max_seq_length
        tokens = tokenizer(texts, truncation=True, max_length=length)
        token_ids = tokens["input_ids"]
        notice("queries", CUT * were_cut(tokens, length).astype(np.uint8), max_tokens=length)
        shared = _common(token_ids) if share else 0
        rows += [_Row(candidate, query, tuple(ids), shared) for query, ids in enumerate(token_ids)]
    return sorted(rows, key=lambda row: (row.shared, row.length))


def _common(token_ids: Sequence[list[int]]) -> int:
    """How many tokens all texts begin with; each keeps at least one of its own."""
    least, most = min(token_ids), max(token_ids)  # what the first and the last in order share, all share
    same = next((i for i, (a, b) in enumerate(zip(least, most, strict=False)) if a != b), len(least))
    return min(same, min(map(len, token_ids)) - 1)


def _batches(rows: Sequence[_Row], max_tokens: int) -> Iterator[list[_Row]]:
    """Rows in batches of at most `max_tokens`, of one length unless that would make small batches."""
    batch: list[_Row] = []
    for row in rows:
        full = (len(batch) + 1) * row.length > max_tokens
        longer = bool(batch) and row.length != batch[0].length and len(batch) >= FEW_ROWS
        if batch and (full or longer):
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch


def _prefixes(retriever: Retriever, rows: Sequence[_Row]) -> _Prefixes:
    """Run the shared tokens of each candidate through the model, once."""
    import torch

    shared_of = {row.candidate: row.tokens[: row.shared] for row in rows}
    tokens = torch.tensor(list(shared_of.values()), device=retriever.model.device)
    out = backbone(retriever)(input_ids=tokens, use_cache=True)
    layers = tuple((layer.keys, layer.values) for layer in out.past_key_values.layers)
    return _Prefixes({c: place for place, c in enumerate(shared_of)}, layers, out.last_hidden_state)


def _encode(retriever: Retriever, batch: Sequence[_Row], prefixes: _Prefixes | None) -> torch.Tensor:
    """Vectors (R, H) of a batch, float32."""
    import torch
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling
    from transformers import DynamicCache

    device, shared = retriever.model.device, batch[0].shared
    width = max(row.length for row in batch)
    tokens = torch.full((len(batch), width), retriever.model.tokenizer.pad_token_id or 0, device=device)
    mask = torch.zeros((len(batch), width), dtype=torch.long, device=device)
    for place, row in enumerate(batch):
        tokens[place, : row.length] = torch.tensor(row.tokens[shared:], device=device)
        mask[place, : row.length] = 1
    inputs: dict[str, Any] = {"input_ids": tokens}
    padded = bool((mask == 0).any())
    if prefixes is not None:
        own = torch.tensor([prefixes.place_of[row.candidate] for row in batch], device=device)
        inputs["past_key_values"] = DynamicCache([(k[own], v[own]) for k, v in prefixes.layers])
        before = torch.ones((len(batch), shared), dtype=torch.long, device=device)
        if padded:
            inputs["attention_mask"] = torch.cat([before, mask], dim=1)
    elif padded:
        inputs["attention_mask"] = mask
    hidden = backbone(retriever)(**inputs, use_cache=prefixes is not None).last_hidden_state
    modules = list(retriever.model)[1:]
    if prefixes is not None and any(isinstance(m, Pooling) and m.pooling_mode == "mean" for m in modules):
        hidden = torch.cat([prefixes.hidden[own], hidden], dim=1)
        mask = torch.cat([before, mask], dim=1)
    features: dict[str, Any] = {"token_embeddings": hidden, "attention_mask": mask}
    for module in modules:
        features = module(features)
    vectors = features["sentence_embedding"].float()
    if any(isinstance(module, Normalize) for module in modules):
        vectors = torch.nn.functional.normalize(vectors, dim=-1)  # as the encoder does: in float32
    return vectors
