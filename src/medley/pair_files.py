"""Rows of a pairs file, whatever kind of file it is: JSON Lines, Parquet, CSV or TSV, a folder that `datasets` saved.

A folder with several splits (a DatasetDict) is named with one of them: `FOLDER:SPLIT`. Out: rows as plain objects with
the place of each for messages; what they mean is for pairs.py.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from medley.csv_file import read_csv
from medley.errors import PairsError
from medley.files import parse_json, read_jsonl, read_object
from medley.text_file import as_path, check_file

SPLITS = "dataset_dict.json"
"""What `datasets` writes into a folder that holds several splits."""
TABLES = (".csv", ".tsv", ".csv.gz", ".tsv.gz")
LISTS = ("positive_passages", "negative_passages", "pos", "neg", "negatives")
"""Keys that hold lists and nothing else; under `positive` and `negative` there may be a text or a list."""
AS_JSON = (*LISTS, "positives", "provenance")
"""Columns of a table that are written as JSON."""


def pair_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (place for messages, row) of each row of a pairs file. Raises PairsError for what cannot be read."""
    place = located(path)
    if place.is_dir():
        yield from _dataset(place)
    elif place.suffix == ".parquet":
        yield from _parquet(place)
    elif place.name.endswith(TABLES):
        yield from _table(place)
    else:
        for number, row in read_jsonl(place, PairsError):
            yield f"{place}:{number}", row


def located(path: Path) -> Path:
    """The file or folder that `path` or `FOLDER:SPLIT` stands for.

    Raises PairsError naming the splits where a folder has several and none of them is named.
    """
    if (as_path(str(path), PairsError) / SPLITS).is_file():
        splits = _splits(path)
        raise PairsError(f"{path}: holds the splits {', '.join(splits)}; name one, as in {path}:{splits[0]}.")
    folder, colon, split = str(path).rpartition(":")
    if not colon or path.exists() or not Path(folder).is_dir():
        return path
    if not (Path(folder) / SPLITS).is_file():
        raise PairsError(f"{path}: {folder} holds no splits; name the folder alone.")
    if split not in _splits(Path(folder)):
        raise PairsError(f"{path}: no split {split!r}; there are {', '.join(_splits(Path(folder)))}.")
    return Path(folder) / split


def _splits(folder: Path) -> list[str]:
    splits = read_object(folder / SPLITS, PairsError).get("splits")
    if not isinstance(splits, list) or not splits or not all(isinstance(split, str) for split in splits):
        raise PairsError(f"{folder / SPLITS}: names no splits; save the data set again.")
    return splits


def _dataset(folder: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Rows of a folder that `datasets.Dataset.save_to_disk` wrote."""
    with _explained(folder):
        import datasets

        rows = datasets.load_from_disk(str(folder))
        for index in range(len(rows)):
            yield f"{folder}: row {index}", rows[index]


def _parquet(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Rows of a Parquet file, one batch of them in memory at a time."""
    check_file(path, PairsError)
    with _explained(path):
        import pyarrow.parquet

        index = 0
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=1024):
                for row in batch.to_pylist():
                    yield f"{path}: row {index}", row
                    index += 1


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Turn what pyarrow and datasets raise for broken data into one sentence."""
    import pyarrow

    try:
        yield
    except (OSError, ValueError, KeyError, TypeError, AttributeError, pyarrow.ArrowException) as problem:
        reason = (str(problem).strip().splitlines() or [type(problem).__name__])[0].rstrip(".")
        raise PairsError(f"{path}: cannot be read as a data set ({reason}); write it again.") from problem


def _table(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Rows of a CSV or TSV; a column that holds lists holds them as JSON."""
    rows = read_csv(
        path,
        lambda names: not {"query", "anchor"}.isdisjoint(names),
        PairsError,
        columns="query and positive",
    )
    for where, cells in rows:
        yield where, {name: _value(name, cell, where) for name, cell in cells.items()}


def _value(name: str, cell: str, where: str) -> Any:
    if name not in AS_JSON or not cell.strip():
        return cell
    hint = f'in a table {name} is JSON, such as ["one", "two"]' + (
        "; or write one text a column, negative_1, negative_2" if name == "negatives" else ""
    )
    return parse_json(cell, f"{where}: {name}", PairsError, hint=hint)
