"""The review sheet as one HTML page: it loads nothing, works from a disk, with a keyboard and with a screen reader.

The page takes the report's style sheet. Its script keeps verdicts in the browser until they are saved as the same CSV
that table.py writes and reads.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from medley.fingerprint import fingerprint
from medley.review.sheet import Item
from medley.review.table import COLUMNS, cells_of

STYLES = Path(__file__).parent.parent / "report"


def render_sheet(items: Sequence[Item], *, name: str, total: int) -> str:
    """The page for these items; `name` is the pairs file's, `total` its number of rows."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([Path(__file__).parent, STYLES]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    stem = name.partition(".")[0] or "pairs"
    return environment.get_template("review.html").render(
        items=[(item, cells_of(item)) for item in items],
        name=name,
        total=total,
        columns=json.dumps(COLUMNS),
        file_name=f"{stem}-review.csv",
        sheet=fingerprint([item.id for item in items]),
    )
