"""What stands on a review sheet: one item for each negative, for each that the guard removed, or for a bare pair.

An item's id holds its place and a fingerprint of its texts, so that a sheet can be applied to the very rows it was
made from and to no others. It begins with a letter: a spreadsheet would turn `12e7` into a number.
"""

from __future__ import annotations

import random
import re
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any, Literal

from medley.errors import PairsError
from medley.fingerprint import fingerprint
from medley.origins import guard_entries, negatives_of
from medley.pairs import TrainingPair, numbered

Status = Literal["negative", "removed", "pair"]
_LETTERS: dict[Status, str] = {"negative": "n", "removed": "x", "pair": "p"}
_ID = re.compile(r"r(\d+)([nxp])(\d+)-[0-9a-f]{8}")


@dataclass(frozen=True)
class Item:
    """One thing to judge: a negative in its place, a passage that the guard removed, or a pair without either.

    `row` is the pair's row in its file: the positives of one row share it, and their ids differ in the fingerprint.
    """

    row: int
    status: Status
    position: int
    pair: TrainingPair
    text: str = ""
    kind: str = ""
    score: float | None = None
    evidence: Mapping[str, Any] | None = None
    """The guard's entry in the provenance, where it left one."""

    @property
    def id(self) -> str:
        """Place and fingerprint, such as `r12n0-3fa9c1d2`."""
        texts = fingerprint([self.pair.query, self.pair.positive, self.text])
        return f"r{self.row}{_LETTERS[self.status]}{self.position}-{texts[:8]}"

    @property
    def guard_verdict(self) -> str:
        """What the guard decided: keep, drop, promote; "" where nothing was measured."""
        entry = self.evidence or {}
        return str(entry.get("verdict", "")) if entry.get("signal") else ""

    @property
    def guard(self) -> str:
        """The guard's verdict and its evidence in words."""
        entry = self.evidence or {}
        signal = str(entry.get("signal", "")).replace("_", " ")
        told = (
            f" ({signal} {_plain(entry.get('value'))}, limit {_plain(entry.get('limit'))})" if signal else ""
        )
        reason = f": {entry['reason']}" if entry.get("reason") else ""
        return f"{self.guard_verdict}{told}{reason}"


def _plain(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, (int, float)) else "none"


def items_of(pair: TrainingPair, row: int) -> list[Item]:
    """Everything in a row that can be judged."""
    kept = guard_entries(pair, "kept")
    verdicts = kept if len(kept) == len(pair.negatives) else [None] * len(pair.negatives)
    items = [
        Item(row, "negative", position, pair, n.text, n.label, n.score, verdicts[position])
        for position, n in enumerate(negatives_of(pair))
    ]
    items += [
        Item(row, "removed", position, pair, entry["text"], str(entry.get("origin", "")), None, entry)
        for position, entry in enumerate(guard_entries(pair, "removed"))
    ]
    return items or [Item(row, "pair", 0, pair)]


def draw_items(pairs: Sequence[TrainingPair], *, count: int, seed: int) -> list[Item]:
    """`count` items drawn at random from all there are (fewer if there are fewer), in the order of the rows."""
    rows = list(numbered(pairs))
    places = [(at, place) for at, pair in enumerate(pairs) for place in range(_number_of_items(pair))]
    drawn = sorted(random.Random(seed).sample(places, min(count, len(places))))
    return [items_of(rows[at][1], rows[at][0])[place] for at, place in drawn]


def _number_of_items(pair: TrainingPair) -> int:
    return len(pair.negatives) + len(guard_entries(pair, "removed")) or 1


def find_item(pairs: Sequence[TrainingPair], item_id: str, where: str) -> Item:
    """The item that an id names. Raises PairsError with `where` (file:line) when no row has it."""
    found = _ID.fullmatch(item_id)
    if found is None:
        raise PairsError(f"{where}: {item_id!r} is no id of a review sheet; leave the column `id` as it was.")
    row = int(found[1])

    def row_of(place: int) -> int:
        own = pairs[place].row
        return place if own is None else own

    first = bisect_left(range(len(pairs)), row, key=row_of)
    for place in takewhile(lambda place: row_of(place) == row, range(first, len(pairs))):
        for item in items_of(pairs[place], row):
            if item.id == item_id:
                return item
    raise PairsError(
        f"{where}: {item_id} is in no row of the pairs; the sheet was made from another file, or that file has "
        "changed since: give the very file that the sheet was made from (several sheets of it are read at once)."
    )
