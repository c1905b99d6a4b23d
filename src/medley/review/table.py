"""The review sheet as CSV: written so that a spreadsheet shows it safely, read back whatever the spreadsheet did to it.

Written: UTF-8 with a byte-order mark (or Excel takes it for another encoding), commas, CRLF, every text that a
spreadsheet would take for a formula behind an apostrophe, also after a semicolon, a tab or a line break: there a cell
begins for a spreadsheet whose separator is another. Read: by column names in any order, with further columns,
separated by comma, semicolon or tab, as UTF-8, UTF-16 or Windows-1252, with quoted line breaks and empty lines.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from medley.csv_file import separator_of
from medley.errors import PairsError
from medley.files import write_text
from medley.progress import say
from medley.review.sheet import Item
from medley.text_file import check_file, decoded, encoding_of

COLUMNS = (
    "id",
    "verdict",
    "note",
    "query",
    "positive",
    "negative",
    "kind",
    "score",
    "guard",
    "source",
    "instruction",
)
SAID = "reviewers"
"""The column of a sheet of disputes that holds what each reviewer said."""
WORDS = {
    "keep": "keep", "negative": "keep",
    "drop": "drop", "remove": "drop",
    "promote": "promote", "positive": "promote",
    "drop pair": "drop pair",
}  # fmt: skip
"""What an expert may write into `verdict`, and what it means; empty: not decided."""
LONGEST_CELL = 30_000
"""Excel cuts a cell at 32,767 characters and pushes the rest into the next rows."""
_SIGNS = "=+\\-@＝＋－＠'"
_FORMULA = rf"(?=[^\S\t\r\n]*[{_SIGNS}])"
_UNSAFE = re.compile(rf"(\A(?=[\t\r\n])|(?:\A|[;\t\r\n]){_FORMULA})")
_SAFE = re.compile(rf"(\A|[;\t\r\n])'(?:(?<=\A')(?=[\t\r\n])|{_FORMULA})")


@dataclass(frozen=True)
class Decision:
    """What an expert decided about the item `id`; `where` is file:line.

    `said` has the verdicts of several reviewers by name, where they were joined.
    """

    id: str
    verdict: str
    note: str
    where: str
    reviewer: str = ""
    said: Mapping[str, str] = field(default_factory=dict)


def safe(text: str) -> str:
    """A text that no spreadsheet takes for a formula: an apostrophe goes before what would begin one, blanks aside."""
    return _UNSAFE.sub(r"\1'", text)


def unsafe(text: str) -> str:
    """The text that `safe` was given."""
    return _SAFE.sub(r"\1", text)


def cells_of(item: Item) -> dict[str, str]:
    """An item's cells by column, not yet made safe."""
    texts = {
        "id": item.id,
        "verdict": "",
        "note": "",
        "query": item.pair.query,
        "positive": item.pair.positive,
        "negative": item.text,
        "kind": item.kind,
        "score": "" if item.score is None else f"{item.score:.4g}",
        "guard": item.guard,
        "source": item.pair.source,
        "instruction": item.pair.instruction,
    }
    return {name: _short(text) for name, text in texts.items()}


def _short(text: str) -> str:
    return text if len(text) <= LONGEST_CELL else text[: LONGEST_CELL - 1] + "…"


def write_sheet(
    path: Path,
    items: Sequence[Item],
    *,
    said: Mapping[str, Sequence[Decision]] | None = None,
    force: bool = True,
) -> None:
    """Write the sheet as a table, one line and an empty verdict for each item; without `force` never over a file.

    `said` has, by item id, what reviewers decided: it goes into a further column.
    """
    stream = io.StringIO(newline="")
    writer = csv.writer(stream, lineterminator="\r\n")
    writer.writerow([*COLUMNS, SAID] if said is not None else COLUMNS)
    for item in items:
        cells = cells_of(item)
        row = [cells["score"] if name == "score" else safe(cells[name]) for name in COLUMNS]
        writer.writerow(row if said is None else [*row, safe(_opinions(said[item.id]))])
    write_text(path, "\ufeff" + stream.getvalue(), force=force)


