"""Search: exact top-k over dense vectors, BM25, and passage vectors kept on disk.

In: a collection and, for dense search, a retriever (encoder.py makes the vectors). Out: rankings.
Everything here is exact and deterministic: similarities in float32, equal scores in ascending order of passage id
(Unicode code points), also at the cut-off and across blocks. Memory is bounded by blocks: the text of a corpus is
never in memory as a whole.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from medley.collections import Collection, FolderCorpus, Passage
from medley.errors import InputError, ModelError
from medley.files import writing
from medley.fingerprint import fingerprint, fingerprint_texts
from medley.progress import progress

if TYPE_CHECKING:
    from medley.encoder import Retriever

Ranking = list[tuple[str, float]]
"""Passage ids with their scores, best first."""
Rankings = Mapping[str, Ranking]
"""For each query id, its ranking."""
Similarity = Literal["dot", "cosine"]

BLOCK = 16_384
"""Passages scored at once."""
QUERY_BLOCK = 256
"""Queries scored at once: with BLOCK, 16 MiB of float32 scores and 32 MiB of keys."""
ENCODING_CHUNK = 2_048
"""Passages whose texts are in memory at once while a corpus is encoded."""
BM25_K1, BM25_B = 1.2, 0.75
"""Lucene's defaults."""


def exact_top_k(
    queries_QH: np.ndarray,
    passages_DH: np.ndarray,
    passage_ids: Sequence[str],
    k: int,
    *,
    similarity: Similarity = "dot",
    block: int = BLOCK,
) -> list[Ranking]:
    """The k best passages of each query, by exhaustive float32 similarity; ties by ascending passage id.

    `passages_DH` may be memory-mapped: it is read once, `block` rows at a time. Raises ModelError when a vector
    is not finite (a model that diverged), InputError when shapes and ids do not fit together.
    """
    if passages_DH.ndim != 2 or queries_QH.ndim != 2 or queries_QH.shape[1] != passages_DH.shape[1]:
        raise InputError(
            f"query vectors of shape {queries_QH.shape} do not fit passage vectors of shape {passages_DH.shape}; "
            "encode both with the same retriever."
        )
    if len(passage_ids) != len(passages_DH):
        raise InputError(
            f"{len(passages_DH)} passage vectors for {len(passage_ids)} passages; encode the corpus again."
        )
    queries_QH = comparable(queries_QH, similarity)
    ties = _Ties(passage_ids)
    best_QK = np.zeros((len(queries_QH), 0), dtype=np.int64)
    for start in range(0, len(passage_ids), block):
        block_BH = comparable(passages_DH[start : start + block], similarity)
        grown_QK = np.zeros((len(queries_QH), min(k, best_QK.shape[1] + len(block_BH))), dtype=np.int64)
        for first in range(0, len(queries_QH), QUERY_BLOCK):
            rows = slice(first, first + QUERY_BLOCK)
            keys_QB = ties.keys(queries_QH[rows] @ block_BH.T, slice(start, start + block))
            grown_QK[rows] = _largest(np.concatenate([best_QK[rows], keys_QB], axis=1), k)
        best_QK = grown_QK
    return [ties.ranking(keys_K) for keys_K in best_QK]


def comparable(vectors: np.ndarray, similarity: Similarity) -> np.ndarray:
    """Vectors (N, H) made ready for a dot product: float32, checked, of length 1 for cosine (zero stays zero).

    Raises ModelError when one is not finite.
    """
    vectors = np.asarray(vectors, dtype=np.float32)
    if not np.isfinite(vectors).all():
        raise ModelError(
            "the model gives vectors that are not finite numbers; it has diverged in training or overflows its "
            "dtype: train it again with a lower learning rate, or load it in float32."
        )
    if similarity == "cosine":
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        return vectors / np.maximum(lengths, np.finfo(np.float32).tiny)
    return vectors


