"""Where each negative of a training pair comes from, as its provenance says; and pairs with some negatives removed.

A stage that adds negatives appends them and leaves a record: `judged_negatives` (a list of ids), `mined` (an object
with parallel lists: ids, scores, ranks), `perturbed` (a list of records, or the only one), `generated` (a list of
records, or one for all). Lists have one entry for each negative of that origin, in order; whoever removes a negative
keeps them so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, replace
from typing import Any, Literal

from medley.pairs import TrainingPair

Origin = Literal["judged", "mined", "generated", "perturbed", "unknown"]
RECORDS: Mapping[str, Origin] = {
    "judged_negatives": "judged",
    "mined": "mined",
    "generated": "generated",
    "perturbed": "perturbed",
}
"""Keys of a pair's provenance that speak of its negatives."""


@dataclass(frozen=True)
class Negative:
    """One negative: its text, its origin, the kind of a generated one, and a mined one's score.

    `changes` are those that made a rewritten one of the positive, as its record has them.
    """

    text: str
    origin: Origin
    kind: str = ""
    score: float | None = None
    changes: Sequence[Mapping[str, Any]] = ()

    @property
    def label(self) -> str:
        """Origin and kind in words."""
        return f"{self.origin}: {self.kind}" if self.kind else self.origin


def negatives_of(pair: TrainingPair) -> list[Negative]:
    """The pair's negatives in order, each with its origin; `unknown` where the records do not say."""
    found: list[Negative] = []
    for key, start, stop in _segments(pair):
        record = pair.provenance.get(key)
        for position, text in enumerate(pair.negatives[start:stop]):
            entry = record[position] if isinstance(record, list) else record
            kind = entry.get("kind") if isinstance(entry, Mapping) else None
            scores = record.get("scores") if isinstance(record, Mapping) else None
            score = scores[position] if isinstance(scores, list) and len(scores) == stop - start else None
            score = score if isinstance(score, (int, float)) else None
            changes = entry.get("changes") if isinstance(entry, Mapping) else None
            found.append(
                Negative(
                    text,
                    RECORDS.get(key, "unknown"),
                    str(kind or ""),
                    score,
                    changes if isinstance(changes, list) else (),
                )
            )
    return found


def guard_entries(pair: TrainingPair, key: Literal["kept", "removed"]) -> list[Mapping[str, Any]]:
    """What the guard wrote of each negative that it kept or removed; nothing where the list is not the guard's."""
    guard = pair.provenance.get("guard")
    entries = guard.get(key) if isinstance(guard, Mapping) else None
    if not isinstance(entries, list) or not all(isinstance(entry, Mapping) for entry in entries):
        return []
    if key == "removed" and not all(isinstance(entry.get("text"), str) for entry in entries):
        return []
    return entries


def without_negatives(pair: TrainingPair, removed: Set[int]) -> TrainingPair:
    """The pair without the negatives at these positions, and without their entries in the records."""
    provenance = dict(pair.provenance)
    for key, start, stop in _segments(pair):
        if key in provenance:
            kept = [position for position in range(stop - start) if start + position not in removed]
            provenance[key] = _filtered(provenance[key], stop - start, kept)
            if not kept:
                del provenance[key]
    guard = provenance.get("guard")
    if isinstance(guard, Mapping):  # its verdicts on what it kept are parallel too
        kept = [position for position in range(len(pair.negatives)) if position not in removed]
        provenance["guard"] = {**guard, "kept": _filtered(guard.get("kept"), len(pair.negatives), kept)}
    negatives = tuple(text for index, text in enumerate(pair.negatives) if index not in removed)
    return replace(pair, negatives=negatives, provenance=provenance)


def _filtered(record: Any, size: int, kept: Sequence[int]) -> Any:
    """A record whose lists of this length have only the entries at the kept positions."""
    if isinstance(record, list) and len(record) == size:
        return [record[position] for position in kept]
    if isinstance(record, Mapping) and isinstance(record.get("ids"), list) and len(record["ids"]) == size:
        return {key: _filtered(value, size, kept) for key, value in record.items()}
    return record


def _segments(pair: TrainingPair) -> list[tuple[str, int, int]]:
    """(record's key, first position, end) for each stretch of negatives; key "" for those without a record."""
    total = len(pair.negatives)
    keys = [key for key in pair.provenance if key in RECORDS]
    sizes = {key: _size(key, pair.provenance[key]) for key in keys}
    open_ended = [key for key, size in sizes.items() if size is None]
    said = sum(size or 0 for size in sizes.values())
    if len(keys) == 1 and (open_ended or said == total):
        return [(keys[0], 0, total)]
    if said > total or len(open_ended) > 1:
        return [("", 0, total)]  # the records do not fit: somebody else changed the row
    rest = total - said
    sizes[""] = 0 if open_ended else rest
    # judged ones come with the pair; what no record speaks of was there before any stage added to it
    keys.sort(key=lambda key: key != "judged_negatives")
    keys.insert(keys[:1] == ["judged_negatives"], "")
    segments, start = [], 0
    for key in keys:
        size = sizes[key]
        stop = start + (rest if size is None else size)
        segments.append((key, start, stop))
        start = stop
    return [segment for segment in segments if segment[1] < segment[2]]


def _size(key: str, record: Any) -> int | None:
    """How many negatives a record stands for; None where it does not say."""
    if isinstance(record, list):
        return len(record)
    if key == "perturbed":
        return 1  # a single record stands alone
    return len(record["ids"]) if isinstance(record, Mapping) and isinstance(record.get("ids"), list) else None
