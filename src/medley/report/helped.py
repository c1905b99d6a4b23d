"""What helped: the way from the base to the merged model in steps, and this run beside others that differ in one thing.

In: results, prompts, other runs. Out: `Step`s for the waterfall. Only what was measured on the same test queries
stands in it; the instruction's gain is on dev and is said apart. Whether hard negatives or prompts helped takes a
second run without them: `medley report RUN --beside OTHER`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from medley.report import findings
from medley.report.formats import Results
from medley.report.reading import ALL, BASE, EXPERT, MERGED, Run


@dataclass(frozen=True)
class Step:
    """From one height to the next: what was done, and the 95 % interval of its difference (None: not tested)."""

    name: str
    start: float
    end: float
    low: float | None = None
    high: float | None = None


def steps(results: Results, tasks: Sequence[str], *, seed: int) -> list[Step]:
    """Base, pre-training where there is some, training the experts (their mean), merging them."""
    from medley.statistics.compare import difference_interval

    experts = [name for name in results.variants if name.startswith(EXPERT)]
    scores = {
        name: found
        for name in (BASE, "pretrained", *experts, MERGED)
        if name in results.variants and (found := findings.per_query(results, name, tasks))
    }
    known = [name for name in experts if name in scores]
    if BASE not in scores or MERGED not in scores or not known:
        return []
    average = {
        task: {query: sum(scores[name][task][query] for name in known) / len(known) for query in rows}
        for task, rows in scores[MERGED].items()
    }
    way = [("", scores[BASE])]
    way += [("pre-training", scores["pretrained"])] if "pretrained" in scores else []
    way += [(f"training ({len(known)} expert{'s' if len(known) > 1 else ''}, their mean)", average)]
    way += [("merging them", scores[MERGED])]
    made = []
    for (_, before), (name, after) in pairwise(way):
        _, low, high = difference_interval(after, before, seed=seed)
        made.append(Step(name, _mean(before), _mean(after), low, high))
    return made


def instruction_gain(run: Run) -> tuple[float, float] | None:
    """Dev score of the instruction that was started from and of the chosen one, for the model that is shared."""
    prompt = run.prompts.get(ALL)
    if prompt is None:
        return None
    scored = {candidate.instruction: candidate.score for candidate in prompt.candidates}
    before, after = scored.get(prompt.seed_instruction), scored.get(prompt.instruction)
    return None if before is None or after is None else (before, after)


@dataclass(frozen=True)
class Beside:
    """Merged of this run against merged of another: how the other differs, and the tested difference."""

    name: str
    changes: tuple[str, ...]
    found: findings.Difference


def beside(run: Run, others: Sequence[Run], *, seed: int) -> list[Beside]:
    """This run's merged model against that of other runs, on the tests that all share; corrected for their number."""
    from medley.statistics.family import compare_family

    runs = [one for one in others if one.results is not None and MERGED in one.results.variants]
    if run.results is None or MERGED not in run.results.variants or not runs:
        return []
    tasks = [
        task
        for task in run.results.variants[MERGED].tasks
        if all(one.results and task in one.results.variants[MERGED].tasks for one in runs)
    ]
    names = [MERGED, *(f"{number} {one.manifest.name}" for number, one in enumerate(runs))]
    scores = {
        name: [findings.per_query(one.results, MERGED, tasks) or {}]
        for name, one in zip(names, [run, *runs], strict=True)
        if one.results is not None
    }
    tested = compare_family(scores, [(MERGED, name) for name in names[1:]], seed=seed, by_task=False)
    return [
        Beside(
            one.manifest.name if one.manifest.name != run.manifest.name else one.folder.name,
            tuple(_changes(one.recipe, run.recipe)),
            findings.Difference(
                MERGED, one.folder.name, t.found.difference, t.found.ci_low, t.found.ci_high, t.found.p_value, t.p_holm,
                detectable=t.found.detectable, queries=t.found.queries,
            ),
        )
        for one, t in zip(runs, tested, strict=True)
    ]  # fmt: skip


def _changes(old: Mapping[str, Any], new: Mapping[str, Any], where: str = "") -> list[str]:
    """Settings that differ, `negatives.condition: none -> mixed`; names of runs are no settings."""
    found = []
    for key in dict.fromkeys((*old, *new)):
        before, after = old.get(key), new.get(key)
        place = f"{where}{key}"
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            found += _changes(before, after, f"{place}.")
        elif before != after and place != "name":
            found.append(f"{place}: {_short(before)} \u2192 {_short(after)}")
    return found


def _short(value: Any) -> str:
    text = "none" if value is None else str(value)
    return text if len(text) <= 40 else f"{text[:39]}\u2026"


def _mean(scores: Mapping[str, Mapping[str, float]]) -> float:
    return sum(sum(rows.values()) / len(rows) for rows in scores.values()) / len(scores)