class _Ties:
    """Scores and ids as one sortable number, so that one partition gives the exact order with its ties.

    A key's upper 32 bits are the float32 score as an integer of the same order; its lower 32 bits grow as the
    passage id falls in the alphabet. Larger is better.
    """

    def __init__(self, passage_ids: Sequence[str]) -> None:
        descending = sorted(range(len(passage_ids)), key=passage_ids.__getitem__, reverse=True)
        self._positions = np.array(descending, dtype=np.int64)
        self._ids = passage_ids
        self._tie_D = np.empty(len(passage_ids), dtype=np.int64)
        self._tie_D[self._positions] = np.arange(len(passage_ids))

    def __len__(self) -> int:
        return len(self._ids)

    def keys(self, scores_QD: np.ndarray, passages: slice | np.ndarray) -> np.ndarray:
        """Keys of the scores (float32, last axis: passages at these positions)."""
        bits = (scores_QD + np.float32(0)).view(np.int32)  # adding 0 turns -0.0 into 0.0
        ordered = np.where(bits >= 0, bits, bits ^ np.int32(0x7FFFFFFF)).astype(np.int64)
        return (ordered << 32) | self._tie_D[passages]

    def ranking(self, keys_K: np.ndarray) -> Ranking:
        """The ranking that descending keys stand for."""
        ordered = (keys_K >> 32).astype(np.int32)
        scores = np.where(ordered >= 0, ordered, ordered ^ np.int32(0x7FFFFFFF)).view(np.float32)
        positions = self._positions[keys_K & 0xFFFFFFFF]
        return [(self._ids[p], s) for p, s in zip(positions.tolist(), scores.tolist(), strict=True)]


def _largest(keys: np.ndarray, k: int) -> np.ndarray:
    """The k largest along the last axis, descending."""
    if k < keys.shape[-1]:
        keys = np.partition(keys, keys.shape[-1] - k, axis=-1)[..., keys.shape[-1] - k :]
    return np.sort(keys, axis=-1)[..., ::-1]


def rank_by_vectors(
    query_ids: Sequence[str],
    queries_QH: np.ndarray,
    passage_ids: Sequence[str],
    passages_DH: np.ndarray,
    k: int,
    *,
    similarity: Similarity = "dot",
) -> dict[str, Ranking]:
    """Rankings of queries whose vectors, like the passages', are known already; see `exact_top_k`."""
    rankings = exact_top_k(queries_QH, passages_DH, passage_ids, k, similarity=similarity)
    return dict(zip(query_ids, rankings, strict=True))


def rank_with_retriever(
    retriever: Retriever,
    collection: Collection,
    k: int,
    *,
    instruction: str | None = None,
    passage_vectors: np.ndarray | None = None,
    store: Path | None = None,
) -> dict[str, Ranking]:
    """Rank a collection's corpus for each of its queries; `instruction` replaces the retriever's own.

    `passage_vectors` (D, H) in the order of the corpus spare encoding it again; `store` is a folder that keeps
    them from run to run (see `encode_corpus`).
    """
    from medley.encoder import encode_queries

    if passage_vectors is None:
        passage_vectors = encode_corpus(retriever, collection.corpus, store=store, label=collection.name)
    queries_QH = encode_queries(retriever, list(collection.queries.values()), instruction=instruction)
    return rank_by_vectors(
        list(collection.queries), queries_QH, corpus_ids(collection.corpus), passage_vectors, k,
        similarity=similarity_of(retriever),
    )  # fmt: skip


def rank_with_bm25(collection: Collection, k: int) -> dict[str, Ranking]:
    """Rank a collection's corpus for each of its queries by BM25."""
    rankings = Bm25Index(collection.corpus).search(list(collection.queries.values()), k)
    return dict(zip(collection.queries, rankings, strict=True))


def similarity_of(retriever: Retriever) -> Similarity:
    """How the model says that its vectors are compared. Raises ModelError for other than dot and cosine."""
    name = str(retriever.model.similarity_fn_name or "cosine")
    if name == "dot":
        return "dot"
    if name == "cosine":
        return "cosine"
    raise ModelError(f"the model compares vectors by {name}; only dot and cosine can be searched.")


def corpus_ids(corpus: Sequence[Passage]) -> Sequence[str]:
    """Passage ids in corpus order, without reading texts where the corpus knows its ids."""
    return corpus.ids if isinstance(corpus, FolderCorpus) else [passage.id for passage in corpus]


