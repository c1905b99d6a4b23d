"""What the results say: means, differences with their tests, wins and losses, the queries that changed most.

Input: results.json as read. Output: frozen values that verdict, charts and page put into words and pictures.
Every difference and p-value comes from medley.statistics; this module only chooses what is compared with what.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from medley.report.formats import Results
from medley.report.reading import ALL, BASE, BM25, EXPERT, MERGED

METRIC = "ndcg_at_10"
ALPHA = 0.05
"""A corrected p-value below this is called a difference."""
PerQuery = Mapping[str, Mapping[str, float]]
"""nDCG@10 by task and query id."""


@dataclass(frozen=True)
class Difference:
    """Mean nDCG@10 of `a` minus that of `b`, its confidence interval, p-value and Holm-corrected p-value."""

    a: str
    b: str
    value: float
    low: float
    high: float
    p: float
    p_holm: float
    task: str = ""
    detectable: float | None = None
    queries: int = 0

    @property
    def word(self) -> str:
        """`better`, `worse` (a than b), or `open` where the corrected test shows no difference."""
        if self.p_holm >= ALPHA:
            return "open"
        return "better" if self.value > 0 else "worse"


@dataclass(frozen=True)
class QueryChange:
    """One test query with its score under two variants."""

    task: str
    id: str
    text: str
    before: float
    after: float

    @property
    def change(self) -> float:
        """After minus before."""
        return self.after - self.before


@dataclass(frozen=True)
class Tally:
    """Queries of one task on which merged is better, as good, worse than another variant."""

    variant: str
    task: str
    wins: int
    ties: int
    losses: int


def variants_of(results: Results) -> list[str]:
    """Variants in the order of the tables: merged, all, experts, what else there is, base, BM25."""
    rank = {MERGED: 0, ALL: 1, BASE: 4, BM25: 5}
    return sorted(results.variants, key=lambda name: rank.get(name, 2 if name.startswith(EXPERT) else 3))


def tasks_of(results: Results) -> list[tuple[str, list[str]]]:
    """(group, tasks) in order; tasks in no group come last under an empty name, each task once."""
    present = list(dict.fromkeys(task for scores in results.variants.values() for task in scores.tasks))
    groups = [(name, [task for task in tasks if task in present]) for name, tasks in results.groups.items()]
    grouped = {task for _, tasks in groups for task in tasks}
    rest = [task for task in present if task not in grouped]
    return [(name, tasks) for name, tasks in [*groups, ("", rest)] if tasks]


def score(results: Results, variant: str, task: str, metric: str = METRIC) -> float | None:
    """A variant's score on a task; None where it was not evaluated there."""
    scores = results.variants[variant].tasks.get(task)
    return None if scores is None else getattr(scores, metric)


def mean(results: Results, variant: str, tasks: Sequence[str], metric: str = METRIC) -> float | None:
    """Mean over tasks; None unless the variant has them all, since means over other tasks don't compare."""
    values = [score(results, variant, task, metric) for task in tasks]
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known and len(known) == len(values) else None


def per_query(results: Results, variant: str, tasks: Sequence[str]) -> dict[str, dict[str, float]] | None:
    """A variant's nDCG@10 by task and query; None where a task or its queries are missing."""
    found = {}
    for task in tasks:
        scores = results.variants[variant].tasks.get(task) if variant in results.variants else None
        queries = (
            {query: row[METRIC] for query, row in scores.per_query.items() if METRIC in row} if scores else {}
        )
        if not queries:
            return None
        found[task] = queries
    return found or None


def tested(results: Results, rivals: Sequence[str], tasks: Sequence[str], *, seed: int) -> list[Difference]:
    """Merged against each rival, over the mean of the tasks both have and over each: one family for Holm.

    A rival that was not scored on every task, query by query, is left out. Raises InputError where two variants were
    scored on different queries of a task.
    """
    from medley.statistics.family import compare_family

    names = [MERGED, *rivals]
    scores = {name: found for name in names if (found := per_query(results, name, tasks))}
    if MERGED not in scores:
        return []
    pairs = [(MERGED, rival) for rival in rivals if rival in scores]
    family = compare_family({name: [one] for name, one in scores.items()}, pairs, seed=seed)
    return [
        Difference(
            one.a, one.b, one.found.difference, one.found.ci_low, one.found.ci_high, one.found.p_value, one.p_holm,
            one.task, one.found.detectable, one.found.queries,
        )
        for one in family
    ]  # fmt: skip


def over_base(results: Results, tasks: Sequence[str], *, seed: int) -> list[Difference]:
    """Each variant minus the base with its interval; nothing is tested, so p is 1."""
    from medley.statistics.compare import difference_interval

    theirs = per_query(results, BASE, tasks) if BASE in results.variants else None
    found = []
    for variant in variants_of(results):
        ours = per_query(results, variant, tasks) if variant != BASE else None
        if ours and theirs:
            found.append(Difference(variant, BASE, *difference_interval(ours, theirs, seed=seed), 1.0, 1.0))
    return found


def half_width(results: Results, variant: str, task: str) -> float | None:
    """Half of the 95 % interval of a variant's mean on a task: 1.96 standard errors over queries."""
    rows = list((per_query(results, variant, [task]) or {}).get(task, {}).values())
    if len(rows) < 2:
        return None
    centre = sum(rows) / len(rows)
    variance = sum((row - centre) ** 2 for row in rows) / (len(rows) - 1)
    return 1.96 * (variance / len(rows)) ** 0.5


def best_expert(results: Results, tasks: Sequence[str]) -> str | None:
    """The expert with the highest mean on test: chosen in hindsight, which favours it over merged."""
    means = {name: mean(results, name, tasks) for name in results.variants if name.startswith(EXPERT)}
    known = {name: value for name, value in means.items() if value is not None}
    return max(known, key=lambda name: known[name], default=None)


def tallies(results: Results, variant: str, tasks: Sequence[str]) -> list[Tally]:
    """Wins, ties and losses of merged against a variant, by task."""
    from medley.statistics.paired import TIE, paired_differences

    found = []
    for task in tasks:
        ours, theirs = per_query(results, MERGED, [task]), per_query(results, variant, [task])
        if ours and theirs:
            gaps_Q = paired_differences(ours, theirs)[task]
            wins, losses = int((gaps_Q > TIE).sum()), int((gaps_Q < -TIE).sum())
            found.append(Tally(variant, task, wins, len(gaps_Q) - wins - losses, losses))
    return found


def query_changes(results: Results, tasks: Sequence[str]) -> list[QueryChange]:
    """Every test query under base and merged, most improved first; ties by task and id."""
    changes = []
    for task in tasks:
        before, after = per_query(results, BASE, [task]), per_query(results, MERGED, [task])
        if before and after:
            texts = results.queries.get(task, {})
            changes += [
                QueryChange(task, query, texts.get(query, ""), before[task][query], value)
                for query, value in after[task].items()
            ]
    return sorted(changes, key=lambda change: (-change.change, change.task, change.id))
