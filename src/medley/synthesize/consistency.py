"""What keeps written queries honest: a retriever must find a pair's passage for its query, and no query comes twice.

From a stream of outcomes and the corpus that the passages are from to the same stream with some pairs dropped, counted
as `inconsistent` and `duplicate`. The filter is BMRetriever's and, before it, Promptagator's round trip (arXiv
2209.11755, section 3.2): a query for which another passage is nearer asks for something else, or for everything.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, Field

from medley.collections import Passage
from medley.errors import ModelError
from medley.fingerprint import fingerprint
from medley.overlap import normal_form
from medley.pairs import TrainingPair
from medley.synthesize.generated import Outcome

if TYPE_CHECKING:
    from medley.encoder import Retriever

QUERIES_AT_ONCE = 256
Find = Callable[[Sequence[TrainingPair]], list[set[str]]]
"""For each pair, the ids of the passages found for its query."""
PassageOf = Callable[[TrainingPair], str]
"""The id of a pair's passage in the corpus."""


class ConsistencySettings(BaseModel):
    """The consistency filter: which retriever must find a pair's passage for its query, and how near the top."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    retriever: str = Field("bm25", description="`bm25`, or a model folder or hub id")
    top_k: int = Field(20, ge=1, description="among how many of the whole corpus the passage must be")


def open_finder(
    corpus: Sequence[Passage], settings: ConsistencySettings, retriever: Retriever | None = None
) -> Find:
    """Index or encode the corpus, and give the search over it; `retriever` is the opened model, None for bm25.

    A query is searched under its pair's instruction where it has one and the model takes one, or else under the
    model's own. Similarity in float32, ties by passage id. Raises ModelError when the settings name a model and none
    is given.
    """
    from medley.search import Bm25Index

    if (retriever is None) != (settings.retriever == "bm25"):
        raise ModelError(
            f"the consistency filter by {settings.retriever!r} needs that retriever opened, and bm25 needs none."
        )
    if retriever is not None:
        return _dense_finder(corpus, settings.top_k, retriever)
    index = Bm25Index(corpus)

    def find(pairs: Sequence[TrainingPair]) -> list[set[str]]:
        rankings = index.search([pair.query for pair in pairs], settings.top_k)
        return [{passage_id for passage_id, _ in ranking} for ranking in rankings]

    return find


def _dense_finder(corpus: Sequence[Passage], top_k: int, retriever: Retriever) -> Find:
    from medley.encoder import encode_queries_under
    from medley.search import PassageOrder, corpus_ids, encode_corpus, nearest, similarity_of

    order, vectors_DH = PassageOrder(corpus_ids(corpus)), encode_corpus(retriever, corpus)
    similarity = similarity_of(retriever)

    def find(pairs: Sequence[TrainingPair]) -> list[set[str]]:
        queries_QH = encode_queries_under(retriever, [(pair.query, pair.instruction) for pair in pairs])
        top = nearest(queries_QH, vectors_DH, order, top_k, similarity=similarity)
        return [
            {order.ids[position] for position in positions_K if position >= 0}
            for positions_K in top.positions_QK.tolist()
        ]

    return find


def keep_consistent(outcomes: Iterable[Outcome], find: Find, passage_of: PassageOf) -> Iterator[Outcome]:
    """Drop pairs whose passage is not found for their query; counted as `inconsistent`."""
    outcomes = iter(outcomes)
    while chunk := list(islice(outcomes, QUERIES_AT_ONCE)):
        pairs = [outcome.pair for outcome in chunk if outcome.pair is not None]
        found = iter(find(pairs) if pairs else [])
        for outcome in chunk:
            consistent = outcome.pair is None or passage_of(outcome.pair) in next(found)
            yield outcome if consistent else outcome.dropped("inconsistent")


def without_duplicates(outcomes: Iterable[Outcome]) -> Iterator[Outcome]:
    """Drop pairs whose query, case and punctuation aside, came before; counted as `duplicate`.

    Memory holds a hash of each query, not its text.
    """
    seen: set[int] = set()
    for outcome in outcomes:
        if outcome.pair is not None:
            key = int(fingerprint(normal_form(outcome.pair.query)), 16)
            if key in seen:
                yield outcome.dropped("duplicate")
                continue
            seen.add(key)
        yield outcome
