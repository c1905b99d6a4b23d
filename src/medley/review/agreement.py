"""Several reviewers on one sheet: what they agree on is decided, the rest goes to somebody who settles it.

In: the decisions of each reviewer, and those that settle disputes. Out: one decision for each item that nobody disputes
(any more), the disputed ones with what each reviewer said, and how far the reviewers agree.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from medley.review.table import Decision


@dataclass(frozen=True)
class Combined:
    """Decisions to apply, disputes by item (what each reviewer decided), and JSON-like counts."""

    decisions: list[Decision]
    disputed: dict[str, list[Decision]]
    counts: dict[str, Any]


def combine(sheets: Sequence[Sequence[Decision]], settled: Sequence[Decision] = ()) -> Combined:
    """Join what reviewers decided, item by item; a verdict in `settled` stands above all others.

    An item on which verdicts differ is decided by `settled` only. Counts, with several reviewers: `reviewers` (verdicts
    by each), `judged_by_several` items, of which they `agree` on all verdicts, `disputed` (not settled), `settled`,
    `agreement` (the share of pairs of verdicts on one item that are the same) and `alpha` (see `krippendorff_alpha`).
    """
    said: dict[str, list[Decision]] = defaultdict(list)
    for decision in (decision for sheet in sheets for decision in sheet):
        said[decision.id].append(decision)
    final = {decision.id: decision for decision in settled}
    decisions, disputed = [], {}
    for item_id in dict.fromkeys((*said, *final)):
        own = said.get(item_id, [])
        verdicts = {decision.verdict for decision in own if decision.verdict}
        if item_id in final and final[item_id].verdict:
            decisions.append(_joined([final[item_id], *own], final[item_id].verdict))
        elif len(verdicts) > 1:
            disputed[item_id] = own
        else:
            decisions.append(_joined(own or [final[item_id]], next(iter(verdicts), "")))
    return Combined(decisions, disputed, _counts(said.values(), disputed, final))


def _joined(own: Sequence[Decision], verdict: str) -> Decision:
    """One decision with everybody's notes, and what each reviewer said where there are several."""
    notes = [f"{one.reviewer}: {one.note}" if len(own) > 1 else one.note for one in own if one.note]
    said = {one.reviewer: one.verdict for one in own if one.verdict} if len(own) > 1 else {}
    return replace(own[0], verdict=verdict, note="; ".join(notes), said=said)


def _counts(
    said: Iterable[Sequence[Decision]], disputed: Mapping[str, object], final: Mapping[str, Decision]
) -> dict[str, Any]:
    units = [[one.verdict for one in own if one.verdict] for own in said]
    reviewers = Counter(one.reviewer for own in said for one in own if one.verdict)
    if len(reviewers) < 2 and not final:
        return {}
    several = [unit for unit in units if len(unit) > 1]
    pairs = [(a, b) for unit in several for i, a in enumerate(unit) for b in unit[i + 1 :]]
    alpha = krippendorff_alpha(units)
    return {
        "reviewers": dict(sorted(reviewers.items())),
        "judged_by_several": len(several),
        "agree": sum(len(set(unit)) == 1 for unit in several),
        "disputed": len(disputed),
        "settled": sum(bool(one.verdict) for one in final.values()),
        "agreement": round(sum(a == b for a, b in pairs) / len(pairs), 4) if pairs else None,
        "alpha": None if alpha is None else round(alpha, 4),
    }


def krippendorff_alpha(units: Iterable[Sequence[str]]) -> float | None:
    """How far verdicts agree beyond chance: 1 for all, 0 for what chance gives; for any number of reviewers.

    `units` are the verdicts on each item, of whoever judged it. Krippendorff's alpha for nominal data: 1 - D_o / D_e
    with the coincidences within items and those of all verdicts together (Krippendorff, Computing Krippendorff's
    Alpha-Reliability, 2011, section C). None where no item has two verdicts, or where all verdicts are the same one,
    so that chance agreement leaves nothing to measure.
    """
    several = [Counter(unit) for unit in units if len(unit) > 1]
    totals: Counter[str] = sum(several, Counter())
    n = totals.total()
    expected = n * n - sum(count * count for count in totals.values())
    if not expected:
        return None
    observed = sum(
        (unit.total() ** 2 - sum(count * count for count in unit.values())) / (unit.total() - 1)
        for unit in several
    )
    return 1 - (n - 1) * observed / expected
