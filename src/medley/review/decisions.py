"""From an expert's decisions to pairs: drop a negative, make it a positive, put back what the guard removed.

Rows keep their order; promoted passages make new rows at the end. Each decision stands in the pair's provenance under
`review`, with the text where it is no negative any more.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from medley.errors import PairsError
from medley.origins import guard_entries, negatives_of, without_negatives
from medley.overlap import normal_form
from medley.pairs import TrainingPair, numbered
from medley.review.sheet import Item, find_item
from medley.review.table import Decision


@dataclass(frozen=True)
class Reviewed:
    """The pairs after the review, and counts of what changed."""

    pairs: list[TrainingPair]
    counts: dict[str, Any]


def apply_verdicts(pairs: Sequence[TrainingPair], decisions: Sequence[Decision]) -> Reviewed:
    """Apply the decisions to the pairs that the sheet was made from.

    Counts: `rows` (before), `decided`, one for each verdict, `negatives_removed`, `negatives_restored`,
    `pairs_removed`, `pairs_added`, and `guard_agrees` of `guard_compared` where the guard had a verdict too. Raises
    PairsError with file:line when an id is in no row, or a verdict does not fit its item.
    """
    by_pair: dict[tuple[int, str], list[tuple[Item, Decision]]] = defaultdict(list)
    for decision in decisions:
        item = find_item(pairs, decision.id, decision.where)
        if item.status == "pair" and decision.verdict == "promote":
            raise PairsError(
                f"{decision.where}: {decision.id} is a pair without a negative, so nothing can be promoted; "
                "write keep or drop."
            )
        by_pair[item.row, item.pair.positive].append((item, decision))
    counts: Counter[str] = Counter()
    kept: list[TrainingPair] = []
    added: list[TrainingPair] = []
    retracted: set[tuple[str, str]] = set()
    for row, pair in numbered(pairs):
        decided = by_pair.get((row, pair.positive), [])
        _count(decided, counts)
        retracted |= {
            _key(pair.query, item.text)
            for item, decision in decided
            if item.guard_verdict == "promote" and decision.verdict in ("keep", "drop")
        }
        after, new = _apply(pair, row, decided)
        added += new
        if any(_drops_pair(item, decision) for item, decision in decided):
            counts["pairs_removed"] += 1
        else:
            kept.append(after)
    added = _not_there_yet(kept, added)
    result = _consistent([*kept, *added], added, retracted, counts)
    counts["pairs_added"] = len(added)
    return Reviewed(result, {"rows": len(pairs), **_in_order(counts), "rows_after": len(result)})


def _apply(
    pair: TrainingPair, row: int, decided: Sequence[tuple[Item, Decision]]
) -> tuple[TrainingPair, list[TrainingPair]]:
    """One row after its decisions, and the rows that its promoted passages make."""
    if not decided:
        return pair, []
    gone = {
        item.position
        for item, decision in decided
        if item.status == "negative" and decision.verdict in ("drop", "promote")
    }
    restored = [item for item, decision in decided if item.status == "removed" and decision.verdict == "keep"]
    after = _restored(without_negatives(pair, gone), restored)
    record = [_record(item, decision) for item, decision in decided]
    earlier = pair.provenance.get("review")
    after = replace(
        after,
        provenance={**after.provenance, "review": [*(earlier if isinstance(earlier, list) else ()), *record]},
    )
    promoted = [
        replace(
            after,
            positive=item.text,
            provenance={
                **{
                    key: value
                    for key, value in after.provenance.items()
                    if key not in ("positive_id", "guard")
                },
                "promoted": {"row": row, "origin": item.kind, "by": "review"},
            },
        )
        for item, decision in decided
        if decision.verdict == "promote"
    ]
    return after, promoted


def _restored(pair: TrainingPair, items: Sequence[Item]) -> TrainingPair:
    """Put removed passages back, after the judged ones and before all others: no record speaks of what stands there."""
    if not items:
        return pair
    provenance = dict(pair.provenance)
    places = {item.position for item in items}
    first = sum(negative.origin == "judged" for negative in negatives_of(pair))
    kept = guard_entries(pair, "kept")
    provenance["guard"] = {
        "kept": [*kept[:first], *({"verdict": "keep", "signal": "review"} for _ in items), *kept[first:]],
        "removed": [
            entry for place, entry in enumerate(guard_entries(pair, "removed")) if place not in places
        ],
    }
    negatives = (*pair.negatives[:first], *(item.text for item in items), *pair.negatives[first:])
    return replace(pair, negatives=negatives, provenance=provenance)


def _record(item: Item, decision: Decision) -> dict[str, Any]:
    entry = {
        "verdict": decision.verdict,
        "text": item.text,
        "origin": item.kind,
        "note": decision.note,
        "reviewers": dict(decision.said),
    }
    return {key: value for key, value in entry.items() if value}


def _drops_pair(item: Item, decision: Decision) -> bool:
    return decision.verdict == "drop pair" or (item.status == "pair" and decision.verdict == "drop")


def _count(decided: Sequence[tuple[Item, Decision]], counts: Counter[str]) -> None:
    for item, decision in decided:
        if decision.verdict:
            counts["decided"] += 1
            counts[decision.verdict.replace(" ", "_")] += 1
        if decision.note:
            counts["notes"] += 1
        removes = item.status == "negative" and decision.verdict in ("drop", "promote")
        counts["negatives_removed"] += removes
        counts["negatives_restored"] += item.status == "removed" and decision.verdict == "keep"
        if item.guard_verdict and decision.verdict in ("keep", "drop", "promote"):
            counts["guard_compared"] += 1
            counts["guard_agrees"] += (item.guard_verdict == "keep") == (decision.verdict == "keep")


def _in_order(counts: Mapping[str, int]) -> dict[str, int]:
    names = ("decided", "keep", "drop", "promote", "drop_pair", "notes", "negatives_removed", "negatives_restored",
             "pairs_removed", "pairs_added", "guard_compared", "guard_agrees")  # fmt: skip
    return {name: counts.get(name, 0) for name in names}


def _key(query: str, passage: str) -> tuple[str, str]:
    return normal_form(query), normal_form(passage)


def _not_there_yet(kept: Sequence[TrainingPair], added: Sequence[TrainingPair]) -> list[TrainingPair]:
    """The new rows without those whose query and positive some row has already."""
    known = {_key(pair.query, pair.positive) for pair in kept}
    new: dict[tuple[str, str], TrainingPair] = {}
    for pair in added:
        key = _key(pair.query, pair.positive)
        if key not in known:
            new.setdefault(key, pair)
    return list(new.values())


def _consistent(
    pairs: Sequence[TrainingPair],
    added: Sequence[TrainingPair],
    retracted: set[tuple[str, str]],
    counts: Counter[str],
) -> list[TrainingPair]:
    """No new positive stays a negative in another row of its query, no retracted promotion stays a row."""
    positives = {_key(pair.query, pair.positive) for pair in added}
    result = []
    for pair in pairs:
        if "promoted" in pair.provenance and _key(pair.query, pair.positive) in retracted:
            counts["pairs_removed"] += 1
            continue
        gone = {i for i, text in enumerate(pair.negatives) if _key(pair.query, text) in positives}
        counts["negatives_removed"] += len(gone)
        result.append(without_negatives(pair, gone) if gone else pair)
    return result
