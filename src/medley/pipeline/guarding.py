"""The guard inside a run: what mining and synthesis made is looked at before anything else sees it.

The guarded rows stay in step with the source's; rows of promoted passages go to a file of their own beside them, and
the experts that train on that kind of negatives get them too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from medley.any_model import open_model
from medley.guard.decide import Guarded, guard_negatives
from medley.llm import open_chat
from medley.pairs import TrainingPair, pairs_from_collection, read_pairs, write_pairs
from medley.pipeline.inputs import Inputs
from medley.recipe import Recipe

PROMOTED = "promoted.jsonl"


def guard_rows(
    recipe: Recipe,
    inputs: Inputs,
    name: str,
    pairs: Sequence[TrainingPair],
    judged: Sequence[TrainingPair],
    cache: Path,
) -> Guarded:
    """The guard of the recipe over a source's rows.

    Beside the `judged` rows it knows all that the source's collection judges, also what the source's limit left out.
    """
    settings = recipe.negatives.guard
    source = recipe.sources[name]
    if source.collection is not None:
        judged = [*judged, *pairs_from_collection(inputs.collection(f"{source.collection}:{source.split}"))]
    scoring = settings.retriever not in (None, "bm25")
    return guard_negatives(
        pairs,
        settings,
        seed=recipe.seed,
        retriever=open_model(str(settings.retriever)) if scoring else None,
        chat=open_chat(recipe.llm, cache=cache) if settings.judge and recipe.llm else None,
        concurrency=recipe.llm.concurrency if recipe.llm else 1,
        judged=judged,
    )


def write_promoted(folder: Path, promoted: Sequence[TrainingPair]) -> None:
    """Write the rows of promoted passages, if there are any."""
    if promoted:
        write_pairs(folder / PROMOTED, promoted)


def read_promoted(folder: Path | None) -> list[TrainingPair]:
    """The rows of promoted passages in an artefact; none where the guard promoted nothing."""
    return read_pairs(folder / PROMOTED) if folder is not None and (folder / PROMOTED).is_file() else []


def with_guard_counts(counts: Mapping[str, Any], guarded: Guarded, made: str) -> dict[str, Any]:
    """A stage's counts after the guard: under `made` what is left; what went, under `dropped` and `promoted`."""
    told = guarded.counts
    gone = told["negatives"] - told["kept"]
    judged = {f"judge_{key}": number for key, number in told.get("judge", {}).items()}
    if not gone:
        return {**counts, **judged}
    dropped = {f"guard_{signal}": number for signal, number in told["dropped"].items()}
    return {
        **counts,
        made: counts[made] - gone,
        "dropped": {**counts.get("dropped", {}), **dropped},
        **({"guard_promoted": told["promoted"]} if told["promoted"] else {}),
        **judged,
    }
