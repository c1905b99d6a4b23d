"""Whether a rewritten negative still answers: what the rewriting left, held against what it changed.

In: a positive, its rewriting and the record of changes. Out: two texts, the sentences that changed, as they stood in
the positive, and those that stayed. A rewritten negative is near its positive on purpose, so a limit on its own score
says nothing: a retriever hardly sees another number. But where the sentences that stayed score at least what those that
went scored for the query, what answers it is most likely still there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from medley.sentences import sentence_spans


class Parts(NamedTuple):
    """The sentences of a positive that a rewriting changed, and those that it left: "" where it left none."""

    changed: str
    left: str


def parts_of(positive: str, negative: str, changes: Sequence[Mapping[str, Any]]) -> Parts | None:
    """The parts of a positive that a record of changes tells apart; None where it does not lead from this positive to
    this negative.
    """
    edits = sorted(
        (start, str(change.get("from", "")), str(change.get("to", "")))
        for change in changes
        if isinstance(change, Mapping)
        for start in change.get("at") or ()
        if isinstance(start, int)
    )
    made, position = [], 0
    for start, old, new in edits:
        made += [positive[position:start], new]
        if start < position or positive[start : start + len(old)] != old:
            return None
        position = start + len(old)
    if not edits or "".join((*made, positive[position:])) != negative:
        return None
    changed: list[str] = []
    left: list[str] = []
    for first, end in sentence_spans(positive):
        touched = any(start < end and max(start + len(old), start + 1) > first for start, old, _ in edits)
        (changed if touched else left).append(positive[first:end])
    return Parts(" ".join(changed), " ".join(left))
