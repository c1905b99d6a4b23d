"""What a language model, or perturbation in its place, writes for a run: queries for a corpus, and hard negatives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from medley.collections import Passage
from medley.errors import MedleyError
from medley.pairs import TrainingPair
from medley.pipeline.inputs import Inputs
from medley.positives import PositiveKeys
from medley.progress import say
from medley.recipe import Recipe
from medley.synthesize.generated import Generated, collected


def write_queries(recipe: Recipe, inputs: Inputs, name: str, cache: Path) -> Generated:
    """A source's pairs: queries written for its corpus, those kept that pass its consistency filter."""
    from medley.any_model import open_model
    from medley.llm import open_chat
    from medley.synthesize.queries import pairs_from_corpus

    source = recipe.sources[name]
    if recipe.llm is None or source.corpus is None:
        raise MedleyError(f"sources.{name}: there is no language model, or no corpus, to write queries")
    chat = open_chat(recipe.llm, cache=cache)
    filter = source.written.consistency
    outcomes = pairs_from_corpus(
        inputs.corpus(source.corpus),
        chat,
        source.written,
        llm=recipe.llm,
        seed=recipe.seed,
        instruction=source.instruction,
        source=name,
        retriever=open_model(filter.retriever) if filter and filter.retriever != "bm25" else None,
    )
    written = collected(outcomes)
    say(f"{chat.name}: {chat.ledger.sentence()}")
    return replace(written, ledger=chat.ledger)


def write_negatives(
    recipe: Recipe,
    pairs: Sequence[TrainingPair],
    passages: Sequence[Passage] | None,
    cache: Path,
) -> Generated:
    """The pairs with generated negatives added, by the recipe's llm or by perturbation.

    `passages` is the corpus that perturbation learns from; without one it is the positives.
    """
    settings = recipe.negatives.generated
    if settings is None:
        raise MedleyError("nothing to generate: the recipe's negatives.generated is null")
    if recipe.llm is not None and recipe.negatives_by_llm:
        from medley.llm import open_chat
        from medley.synthesize.negatives import generate_negatives

        chat = open_chat(recipe.llm, cache=cache)
        known = PositiveKeys(pairs)
        asked = settings.llm.model_copy(update={"per_query": settings.per_query})
        outcomes = generate_negatives(
            pairs, chat, asked, llm=recipe.llm, seed=recipe.seed, total=len(pairs), positives=known
        )
        written = collected(outcomes)
        say(f"{chat.name}: {chat.ledger.sentence()}")
        return replace(written, ledger=chat.ledger)
    from medley.synthesize.perturb import perturb_negatives

    corpus = passages or [Passage(str(row), pair.positive) for row, pair in enumerate(pairs)]
    rewritten = settings.perturbation.model_copy(update={"per_query": settings.per_query})
    return perturb_negatives(pairs, corpus, rewritten, seed=recipe.seed)
