"""Reading a run folder into values: a file that is not there yet is None, a malformed one is an error.

Input: the folder that run.py and the pipeline write. Output: `Run`, all that the rest of the report sees.
Pairs files are not read here (they may hold millions of rows); samples.py looks at their first rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from medley.errors import InputError, RecipeError
from medley.files import read_json
from medley.report.formats import (
    Case,
    LeakFinding,
    Manifest,
    Prompt,
    Results,
    Search,
    Training,
    VariantScores,
)
from medley.text_file import read_text
from medley.yaml_file import parse_yaml

ALL = "all"
"""The model trained on all data together, among the trained and in the results."""
MERGED, BASE, BM25, EXPERT = "merged", "base", "bm25", "expert:"

_MADE = ("made", "negatives")
_WITHOUT = ("unchanged", "pairs_without_mined_negative")
_ROWS = ("rows", "pairs", "queries")

Format = TypeVar("Format", bound=BaseModel)


@dataclass(frozen=True)
class Outcome:
    """What a stage did to a source: negatives made, rows that got none, drops by rule, other counts."""

    made: int
    without: int
    dropped: Mapping[str, int]
    other: Mapping[str, int]


@dataclass(frozen=True)
class Source:
    """One source of training pairs: rows, leaking rows by collection; None where a stage has made nothing."""

    name: str
    pairs: int | None
    leaks: Mapping[str, int]
    mined: Outcome | None
    generated: Outcome | None


@dataclass(frozen=True)
class Run:
    """All that the report shows, apart from the texts of training pairs."""

    folder: Path
    manifest: Manifest
    recipe: Mapping[str, Any]
    recipe_text: str
    results: Results | None
    search: Search | None
    prompts: Mapping[str, Prompt]
    trainings: Mapping[str, Training]
    sources: tuple[Source, ...]
    cases: tuple[Case, ...] = ()
    leaks: Mapping[str, tuple[LeakFinding, ...]] = field(default_factory=dict)
    """For each source, what recurs in dev and test collections."""


def read_run(folder: Path, outcome: Path | None = None) -> Run:
    """Read a run folder; manifest, recipe, results and failures from another folder where `outcome` names one.

    Raises InputError when it holds no run or a file in it is malformed.
    """
    outcome = outcome or folder
    if not (outcome / "manifest.json").is_file():
        raise InputError(
            f"{outcome}: holds no manifest.json, so it is no run folder; give the --out of a `medley run`."
        )
    manifest = _read(outcome / "manifest.json", Manifest)
    recipe_text, recipe = _recipe(outcome / "recipe.yaml")
    stages = folder / "stages"
    experts = list(_mapping(recipe, "experts"))
    search_file = stages / "merge" / "search" / "search.json"
    tuned = stages / "merge" / "instruction" / "prompt.json"
    return Run(
        folder=folder,
        manifest=manifest,
        recipe=recipe,
        recipe_text=recipe_text,
        results=_results(outcome, stages),
        search=_read(search_file, Search) if search_file.is_file() else None,
        prompts={
            **_each(stages / "prompts", "prompt.json", Prompt, [*experts, ALL]),
            **({MERGED: _read(tuned, Prompt)} if tuned.is_file() else {}),
        },
        trainings=_each(stages / "train", "training.json", Training, [*experts, ALL]),
        sources=tuple(
            _source(stages, name)
            for name in _names(stages / "sources", "artefact.json", _mapping(recipe, "sources"))
        ),
        cases=_list(outcome / "failures.json", Case),
        leaks={
            name: tuple(
                finding
                for path in (
                    stages / "sources" / name / "leaks.json",
                    stages / "leaks" / "sources" / f"{name}.json",
                )
                for finding in _list(path, LeakFinding)
            )
            for name in _names(stages / "sources", "artefact.json", _mapping(recipe, "sources"))
        },
    )


def _recipe(path: Path) -> tuple[str, Mapping[str, Any]]:
    """The recipe as text and as plain data: runs of other versions must open, so it is not validated."""
    if not path.is_file():
        return "", {}
    text = read_text(path, RecipeError)
    recipe = parse_yaml(text, str(path), RecipeError)
    if not isinstance(recipe, dict):
        raise RecipeError(
            f"{path}: a recipe is a mapping of keys; this file holds a {type(recipe).__name__}."
        )
    return text, recipe


def _mapping(recipe: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = recipe.get(key)
    return value if isinstance(value, Mapping) else {}


def _results(outcome: Path, stages: Path) -> Results | None:
    """results.json, or what the evaluations made so far give before the run has written it."""
    path = outcome / "results.json"
    if path.is_file():
        results = _read(path, Results)
    else:
        variants = _each(stages / "evaluate", "results.json", VariantScores, [MERGED])
        results = Results(variants=dict(variants))
    return results if any(variant.tasks for variant in results.variants.values()) else None


def _each(folder: Path, file: str, form: type[Format], order: Iterable[str]) -> dict[str, Format]:
    return {name: _read(folder / name / file, form) for name in _names(folder, file, order)}


def _names(folder: Path, file: str, order: Iterable[str]) -> list[str]:
    """Names of the artefacts that have the file: in the given order, then the rest by name."""
    found = sorted(path.parent.name for path in folder.glob(f"[!.]*/{file}"))
    first = [name for name in order if name in found]
    return [*first, *(name for name in found if name not in first)]


def _source(stages: Path, name: str) -> Source:
    path = stages / "sources" / name / "artefact.json"
    artefact = _checked(read_json(path, InputError), path, lambda value: isinstance(value, dict), "an object")
    summary = artefact.get("summary") or {}
    _checked(summary, path, lambda value: isinstance(value, dict), "an object under `summary`")
    pairs = summary.get("pairs")
    _checked(
        pairs,
        path,
        lambda value: value is None or isinstance(value, int),
        "a whole number under `summary.pairs`",
    )
    return Source(
        name=name,
        pairs=pairs,
        leaks=_counts(summary.get("leaks") or {}, path),
        mined=_outcome(stages / "mine" / name / "counts.json"),
        generated=_outcome(stages / "synthesize" / name / "counts.json"),
    )


def _outcome(path: Path) -> Outcome | None:
    """counts.json of mining (`negatives`, `dropped`) or of synthesis (`made`, `unchanged`, kinds)."""
    if not path.is_file():
        return None
    value = _checked(
        read_json(path, InputError), path, lambda found: isinstance(found, dict), "an object of counts"
    )
    counts = _counts({key: count for key, count in value.items() if key != "dropped"}, path)
    special = {*_MADE, *_WITHOUT, *_ROWS}
    return Outcome(
        made=next((counts[key] for key in _MADE if key in counts), 0),
        without=next((counts[key] for key in _WITHOUT if key in counts), 0),
        dropped=_counts(value.get("dropped") or {}, path),
        other={key: count for key, count in counts.items() if key not in special},
    )


def _counts(value: Any, path: Path) -> dict[str, int]:
    def is_counts(found: Any) -> bool:
        return isinstance(found, dict) and all(isinstance(count, int) for count in found.values())

    return dict(_checked(value, path, is_counts, "an object of whole numbers"))


def _checked(value: Any, path: Path, fits: Callable[[Any], bool], wanted: str) -> Any:
    if not fits(value):
        raise InputError(f"{path}: expected {wanted}; delete its folder and run the recipe again.")
    return value


def _list(path: Path, form: type[Format]) -> tuple[Format, ...]:
    """The entries of a JSON list; none where the file is not there."""
    if not path.is_file():
        return ()
    value = _checked(read_json(path, InputError), path, lambda found: isinstance(found, list), "a list")
    return tuple(_validated(entry, path, form) for entry in value)


def _read(path: Path, form: type[Format]) -> Format:
    return _validated(read_json(path, InputError), path, form)


def _validated(value: Any, path: Path, form: type[Format]) -> Format:
    try:
        return form.model_validate(value)
    except ValidationError as problem:
        first = problem.errors()[0]
        key = ".".join(str(part) for part in first["loc"]) or "the file"
        message = first["msg"][0].lower() + first["msg"][1:]
        raise InputError(f"{path}: {key}: {message}; run the stage that writes it again.") from problem
