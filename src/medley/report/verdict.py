"""The verdict: what the tests allow to be said of the merged model, in words with numbers.

Input: the differences of merged to every other variant. Output: headline, sentence, a claim for each rival.
"No difference shown" is said where the corrected test finds none; it never says that two models are equal.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from medley.report.findings import Difference, best_expert, mean, per_query, tasks_of
from medley.report.formats import Results
from medley.report.numbers import count, p_value, score, signed, variant_in_words
from medley.report.reading import ALL, BASE, BM25, EXPERT, MERGED


@dataclass(frozen=True)
class Claim:
    """Merged against one rival: how the rival is called, and the tested difference."""

    name: str
    found: Difference

    @property
    def in_numbers(self) -> str:
        """`+.034 over the base (p < .001)`; of a loss `−.012 against ...`."""
        p = p_value(self.found.p_holm)
        if self.found.word == "open":
            return f"against {self.name}: no difference shown ({signed(self.found.value)}, {p})"
        side = "over" if self.found.word == "better" else "against"
        return f"{signed(self.found.value)} {side} {self.name} ({p})"


@dataclass(frozen=True)
class Verdict:
    """What stands on the first screen."""

    headline: str
    sentence: str
    claims: tuple[Claim, ...] = ()


def judge(results: Results | None, differences: Sequence[Difference]) -> Verdict:
    """Put the results into words; says plainly what is missing in an unfinished run."""
    if results is None:
        return Verdict("Nothing has been evaluated yet.", "This report shows what the run has made so far.")
    tasks = [task for _, names in tasks_of(results) for task in names]
    if MERGED not in results.variants:
        return Verdict(
            "The merged model has not been evaluated yet.",
            f"So far there are scores of {listed([variant_in_words(name) for name in results.variants])}.",
        )
    claims = _claims(results, differences, tasks)
    own = mean(results, MERGED, tasks)
    where = f"{len(tasks)} test set{'s' if len(tasks) > 1 else ''}"
    queries = sum(len(rows) for rows in (per_query(results, MERGED, tasks) or {}).values())
    reach = f"Merged {score(own)} nDCG@10 on {where}" + (
        f" ({count(queries)} quer{'y' if queries == 1 else 'ies'})" if queries else ""
    )
    if not claims:
        return Verdict(
            f"Merged reaches {score(own)} nDCG@10.", f"{reach}; there is nothing to compare it with."
        )
    clear = [claim.in_numbers for claim in claims if claim.found.word != "open"]
    unclear = [claim.in_numbers for claim in claims if claim.found.word == "open"]
    said = "; ".join(part for part in (", ".join(clear), *unclear) if part)
    return Verdict(_headline(claims), f"{reach}: {said}.", tuple(claims))


def _claims(results: Results, differences: Sequence[Difference], tasks: Sequence[str]) -> list[Claim]:
    by_rival = {found.b: found for found in differences}
    expert = best_expert(results, tasks)
    names = {BASE: variant_in_words(BASE), ALL: variant_in_words(ALL), BM25: variant_in_words(BM25)}
    if expert:
        names[expert] = f"the best expert, {expert.removeprefix(EXPERT)}"
    order = [rival for rival in (BASE, expert, ALL, BM25) if rival in by_rival]
    return [Claim(names[rival], by_rival[rival]) for rival in order if rival]


def _headline(claims: Sequence[Claim]) -> str:
    rivals = {
        word: listed([claim.name.partition(",")[0] for claim in claims if claim.found.word == word])
        for word in ("better", "worse", "open")
    }
    clear = [f"{word} than {rivals[word]}" for word in ("better", "worse") if rivals[word]]
    if not clear:
        return f"The merged model is not shown to differ from {rivals['open']}."
    said = f"The merged model is {', but '.join(clear)}."
    return f"{said} It is not shown to differ from {rivals['open']}." if rivals["open"] else said


def listed(names: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return " and ".join(part for part in (", ".join(names[:-1]), names[-1] if names else "") if part)
