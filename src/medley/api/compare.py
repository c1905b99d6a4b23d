"""`medley.compare`: results in, paired tests of the first against each other one out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from medley.api.evaluate import Evaluation
from medley.api.frames import frame
from medley.errors import CollectionError
from medley.files import read_json
from medley.leaks.chosen import warning
from medley.progress import say
from medley.recipe_problems import explain
from medley.report.formats import Compared
from medley.statistics.family import comparison_rows

if TYPE_CHECKING:
    import pandas

Results = Path | str | Evaluation
"""A results.json of `medley evaluate` or of a run, or an evaluation that is in memory."""


@dataclass(frozen=True)
class Comparisons:
    """A row for each comparison as `medley compare --json` prints it, with its tasks under `by_task`."""

    rows: list[dict[str, Any]]

    def to_frame(self) -> pandas.DataFrame:
        """A row for each comparison, the mean (`task` is empty) before its tasks: difference, interval, p, verdict."""
        return frame(
            {key: value for key, value in one.items() if key not in ("by_task", "chosen_on")}
            for row in self.rows
            for one in (row, *row["by_task"])
        )


def compare(
    *results: Results | Sequence[Results],
    seed: int = 13,
    by_task: bool = True,
) -> Comparisons:
    """Test results in pairs, the first against each other one; a sequence holds several seeds of one model.

    One file with several variants is compared within itself. All p-values of a call are corrected together (Holm).
    A model that is scored on queries it was chosen on is told. Raises CollectionError where the same results are given
    twice, or where there is nothing to compare.
    """
    given = [_seeds(one) for one in results]
    _refuse_repeats([one for seeds in given for one in seeds])
    variants: dict[str, list[Mapping[str, Any]]] = {}
    for seeds in given:
        label = ",".join(one.label for one in seeds)
        for name, runs in _variants(label, seeds).items():
            variants[name if len(given) == 1 else ":".join(filter(None, (label, name)))] = runs
    if len(variants) < 2:
        raise CollectionError("there is only one result; give at least two to compare.")
    first, *others = variants
    rows = comparison_rows(variants, [(first, other) for other in others], seed=seed, by_task=by_task)
    for name, tasks in {name: tasks for row in rows for name, tasks in row["chosen_on"].items()}.items():
        for task, chosen in tasks.items():
            say(warning(name, task, chosen))
    return Comparisons(rows)


@dataclass(frozen=True)
class _File:
    """What one file or evaluation holds, and what it is called."""

    label: str
    content: Any


def _seeds(given: Results | Sequence[Results]) -> list[_File]:
    several = [given] if isinstance(given, (str, Path, Evaluation)) else given
    return [_opened(one) for one in several]


def _opened(given: Results) -> _File:
    if isinstance(given, Evaluation):
        return _File(next(iter(given.table)), given.as_json())
    return _File(str(given), read_json(Path(given), CollectionError))


def _refuse_repeats(files: Sequence[_File]) -> None:
    """Refuse the same results twice, under whatever name: as another model they differ by nothing, and as another
    seed they would count one training twice. Raises CollectionError naming both."""
    seen: list[_File] = []
    for file in files:
        same = next((other for other in seen if other.content == file.content), None)
        if same is not None:
            again = (
                "is given twice" if same.label == file.label else f"holds the same results as {same.label}"
            )
            raise CollectionError(f"{file.label}: {again}; give the results of another model or seed.")
        seen.append(file)


def _variants(label: str, seeds: Sequence[_File]) -> dict[str, list[Mapping[str, Any]]]:
    """Variant (empty for a file with one) -> its results, one for each seed."""
    found = [_by_variant(one) for one in seeds]
    names = [name for name in found[0] if all(name in other for other in found)]
    if not names:
        raise CollectionError(f"{label}: the files share no variant; join only seeds of the same models.")
    return {name: [one[name] for one in found] for name in names}


def _by_variant(file: _File) -> Mapping[str, Mapping[str, Any]]:
    content = file.content
    if not isinstance(content, dict) or not ("variants" in content or "tasks" in content):
        raise CollectionError(f"{file.label}: has neither `tasks` nor `variants`; give a results.json.")
    found = content if "variants" in content else {"variants": {"": content}}
    try:
        Compared.model_validate(found)
    except ValidationError as problem:
        raise CollectionError(f"{file.label}: {explain(problem, Compared)}") from problem
    return dict(found["variants"])
