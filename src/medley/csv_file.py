"""Tables as text: cells, quoted or not, between commas, semicolons or tabs, and names of columns in the first line.

In: CSV or TSV as spreadsheets and pandas write it, plain or gzipped. Out: rows as cells by column, with file:line.
"""

from __future__ import annotations

import contextlib
import csv
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path

from medley.errors import InputError
from medley.text_file import MAX_LINE_BYTES, read_lines


def read_csv(
    path: Path, is_head: Callable[[Collection[str]], bool], error: type[InputError], *, columns: str
) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield (file:line, cells by column) of each row below the first line; empty rows are left out.

    The separator is the one under which `is_head` knows the first line's names; `columns` says in words which those
    are. Raises `error` with file:line for another first line, quotation marks that do not close, and a row with more or
    fewer cells than there are columns.
    """
    lines = (line for _, line in read_lines(path, error))
    first = next((line for line in lines if line.strip(" ,;\t\r\n")), None)
    if first is None:
        return
    separator = separator_of(first, is_head)
    if separator is None:
        raise error(
            f"{path}:1: no columns named {columns} (found: {first.strip()[:80]}); name them in the first line."
        )
    rows = _rows(path, _chained(first, lines), separator, error)
    _, names = next(rows)
    twice = next((name for name in names if name and names.count(name) > 1), None)
    if twice is not None:
        raise error(f"{path}:1: two columns are named {twice!r}; name each once.")
    for where, cells in rows:
        if len(cells) != len(names):
            raise error(
                f"{where}: {len(cells)} cells, and the first line names {len(names)} columns; put quotation marks "
                "around texts that hold the separator."
            )
        yield where, {name: cell for name, cell in zip(names, cells, strict=True) if name}


def separator_of(first: str, is_head: Callable[[Collection[str]], bool]) -> str | None:
    """What stands between the cells of a first line: that under which `is_head` knows the names; None for none."""
    # process-wide, and never lowered: Python's own bound of 131,072 characters is below the texts that people have
    csv.field_size_limit(max(MAX_LINE_BYTES, csv.field_size_limit()))
    for separator in (",", ";", "\t"):
        with contextlib.suppress(csv.Error):
            if is_head([cell.strip() for cell in next(csv.reader([first], delimiter=separator), [])]):
                return separator
    return None


def _rows(
    path: Path, lines: Iterable[str], separator: str, error: type[InputError]
) -> Iterator[tuple[str, list[str]]]:
    reader = csv.reader(lines, delimiter=separator, strict=True)
    while True:
        where = f"{path}:{reader.line_num + 1}"
        try:
            cells = next(reader, None)
        except csv.Error as problem:
            raise error(
                f"{where}: the table breaks off here ({problem}); a quotation mark is missing or too many."
            ) from problem
        if cells is None:
            return
        if reader.line_num == 1:
            cells = [cell.strip() for cell in cells]
        if any(cell.strip() for cell in cells):
            yield where, cells


def _chained(first: str, rest: Iterable[str]) -> Iterator[str]:
    yield first
    yield from rest
