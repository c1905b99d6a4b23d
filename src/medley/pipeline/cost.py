"""What a step will cost, estimated from sizes alone for `--plan`: nothing is encoded, asked or written.

`llm_calls`, `llm_tokens` (prompt and reply, four characters a token), `texts_encoded`, `texts_trained`, `disk_bytes`.
"""

from __future__ import annotations

import gzip
from pathlib import Path

from medley.encoder import resolve_base
from medley.merge.settings import SearchSettings
from medley.pipeline.inputs import Inputs, expanded
from medley.recipe import Recipe, Source

CHARACTERS_A_TOKEN = 4
PROMPT_TOKENS = 400
"""The bundled prompt for a hard negative, without the texts put in."""

Cost = dict[str, float]


def rows_of(source: Source, inputs: Inputs) -> tuple[int, float]:
    """How many pairs a source has, and the mean length of a row in characters."""
    if source.collection is not None:
        collection = inputs.collection(f"{source.collection}:{source.split}")
        wanted = [p for query_id in collection.queries for p in collection.positives(query_id)]
        sample = [passage for passage, _ in zip(collection.corpus, range(200), strict=False)]
        length = sum(len(passage.full_text) for passage in sample) / max(1, len(sample))
        rows = len(wanted)
    else:
        path = expanded(source.pairs or "")
        if path.is_dir() or path.suffix == ".parquet":
            return source.limit or 0, 0.0
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as stream:
            lengths = [len(line) for line in stream if line.strip()]
        rows, length = len(lengths), sum(lengths) / max(1, len(lengths))
    return min(rows, source.limit or rows), length


def cost_of_generation(recipe: Recipe, inputs: Inputs, source: str) -> Cost:
    """Calls and tokens of the recipe's endpoint; nothing where negatives are made by perturbation."""
    if recipe.llm is None or recipe.negatives.generated is None:
        return {}
    rows, length = rows_of(recipe.sources[source], inputs)
    calls = rows * recipe.negatives.generated.per_query
    # positive and mined negative go in, a passage of the same length comes out
    return {"llm_calls": calls, "llm_tokens": calls * (PROMPT_TOKENS + 3 * length / CHARACTERS_A_TOKEN)}


def cost_of_training(recipe: Recipe, inputs: Inputs, sources: list[str]) -> Cost:
    """Texts that go forward and backward through the model."""
    rows = sum(rows_of(recipe.sources[name], inputs)[0] for name in sources)
    return {"texts_trained": rows * recipe.train.epochs * (2 + recipe.train.negatives)}


def pool_texts(search: SearchSettings, inputs: Inputs, specs: list[str]) -> tuple[int, int]:
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
