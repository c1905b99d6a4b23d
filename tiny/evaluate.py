"""The scores on the bundled model's card: nDCG@10 before any fine-tuning, with and without the template.

MEDLEY_DATA=/path/to/data python tiny/evaluate.py
"""

import os
from pathlib import Path

from medley.collections import load_collection
from medley.encoder import RetrieverSettings, build_retriever
from medley.evaluate.scores import evaluate_retriever

COLLECTIONS = ("scifact", "covidqa_passages", "cranfield", "mqp", "mediqa2019_qa")


def main() -> None:
    """Print one row for each collection."""
    folder = Path(os.environ["MEDLEY_DATA"]) / "collections"
    collections = [load_collection(f"{folder / name}:test", keep_empty=True) for name in COLLECTIONS]
    scores = {}
    for template in ("plain", "bmretriever"):
        settings = RetrieverSettings(
            pooling="last", attention="bidirectional", max_length=256, template=template, dtype="bfloat16"
        )
        retriever = build_retriever("tiny", settings, instruction="Given a query, retrieve relevant passages")
        scores[template] = evaluate_retriever(retriever, collections)
    for name in scores["plain"]:
        row = [f"{scores[template][name].ndcg_at_10:.3f}" for template in scores]
        print("|", " | ".join([name, *row]), "|", flush=True)


if __name__ == "__main__":
    main()
