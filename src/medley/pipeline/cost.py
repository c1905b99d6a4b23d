"""What a step will cost, estimated from sizes alone for `--plan`: nothing is encoded, asked or written.

`texts_encoded`, `texts_trained`, `texts_cut_by_estimate` (longer than the model reads: estimated from a few texts),
`steps`, `trained_parameters`, `disk_bytes`; llm_cost.py has what a language model takes.
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

from medley.merge.checkpoint import Checkpoint
from medley.merge.coefficients import kind_of
from medley.merge.settings import SearchSettings
from medley.model_name import resolve_base
from medley.pairs import StreamedPairs
from medley.pipeline.inputs import Inputs, expanded
from medley.prompts.edit import PER_ROUND, ROUNDS
from medley.prompts.generic import AT_ONCE
from medley.prompts.library import read_library
from medley.prompts.proof import RANDOM_INSTRUCTIONS
from medley.prompts.settings import BUDGETS
from medley.recipe import Recipe, Source
from medley.train.settings import EarlyStopping

Cost = dict[str, float]
SAMPLE = 200
"""Texts of a collection or source that are tokenized to estimate how many are cut."""


def rows_of(source: Source, inputs: Inputs) -> int:
    """How many pairs a source has."""
    if source.collection is not None:
        collection = inputs.collection(f"{source.collection}:{source.split}")
        rows = sum(len(collection.positives(query_id)) for query_id in collection.queries)
    elif source.corpus is not None and source.writes_queries:
        passages = len(inputs.corpus(source.corpus))
        rows = min(passages, source.written.passages or passages) * source.written.per_passage
    else:
        rows = inputs.pairs_in(source.pairs or "")
    return min(rows, source.limit or rows)


def cost_of_training(recipe: Recipe, inputs: Inputs, sources: list[str], dev: list[str]) -> Cost:
    """Texts that go forward and backward through the model; with early stopping also those encoded on dev, at most."""
    rows = sum(rows_of(recipe.sources[name], inputs) for name in sources)
    steps = recipe.train.steps_of(rows)[0] if rows else 0
    texts = min(rows * recipe.train.epochs, steps * recipe.train.batch_size) * (2 + recipe.train.negatives)
    cost: Cost = {"texts_trained": texts, "steps": steps, **trained_parameters(recipe)}
    cost |= training_texts_cut(recipe, inputs, sources)
    stopping = recipe.train.early_stopping
    if stopping is None:
        return cost
    trials = max(1, len(set(stopping.learning_rates)))
    scores = 1 + math.ceil(recipe.train.epochs / stopping.every_epochs) + 2 * len(stopping.scales)
    encoded = scores * sum(pool_texts(stopping, inputs, dev))
    return {
        **cost,
        "texts_trained": trials * texts,
        "steps": trials * steps,
        "texts_encoded": trials * encoded,
    }


def training_texts_cut(recipe: Recipe, inputs: Inputs, sources: list[str]) -> Cost:
    """Rows whose positive is longer than the model reads, estimated from a sample of each source's."""
    for name in sources:
        if f"sources.{name}" not in inputs.shares_cut:
            texts = _positives(recipe.sources[name], inputs)
            inputs.shares_cut[f"sources.{name}"] = _share_cut(recipe, texts)
    return _estimated(
        [(rows_of(recipe.sources[name], inputs), inputs.shares_cut[f"sources.{name}"]) for name in sources]
    )


def passages_cut(recipe: Recipe, inputs: Inputs, specs: Sequence[str]) -> Cost:
    """Passages of collections that are longer than the model reads, estimated from a sample of each."""
    for spec in specs:
        if spec not in inputs.shares_cut:
            corpus = inputs.collection(spec).corpus
            rows = random.Random(recipe.seed).sample(range(len(corpus)), min(SAMPLE, len(corpus)))
            inputs.shares_cut[spec] = _share_cut(recipe, [corpus[row].full_text for row in rows])
    return _estimated([(len(inputs.collection(spec).corpus), inputs.shares_cut[spec]) for spec in specs])


def _estimated(found: Sequence[tuple[int, float | None]]) -> Cost:
    """The number that shares of so many texts make; nothing where none is cut or a tokenizer is missing."""
    cut = sum(round(count * share) for count, share in found if share is not None)
    return {"texts_cut_by_estimate": cut} if cut else {}


def _positives(source: Source, inputs: Inputs) -> list[str]:
    """The first positives of a source; of a corpus its first passages, from which queries are written."""
    if source.collection is not None:
        collection = inputs.collection(f"{source.collection}:{source.split}")
        wanted = {ids[0] for query in collection.queries if (ids := collection.positives(query))}
        return [p.full_text for p in islice((p for p in collection.corpus if p.id in wanted), SAMPLE)]
    if source.corpus is not None:
        return [passage.full_text for passage in islice(inputs.corpus(source.corpus), SAMPLE)]
    return [pair.positive for pair in islice(StreamedPairs(expanded(source.pairs or "")), SAMPLE)]


