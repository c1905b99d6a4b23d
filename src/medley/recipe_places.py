"""Where a recipe's inputs are: local paths made absolute, so that a run folder can be moved about, and a split after
every collection (dev to choose, test to prove).

In: a recipe that has been checked. Out: the same with its places said in full. `$VARIABLES` stay as they are written.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from medley.collections import split_spec
from medley.errors import RecipeError
from medley.text_file import as_path

if TYPE_CHECKING:
    from medley.recipe import Expert, Recipe
    from medley.recipe_data import Source
    from medley.synthesize.queries import QuerySettings


def with_places(recipe: Recipe) -> Recipe:
    """The recipe with absolute local paths and a split after every collection (dev to choose, test to prove)."""

    def placed(specs: Sequence[str], default_split: str) -> list[str]:
        named = [split_spec(spec, default_split) for spec in specs]
        return [f"{_absolute(name)}:{split}" for name, split in named]

    def source(given: Source) -> Source:
        given_places = {"collection": given.collection, "corpus": given.corpus}
        places = {key: value and _absolute(value) for key, value in given_places.items()}
        places["pairs"] = given.pairs and _absolute_pairs(given.pairs)
        return given.model_copy(update={**places, "queries": given.queries and queries(given.queries)})

    def queries(given: QuerySettings) -> QuerySettings:
        filter = given.consistency
        placed = filter and filter.model_copy(update={"retriever": _absolute(filter.retriever)})
        return given.model_copy(update={"consistency": placed})

    def expert(given: Expert) -> Expert:
        return given.model_copy(update={"dev": None if given.dev is None else placed(given.dev, "dev")})

    mined, pretrain, guard = recipe.negatives.mined, recipe.pretrain, recipe.negatives.guard
    evaluate, merge = recipe.evaluate, recipe.merge
    data = {
        "base": _absolute(recipe.base),
        "sources": {name: source(given) for name, given in recipe.sources.items()},
        "experts": {name: expert(given) for name, given in recipe.experts.items()},
        "negatives": recipe.negatives.model_copy(
            update={
                "mined": mined and mined.model_copy(update={"retriever": _absolute(mined.retriever)}),
                "guard": guard.model_copy(
                    update={"retriever": guard.retriever and _absolute(guard.retriever)}
                ),
            }
        ),
    }
    chosen = {
        "pretrain": pretrain
        and pretrain.model_copy(
            update={
                "collections": placed(pretrain.collections, "train"),
                "documents": [_absolute(path) for path in pretrain.documents],
            }
        ),
        "prompts": recipe.prompts.model_copy(
            update={"library": recipe.prompts.library and Path(_absolute(str(recipe.prompts.library)))}
        ),
        "merge": merge.model_copy(update={"dev": placed(merge.dev, "dev")}),
        "evaluate": evaluate.model_copy(
            update={
                "groups": {name: placed(specs, "test") for name, specs in evaluate.groups.items()},
                "instructions": {
                    placed([spec], "test")[0]: text for spec, text in evaluate.instructions.items()
                },
                "systems": {name: _absolute_system(system) for name, system in evaluate.systems.items()},
            }
        ),
    }
    return recipe.model_copy(update=data | chosen)


def _absolute_system(system: str) -> str:
    """A system's name with an absolute path, where it is one; `+bm25` stays behind it."""
    base = system.removesuffix("+bm25")
    return system if base in ("merged", "base", "all") else _absolute(base) + system[len(base) :]


def _absolute_pairs(path: str) -> str:
    """A pairs file's absolute path; the split of a data-set folder stays behind it."""
    folder, colon, split = path.rpartition(":")
    if colon and as_path(folder, RecipeError).is_dir() and not as_path(path, RecipeError).exists():
        return f"{_absolute(folder)}:{split}"
    return _absolute(path)


def _absolute(path: str) -> str:
    expanded = as_path(path, RecipeError)
    keep = "$" in path or path in ("tiny", "bm25") or path.startswith("demo/")
    return path if keep or not expanded.exists() else str(expanded.resolve())
