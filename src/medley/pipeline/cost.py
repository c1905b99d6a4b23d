"""What a step will cost, estimated from sizes alone for `--plan`: nothing is encoded, asked or written.

`texts_encoded`, `texts_trained`, `disk_bytes`; llm_cost.py has what a language model takes.
"""

from __future__ import annotations

import gzip
import math
from pathlib import Path

from medley.encoder import resolve_base
from medley.merge.settings import SearchSettings
from medley.pipeline.inputs import Inputs, expanded
from medley.recipe import Recipe, Source
from medley.train.settings import EarlyStopping

Cost = dict[str, float]


def rows_of(source: Source, inputs: Inputs) -> int:
    """How many pairs a source has; of a Parquet file or data set only its limit is known without opening it."""
    if source.collection is not None:
        collection = inputs.collection(f"{source.collection}:{source.split}")
        rows = sum(len(collection.positives(query_id)) for query_id in collection.queries)
    elif source.corpus is not None:
        passages = len(inputs.corpus(source.corpus))
        rows = min(passages, source.written.passages or passages) * source.written.per_passage
    else:
        path = expanded(source.pairs or "")
        if path.is_dir() or path.suffix == ".parquet":
            return source.limit or 0
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as stream:
            rows = sum(1 for line in stream if line.strip())
    return min(rows, source.limit or rows)


def cost_of_training(recipe: Recipe, inputs: Inputs, sources: list[str], dev: list[str]) -> Cost:
    """Texts that go forward and backward through the model; with early stopping also those encoded on dev, at most."""
    rows = sum(rows_of(recipe.sources[name], inputs) for name in sources)
    texts = rows * recipe.train.epochs * (2 + recipe.train.negatives)
    stopping = recipe.train.early_stopping
    if stopping is None:
        return {"texts_trained": texts}
    trials = max(1, len(set(stopping.learning_rates)))
    scores = 1 + math.ceil(recipe.train.epochs / stopping.every_epochs) + 2 * len(stopping.scales)
    encoded = scores * sum(pool_texts(stopping, inputs, dev))
    return {"texts_trained": trials * texts, "texts_encoded": trials * encoded}


def pool_texts(search: SearchSettings | EarlyStopping, inputs: Inputs, specs: list[str]) -> tuple[int, int]:
    """Queries and passages of the dev pools."""
    collections = [inputs.collection(spec) for spec in specs]
    queries = sum(min(search.queries, len(collection.queries)) for collection in collections)
    return queries, sum(min(search.pool_size, len(collection.corpus)) for collection in collections)


def cost_of_search(recipe: Recipe, inputs: Inputs) -> Cost:
    """Texts encoded for candidates: the whole pool each time."""
    queries, passages = pool_texts(recipe.merge.search, inputs, recipe.merge.dev)
    encodings = recipe.merge.search.encodings * len(recipe.merge.methods)
    return {"encodings": encodings, "texts_encoded": encodings * (queries + passages)}


def cost_of_prompts(recipe: Recipe, inputs: Inputs, dev: list[str], candidates: int) -> Cost:
    """Passages once, queries once for each candidate instruction."""
    if not candidates:
        return {}
    queries, passages = pool_texts(recipe.merge.search, inputs, dev)
    return {"texts_encoded": passages + candidates * queries}


def cost_of_evaluation(recipe: Recipe, inputs: Inputs, variant: str) -> Cost:
    """Every test passage and query once; BM25 encodes none."""
    if variant == "bm25":
        return {}
    collections = [inputs.collection(spec) for spec in recipe.evaluate.tasks]
    return {"texts_encoded": sum(len(c.corpus) + len(c.queries) for c in collections)}


def cost_of_model(recipe: Recipe) -> Cost:
    """Bytes of the saved weights, where the base lies on this machine."""
    weights = list(Path(resolve_base(recipe.base)).glob("*.safetensors"))
    wider = 2 if recipe.merge.dtype == "float32" else 1  # bases are published in 16 bits
    return {"disk_bytes": wider * sum(file.stat().st_size for file in weights)} if weights else {}