def _share_cut(recipe: Recipe, texts: Sequence[str]) -> float | None:
    from medley.batches import share_cut

    prompt = recipe.retriever.template_value.document
    folder = Path(resolve_base(recipe.base))
    return share_cut(folder, [prompt + text for text in texts], recipe.retriever.max_length)


def trained_parameters(recipe: Recipe) -> Cost:
    """How many numbers an adapter trains, by the shapes of the base's layers; unknown of a base that is not here.

    Options that PEFT gives single layers (`rank_pattern` and the like) are not counted.
    """
    folder, lora = Path(resolve_base(recipe.base)), recipe.train.lora
    if lora is None or not folder.is_dir():
        return {}
    layers = {
        name.removesuffix(".weight"): stored.shape
        for name, stored in Checkpoint(folder, name=recipe.base).tensors.items()
        if len(stored.shape) == 2 and kind_of(name) in ("attention", "mlp")
    }
    if lora.targets == "all-linear":
        chosen = list(layers.values())
    elif isinstance(lora.targets, str):
        chosen = [shape for name, shape in layers.items() if re.fullmatch(lora.targets, name)]
    else:
        chosen = [shape for name, shape in layers.items() if name.rpartition(".")[2] in lora.targets]
    return {"trained_parameters": lora.rank * sum(map(sum, chosen))}


def pool_texts(search: SearchSettings | EarlyStopping, inputs: Inputs, specs: list[str]) -> tuple[int, int]:
    """Queries and passages of the dev pools."""
    collections = [inputs.collection(spec) for spec in specs]
    queries = sum(min(search.queries, len(collection.queries)) for collection in collections)
    return queries, sum(min(search.pool_size, len(collection.corpus)) for collection in collections)


def cost_of_search(recipe: Recipe, inputs: Inputs) -> Cost:
    """Texts encoded for candidates: the whole pool each time."""
    queries, passages = pool_texts(recipe.merge.search, inputs, recipe.merge.dev)
    encodings = recipe.merge.search.encodings * len(recipe.merge.methods)
    ranking = _texts_ranked(recipe, inputs)
    return {
        "encodings": encodings,
        "texts_encoded": encodings * (queries + passages) + ranking,
        **passages_cut(recipe, inputs, recipe.merge.dev),
    }


def _texts_ranked(recipe: Recipe, inputs: Inputs) -> int:
    """Texts that retrievers encode to say what is hard enough for a pool; none where BM25 says it, or all are in."""
    from medley.merge.hard import WIDER

    search = recipe.merge.search
    turns = ("base" in search.rankers) + len(recipe.experts) * ("experts" in search.rankers)
    collections = [inputs.collection(spec) for spec in recipe.merge.dev]
    texts = sum(
        min(search.queries, len(collection.queries)) + min(WIDER * search.pool_size, len(collection.corpus))
        for collection in collections
        if len(collection.corpus) > search.pool_size
    )
    return turns * texts * len(recipe.merge.methods)


def cost_of_prompts(recipe: Recipe, inputs: Inputs, dev: list[str], method: str) -> Cost:
    """Passages once, queries once for each candidate; and the questions to a language model, where one is asked.

    Racing drops candidates early, so this is the most that it takes.
    """
    prompts = recipe.prompts
    budget = BUDGETS[prompts.budget]
    if method == "none":
        return {}
    asks_for = -(-prompts.count // AT_ONCE) if recipe.llm else 0
    calls = {"gepa": budget.reflections, "generic": asks_for}.get(method, 0)
    cost: Cost = {"llm_calls": calls} if calls else {}
    if method == "generic":
        return cost
    search = recipe.merge.search.model_copy(
        update={"queries": prompts.queries or recipe.merge.search.queries}
    )
    queries, passages = pool_texts(search, inputs, dev)
    tried = {
        "gepa": budget.reflections,
        "edit": ROUNDS * PER_ROUND,
        "library": len(read_library(prompts.library).texts),
    }
    choosing, confirming = -(-queries // 2), queries // 2
    proof = (3 + RANDOM_INSTRUCTIONS) * confirming
    return {**cost, "texts_encoded": passages + (tried[method] + 1) * choosing + proof}


def cost_of_evaluation(recipe: Recipe, inputs: Inputs, variant: str) -> Cost:
    """Every test passage and query once; BM25 encodes none."""
    if variant == "bm25":
        return {}
    collections = [inputs.collection(spec) for spec in recipe.evaluate.tasks]
    texts = sum(len(c.corpus) + len(c.queries) for c in collections)
    return {"texts_encoded": texts, **passages_cut(recipe, inputs, recipe.evaluate.tasks)}


def cost_of_model(recipe: Recipe) -> Cost:
    """Bytes of the saved weights, where the base lies on this machine."""
    weights = list(Path(resolve_base(recipe.base)).glob("*.safetensors"))
    wider = 2 if recipe.merge.dtype == "float32" else 1  # bases are published in 16 bits
    return {"disk_bytes": wider * sum(file.stat().st_size for file in weights)} if weights else {}
