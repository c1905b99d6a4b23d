"""Rows as a pandas data frame, which a notebook shows as a table."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas


def frame(rows: Iterable[Mapping[str, Any]]) -> pandas.DataFrame:
    """A row for each mapping, a column for each key."""
    import pandas

    return pandas.DataFrame.from_records(list(rows))