def _opinions(decisions: Sequence[Decision]) -> str:
    return "; ".join(
        f"{one.reviewer}: {one.verdict or 'undecided'}{f' ({one.note})' if one.note else ''}"
        for one in decisions
    )


def read_sheet(path: Path, reviewer: str = "") -> list[Decision]:
    """The decisions of a sheet that came back; lines without a verdict and without a note are left out.

    A column `reviewer` says who decided where several did; what it leaves open is `reviewer`'s. Raises PairsError with
    file:line for a file that is no such sheet, an unknown verdict, or two verdicts of one reviewer on one item.
    """
    check_file(path, PairsError, missing="no such file; check the path of the sheet")
    decided: dict[tuple[str, str], Decision] = {}
    for where, cells in _records(_decoded(path), path):
        item_id, said = cells["id"].strip(), " ".join(cells["verdict"].replace("_", " ").lower().split())
        note = unsafe(cells.get("note", "")).strip()
        if not item_id and (said or note):
            raise PairsError(f"{where}: a verdict without an id; leave the column `id` as it was.")
        if said and said not in WORDS:
            raise PairsError(
                f"{where}: the verdict {cells['verdict']!r} is not known; write keep, drop, promote or drop pair, "
                "or leave it empty."
            )
        if not item_id or not (said or note):
            continue
        who = unsafe(cells.get("reviewer", "")).strip() or reviewer
        decision = Decision(item_id, WORDS.get(said, ""), note, where, who)
        earlier = decided.setdefault((item_id, who), decision)
        if earlier.verdict != decision.verdict:
            raise PairsError(
                f"{where}: {item_id} is {decision.verdict or 'undecided'!r} here and "
                f"{earlier.verdict or 'undecided'!r} at {earlier.where}; keep one of the two lines or, if two people "
                "decided, name them in a column `reviewer`."
            )
        if decision.note not in earlier.note:
            decided[item_id, who] = replace(
                earlier, note="; ".join(filter(None, (earlier.note, decision.note)))
            )
    return list(decided.values())


def _decoded(path: Path) -> str:
    raw = path.read_bytes()
    try:
        return decoded(raw, str(path), PairsError)
    except PairsError:
        if encoding_of(raw) is not None:
            raise
    say(f"{path}: is not UTF-8; read as Windows-1252, so a note in another alphabet may come out wrong.")
    return raw.decode("cp1252", errors="replace")


def _records(text: str, path: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """(file:line, cells by column) of each line of the table below its head."""
    skipped = 0
    if text[:4].lower() == "sep=":  # how Excel is told the separator
        text, skipped = text.partition("\n")[2], 1
    separator = _separator(text, path)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    names: list[str] = []
    while True:
        where = f"{path}:{reader.line_num + 1 + skipped}"
        try:
            cells = next(reader, None)
        except csv.Error as problem:
            raise PairsError(
                f"{where}: the table breaks off here ({problem}); a quotation mark is missing or too many: "
                "save the sheet again as CSV."
            ) from problem
        if cells is None:
            return
        if not any(cell.strip() for cell in cells):
            continue
        if not names:
            names = [_name(cell) for cell in cells]
            continue
        by_name = dict(zip(names, cells, strict=False))
        yield where, {"id": "", "verdict": "", **by_name}


def _separator(text: str, path: Path) -> str:
    """The separator under which the first line that holds anything names `id` and `verdict`."""
    first = next((line for line in text.splitlines() if line.strip(" ,;\t")), "")
    separator = separator_of(first, lambda names: {"id", "verdict"} <= {_name(name) for name in names})
    if separator is not None:
        return separator
    raise PairsError(
        f"{path}:1: no columns named id and verdict; give a sheet that `medley review` wrote, with its first line."
    )


def _name(cell: str) -> str:
    return cell.strip().lower()
