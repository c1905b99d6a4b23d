"""`medley.mine`: a pairs file and a corpus in, the same pairs with hard negatives out."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medley.any_model import open_model
from medley.api.frames import frame
from medley.claim import claimed, unfinished
from medley.collections import load_corpus
from medley.mine import MinedStream, MiningSettings
from medley.noticed import telling
from medley.pairs import StreamedPairs, iter_pairs, write_pairs

if TYPE_CHECKING:
    import pandas


@dataclass(frozen=True)
class MinedPairs:
    """Where the pairs are, and how many candidates were kept and dropped, by reason."""

    path: Path
    counts: Mapping[str, Any]

    def to_frame(self) -> pandas.DataFrame:
        """A row for each pair: query, positive, negatives (list), instruction, source, provenance."""
        return frame(pair.as_row() for pair in iter_pairs(self.path))


@telling()
def mine(
    pairs: Path | str,
    out: Path | str,
    *,
    corpus: str | None = None,
    settings: MiningSettings | None = None,
    base: str | None = None,
    vectors: Path | None = None,
    seed: int = 13,
    force: bool = False,
) -> MinedPairs:
    """Mine hard negatives for training pairs from a corpus, by BM25 or by a retriever (`settings.retriever`).

    Without a `corpus` (a collection's folder, `corpus.jsonl` or MTEB task) passages are the pairs' own positives. A
    `base` is that of a retriever that is an adapter, where its folder does not say it. A
    retriever's vectors of the corpus are kept in the folder `vectors`, else beside `out` until it is written; a call
    that was killed goes on from them. An existing `out` is replaced with `force` only.
    Raises PairsError and CollectionError with file:line, ModelError, and OutputError before anything is written.
    """
    settings, out = settings or MiningSettings(), Path(out)
    with claimed(out, force=force, inputs=(pairs, corpus, settings.retriever)):
        rows = StreamedPairs(Path(pairs))
        for _ in rows:  # wrong rows are told before anything is indexed or encoded
            pass
        passages = load_corpus(corpus) if corpus else None
        model = None if settings.retriever == "bm25" else open_model(settings.retriever, base=base)
        with nullcontext(vectors) if vectors or model is None else unfinished(out, "vectors") as store:
            mined = MinedStream(rows, passages, settings, seed=seed, retriever=model, store=store)
            write_pairs(out, mined, force=force)
    return MinedPairs(out, dict(mined.counts))