def encode_corpus(
    retriever: Retriever, corpus: Sequence[Passage], *, store: Path | None = None, label: str = "passages"
) -> np.ndarray:
    """Vectors of a corpus, float32 of shape (D, H), in corpus order; texts are read chunk by chunk.

    With `store` they are kept in a .npy file named by the retriever's identity (without its query instruction,
    which no passage sees) and the texts' fingerprint, and come back memory-mapped; a killed writer leaves nothing.
    """
    if store is None:
        vectors_DH = np.empty((len(corpus), _dimension(retriever)), dtype=np.float32)
        _encode_into(vectors_DH, retriever, corpus, label)
        return vectors_DH
    path = store / f"{passages_key(retriever, corpus)}.npy"
    if not path.is_file():
        with writing(path) as temporary:
            mapped = np.lib.format.open_memmap(
                temporary, mode="w+", dtype=np.float32, shape=(len(corpus), _dimension(retriever))
            )
            _encode_into(mapped, retriever, corpus, label)
            mapped.flush()
    return np.load(path, mmap_mode="r")


def passages_key(retriever: Retriever, corpus: Sequence[Passage]) -> str:
    """Fingerprint of all that decides a corpus' vectors: model, passage prompt and texts."""
    texts = fingerprint_texts(passage.full_text for passage in corpus)
    return fingerprint([replace(retriever, instruction="").identity(), retriever.document_prompt, texts])


def _encode_into(vectors_DH: np.ndarray, retriever: Retriever, corpus: Sequence[Passage], label: str) -> None:
    from medley.encoder import encode_passages

    done = 0
    with progress(f"encoding {label}", len(corpus)) as advance:
        for chunk in _chunks(corpus, ENCODING_CHUNK):
            vectors_DH[done : done + len(chunk)] = encode_passages(retriever, chunk)
            done += len(chunk)
            advance(len(chunk))


def _chunks(corpus: Sequence[Passage], size: int) -> Iterator[list[Passage]]:
    chunk: list[Passage] = []
    for passage in corpus:
        chunk.append(passage)
        if len(chunk) == size:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def _dimension(retriever: Retriever) -> int:
    return int(retriever.model.get_embedding_dimension() or 0)


class Bm25Index:
    """BM25 over passages (title and text): bm25s, Lucene's variant, English stop words, no stemmer.

    A passage that shares no term with the query is in no ranking.
    """

    def __init__(self, passages: Sequence[Passage]) -> None:
        import bm25s
        from bm25s.tokenization import Tokenizer

        self._ties = _Ties(corpus_ids(passages))
        self._tokenizer = Tokenizer(stopwords="english", stemmer=None)
        texts = (passage.full_text for passage in passages)
        token_ids = list(self._tokenizer.streaming_tokenize(texts, update_vocab=True, allow_empty=False))
        self._index = bm25s.BM25(method="lucene", k1=BM25_K1, b=BM25_B)
        if any(token_ids):
            self._index.index((token_ids, self._tokenizer.get_vocab_dict()), show_progress=False)

    def scores(self, query: str) -> np.ndarray:
        """BM25 scores of all passages for one query: float32 of shape (D,), in passage order."""
        (token_ids,) = self._tokenizer.streaming_tokenize([query], update_vocab=False, allow_empty=False)
        if not token_ids or not hasattr(self._index, "scores"):
            return np.zeros(len(self._ties), dtype=np.float32)
        return self._index.get_scores_from_ids(token_ids).astype(np.float32)

    def search(self, queries: Sequence[str], k: int) -> list[Ranking]:
        """The k best passages of each query; ties by ascending passage id."""
        rankings = []
        with progress("BM25", len(queries)) as advance:
            for query in queries:
                rankings.append(self.top(self.scores(query), k))
                advance(1)
        return rankings

    def top(self, scores_D: np.ndarray, k: int) -> Ranking:
        """The ranking of one query's scores."""
        matching = np.flatnonzero(scores_D > 0)
        return self._ties.ranking(_largest(self._ties.keys(scores_D[matching], matching), k))
