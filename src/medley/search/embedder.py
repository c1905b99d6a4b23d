"""What makes vectors of a collection's texts, whatever it is: a retriever in memory, workers, a server.

In: a collection. Out: vectors of its queries and passages, and rankings. With a store, a text is encoded once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from medley.collections import Collection, Passage
from medley.progress import progress
from medley.search.blocks import Similarity, Vectors
from medley.search.dense import similarity_of
from medley.search.store import CHUNK, EncodeChunks, stored_vectors

if TYPE_CHECKING:
    from medley.encoder import Retriever


@dataclass(frozen=True)
class Embedder:
    """Functions from texts to vectors, float32 of shape (N, H), and what decides them beside prompt and text.

    `query_prompt` gives the text that precedes a query under an instruction, None standing for the model's own;
    `encode_queries` takes that instruction; `encode_passages` takes chunks of texts, so that others can work on them at
    once.
    """

    identity: Callable[[], str]
    similarity: Similarity
    query_prompt: Callable[[str | None], str]
    document_prompt: str
    encode_queries: Callable[[list[str], str | None], np.ndarray]
    encode_passages: EncodeChunks


def embedder_of(retriever: Retriever) -> Embedder:
    """A retriever in memory."""
    from medley.encoder import encode_passages, encode_queries

    return Embedder(
        identity=lambda: replace(retriever, instruction="").identity(),
        similarity=similarity_of(retriever),
        query_prompt=retriever.query_prompt,
        document_prompt=retriever.document_prompt,
        encode_queries=lambda texts, instruction: encode_queries(retriever, texts, instruction=instruction),
        encode_passages=lambda chunks: (encode_passages(retriever, chunk) for chunk in chunks),
    )


@dataclass(frozen=True)
class _Texts(Sequence[str]):
    """The texts of passages, read on demand."""

    corpus: Sequence[Passage]

    def __len__(self) -> int:
        return len(self.corpus)

    def __getitem__(self, index):  # type: ignore[no-untyped-def]
        if isinstance(index, slice):
            return [passage.full_text for passage in self.corpus[index]]
        return self.corpus[index].full_text


def query_vectors(
    embedder: Embedder, collection: Collection, instruction: str | None, store: Path | None
) -> np.ndarray:
    """Vectors of a collection's queries (Q, H), in its order."""
    texts = list(collection.queries.values())
    if store is None:
        return embedder.encode_queries(texts, instruction)
    stored = stored_vectors(
        store / embedder.identity(), f"query\0{embedder.query_prompt(instruction)}", texts,
        lambda chunks: (embedder.encode_queries(chunk, instruction) for chunk in chunks),
        label=f"queries of {collection.name}", kind="queries",
    )  # fmt: skip
    return stored[:]


def passage_vectors(embedder: Embedder, collection: Collection, store: Path | None) -> Vectors:
    """Vectors of a collection's passages (D, H), in the order of its corpus."""
    texts = _Texts(collection.corpus)
    if store is None:
        parts = []
        with progress(f"encoding {collection.name}", len(texts)) as advance:
            chunks = (texts[start : start + CHUNK] for start in range(0, len(texts), CHUNK))
            for vectors in embedder.encode_passages(chunks):
                parts.append(vectors)
                advance(len(vectors))
        return np.concatenate(parts)
    return stored_vectors(
        store / embedder.identity(), f"document\0{embedder.document_prompt}", texts, embedder.encode_passages,
        label=collection.name,
    )  # fmt: skip
