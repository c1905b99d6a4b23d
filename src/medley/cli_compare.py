"""`medley compare`: paired tests between result files, the first against each other one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from medley.cli_options import Json, Seed
from medley.errors import CollectionError
from medley.progress import say
from medley.tables import print_comparisons


def compare(
    results: Annotated[
        list[str],
        typer.Argument(
            help="results.json files of `medley evaluate`, or of runs; several seeds of one model joined by commas."
        ),
    ],
    as_json: Json = False,
    seed: Seed = 13,
    by_task: Annotated[
        bool, typer.Option(help="Test each task as well as their mean; all p-values are corrected together.")
    ] = True,
) -> None:
    """Test the first result against each of the others."""
    from medley.leaks.chosen import warning
    from medley.statistics.family import comparison_rows

    _refuse_repeats(results)
    variants: dict[str, list[Mapping[str, Any]]] = {}
    for argument in results:
        for name, runs in _variants(argument).items():
            variants[name if len(results) == 1 else _joined(argument, name)] = runs
    if len(variants) < 2:
        raise CollectionError("there is only one result; give at least two to compare.")
    first, *others = variants
    rows = comparison_rows(variants, [(first, other) for other in others], seed=seed, by_task=by_task)
    for name, tasks in {name: tasks for row in rows for name, tasks in row["chosen_on"].items()}.items():
        for task, chosen in tasks.items():
            say(warning(name, task, chosen))
    print_comparisons(rows, as_json)


def _refuse_repeats(arguments: Sequence[str]) -> None:
    """Refuse the same results twice, under whatever name: as another model they differ by nothing, and as another
    seed they would count one training twice. Raises CollectionError naming both."""
    from medley.files import read_json

    seen: list[tuple[str, Any]] = []
    for path in (part for argument in arguments for part in _files(argument)):
        content = read_json(Path(path), CollectionError)
        same = next((name for name, other in seen if other == content), None)
        if same is not None:
            where = "is given twice" if same == path else f"holds the same results as {same}"
            raise CollectionError(f"{path}: {where}; give the results of another model or seed.")
        seen.append((path, content))


def _joined(argument: str, name: str) -> str:
    return f"{argument}:{name}" if name else argument


def _variants(argument: str) -> dict[str, list[Mapping[str, Any]]]:
    """Variant (empty for a file with one) -> its results, one for each seed."""
    files = [_read(Path(part)) for part in _files(argument)]
    names = [name for name in files[0] if all(name in file for file in files)]
    if not names:
        raise CollectionError(f"{argument}: the files share no variant; join only seeds of the same models.")
    return {name: [file[name] for file in files] for name in names}


def _files(argument: str) -> Sequence[str]:
    """The files that commas join; a comma that belongs to a name stays."""
    return [argument] if Path(argument).is_file() else argument.split(",")


def _read(path: Path) -> dict[str, Mapping[str, Any]]:
    from pydantic import ValidationError

    from medley.files import read_json
    from medley.recipe_problems import explain
    from medley.report.formats import Compared

    content = read_json(path, CollectionError)
    if not isinstance(content, dict) or not ("variants" in content or "tasks" in content):
        raise CollectionError(f"{path}: has neither `tasks` nor `variants`; give a results.json.")
    found = content if "variants" in content else {"variants": {"": content}}
    try:
        Compared.model_validate(found)
    except ValidationError as problem:
        raise CollectionError(f"{path}: {explain(problem, Compared)}") from problem
    return dict(found["variants"])
