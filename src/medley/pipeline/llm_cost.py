"""What the language model's part of a step will cost, for `--plan`: the real prompts of a sample of the rows.

`llm_calls`, `llm_tokens` (prompts and replies, four bytes a token; a written passage is taken to be as long as the
positive) and, where the recipe has prices, `llm_usd`. Nothing is sent. What the cache holds already is not deducted.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from typing import TypeVar

from medley.collections import Passage
from medley.llm import LlmSettings, complete_structured, estimated_tokens
from medley.llm.estimate import Estimator
from medley.pairs import TrainingPair, iter_pairs
from medley.pipeline.cost import Cost, rows_of
from medley.pipeline.inputs import Inputs, expanded
from medley.recipe import Recipe, Source
from medley.synthesize.generated import Outcome

SAMPLE = 100
"""Rows whose prompts are built; drawn at random, so that a file sorted by length is no trap."""
QUERY_WORDS = "a query of about ten words, as people write them"
JUDGEMENT = '{"reason": "about twenty words on what the passage answers and what it leaves open", "grade": 1}'
Item = TypeVar("Item")


def cost_of_queries(recipe: Recipe, inputs: Inputs, name: str) -> Cost:
    """Calls and tokens for the queries of a source's corpus; nothing where its pairs are read."""
    from medley.synthesize.queries import pairs_from_corpus

    source = recipe.sources[name]
    if not source.writes_queries or source.corpus is None or recipe.llm is None:
        return {}
    sample = _drawn(inputs.corpus(source.corpus), recipe.seed)
    settings = source.written.model_copy(update={"consistency": None, "passages": None})
    estimator = Estimator(recipe.llm.name)
    _run(pairs_from_corpus(sample, estimator, settings, llm=recipe.llm, seed=recipe.seed), len(sample))
    written = [estimated_tokens(QUERY_WORDS)] * len(sample)
    return _cost(rows_of(source, inputs), estimator, written, recipe.llm)


def cost_of_generation(recipe: Recipe, inputs: Inputs, name: str) -> Cost:
    """Calls and tokens of the recipe's llm; nothing where negatives are made by perturbation."""
    from medley.synthesize.negatives import generate_negatives

    generated = recipe.negatives.generated
    if not recipe.negatives_by_llm or generated is None or recipe.llm is None:
        return {}
    rows, sample = _pairs(recipe.sources[name], inputs, recipe.seed)
    # mining comes first, and finds passages about as long as the positive
    shown = [pair if pair.negatives else replace(pair, negatives=(pair.positive,)) for pair in sample]
    settings = generated.llm.model_copy(update={"per_query": generated.per_query})
    estimator = Estimator(recipe.llm.name)
    _run(generate_negatives(shown, estimator, settings, llm=recipe.llm, seed=recipe.seed), len(shown))
    written = [estimated_tokens(pair.positive) for pair in sample]
    return _cost(rows * generated.per_query, estimator, written, recipe.llm)


def cost_of_judge(recipe: Recipe, inputs: Inputs, name: str, per_row: int) -> Cost:
    """Calls and tokens of the guard's judge for so many negatives a row; at most, where it is asked about suspects."""
    from medley.guard.judge import Judgement, requests_for

    judge = recipe.negatives.guard.judge
    if judge is None or recipe.llm is None:
        return {}
    rows, sample = _pairs(recipe.sources[name], inputs, recipe.seed)
    questions = [(pair.instruction, pair.query, pair.positive) for pair in sample]
    estimator = Estimator(recipe.llm.name)
    requests = requests_for(questions, judge, seed=recipe.seed)
    deque(complete_structured(estimator, requests, Judgement, concurrency=1), maxlen=0)
    return _cost(rows * per_row, estimator, [estimated_tokens(JUDGEMENT)] * len(sample), recipe.llm)


def sum_of(*costs: Cost) -> Cost:
    """Costs added up by what they are costs of."""
    return {
        key: sum(cost.get(key, 0) for cost in costs) for key in dict.fromkeys(k for c in costs for k in c)
    }


def _run(outcomes: Iterator[Outcome], rows: int) -> None:
    """Let a stage build its prompts; it is left before its end, where it would say that the budget is spent."""
    deque(islice(outcomes, rows), maxlen=0)


def _cost(calls: int, estimator: Estimator, written: Sequence[int], llm: LlmSettings) -> Cost:
    if not estimator.prompt_tokens or not written:
        return {"llm_calls": calls, "llm_tokens": 0}
    prompt = calls * sum(estimator.prompt_tokens) / len(estimator.prompt_tokens)
    reply = calls * sum(min(tokens, llm.max_tokens) for tokens in written) / len(written)
    cost: Cost = {"llm_calls": calls, "llm_tokens": prompt + reply}
    return cost if llm.prices is None else cost | {"llm_usd": llm.prices.usd(prompt, reply)}


def _pairs(source: Source, inputs: Inputs, seed: int) -> tuple[int, list[TrainingPair]]:
    """How many pairs a source has, and a sample of them (of a collection: of its queries and passages)."""
    if source.pairs is not None:
        rows, sample = _reservoir(iter_pairs(expanded(source.pairs)), seed)
        rows = min(rows, source.limit or rows)
    else:
        rows = rows_of(source, inputs)
        if source.corpus is not None:
            queries, passages = [QUERY_WORDS], inputs.corpus(source.corpus)
        else:
            collection = inputs.collection(f"{source.collection}:{source.split}")
            queries, passages = list(collection.queries.values()), collection.corpus
        sample = [
            TrainingPair(queries[index % len(queries)], passage.full_text)
            for index, passage in enumerate(_drawn(passages, seed))
        ]
    return rows, [replace(pair, instruction=pair.instruction or source.instruction) for pair in sample]


def _drawn(corpus: Sequence[Passage], seed: int) -> list[Passage]:
    return [corpus[i] for i in random.Random(seed).sample(range(len(corpus)), min(SAMPLE, len(corpus)))]


def _reservoir(items: Iterable[Item], seed: int) -> tuple[int, list[Item]]:
    """Their number, and SAMPLE of them drawn uniformly in one pass (Vitter's algorithm R)."""
    rng, count = random.Random(seed), 0
    sample: list[Item] = []
    for count, item in enumerate(items, start=1):
        if len(sample) < SAMPLE:
            sample.append(item)
        elif (place := rng.randrange(count)) < SAMPLE:
            sample[place] = item
    return count, sample
