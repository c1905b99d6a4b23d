"""The guard: what becomes of each negative. Kept, dropped, or, where the judge says so, promoted to a positive.

In: pairs with negatives, mined or generated. Out: the same pairs in the same order with fewer negatives, the rows that
promoted passages make, and counts. Order: duplicates of a positive go first; then the retriever drops what reaches a
limit; then the judge is asked; last, what equals a promoted passage goes from other rows of its query. Every verdict
stands in the pair's provenance under `guard`: `kept` (one entry for each negative left, in order) and `removed`.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from medley.errors import InputError, ModelError
from medley.guard.judge import Judgement, Question, judge
from medley.guard.rewritten import Parts, parts_of
from medley.guard.settings import GuardSettings, JudgeSettings
from medley.guard.signals import Case, KnownPositives, Signal, score_cases, signals
from medley.origins import Negative, negatives_of, without_negatives
from medley.overlap import normal_form
from medley.pairs import TrainingPair, numbered

if TYPE_CHECKING:
    from medley.encoder import Retriever
    from medley.llm import ChatModel, Ledger

Place = tuple[int, int]
"""(number of the pair, position of the negative in it)."""
NEAR_CHECKED = ("mined", "generated", "unknown")
"""Perturbed negatives are near duplicates on purpose, with the change on record, and are looked at by that record; of
judged ones people know better."""
FOREIGN = ("sentence",)
"""Kinds of rewriting that bring sentences of another passage, which may answer by themselves. The margin is asked of
these only: a retriever hardly sees another number, and would drop nineteen of twenty (docs/results/guard.md)."""
JUDGED = ("mined", "generated", "perturbed", "unknown")
"""Origins the judge is asked about: not those that people have judged."""


@dataclass(frozen=True)
class Verdict:
    """What becomes of a negative, and the evidence: the signal that decided or, if kept, that came nearest."""

    decision: Literal["keep", "drop", "promote"] = "keep"
    signal: str = ""
    value: float | None = None
    limit: float | None = None
    reason: str = ""

    def as_json(self) -> dict[str, Any]:
        """The entry in a pair's provenance, without what is not known."""
        entry: dict[str, Any] = {"verdict": self.decision}
        if self.signal:
            entry |= {"signal": self.signal, "value": self.value, "limit": self.limit}
        return entry | ({"reason": self.reason} if self.reason else {})


@dataclass(frozen=True)
class Guarded:
    """The pairs in the order given, new rows of promoted passages, JSON-like counts, and what the judge cost."""

    pairs: list[TrainingPair]
    promoted: list[TrainingPair]
    counts: dict[str, Any]
    ledger: Ledger | None = None


def guard_negatives(
    pairs: Sequence[TrainingPair],
    settings: GuardSettings,
    *,
    seed: int,
    retriever: Retriever | None = None,
    chat: ChatModel | None = None,
    concurrency: int = 8,
    judged: Sequence[TrainingPair] = (),
) -> Guarded:
    """Decide on every negative of the pairs. What people judged stands above all else: the positives of the `judged`
    rows are known too, and what they hold as `judged` negatives only a duplicate of a positive can overrule.

    `retriever` is needed where the settings name a model, `chat` where they have a judge. Counts: `pairs`,
    `negatives` (before), `kept`, `dropped` by signal, `promoted`, `pairs_without_negative`, `rewritten_unchecked` (if
    any: rewritten ones of one sentence, or without a record that fits), and `judge` with its own.
    Raises ModelError or InputError for a missing one; see `judge` for what else.
    """
    if (retriever is not None) != (settings.retriever not in (None, "bm25")):
        raise ModelError(
            f"the guard's retriever is {settings.retriever!r}; open that model for it, and none for bm25."
        )
    if (chat is None) != (settings.judge is None):
        raise InputError(
            "the judge needs a language model; name an endpoint (llm, --llm-url), or leave the judge out."
        )
    work = _Work(pairs, settings, judged)
    work.drop_duplicates()
    suspects = work.suspects(retriever) if settings.retriever is not None else {}
    if settings.retriever is not None:
        suspects |= work.rewritten_suspects(retriever)
    judge_counts: dict[str, int] = {}
    if chat is not None and settings.judge is not None:
        wanted = {"all": (True, False), "suspected": (True,), "left": (False,)}[settings.judge.asked]
        asked = [place for place in work.left(JUDGED) if (place in suspects) in wanted]
        judgements, judge_counts = judge(
            [work.question(place) for place in asked],
            chat,
            settings.judge,
            seed=seed,
            concurrency=concurrency,
        )
        for place in asked:
            if (found := judgements.get(work.question(place))) is not None:
                suspects.pop(place, None)
                work.verdicts[place] = _of_judge(found, settings.judge)
    work.verdicts |= suspects
    work.drop_duplicates_of_promoted()
    return replace(work.result(judge_counts), ledger=None if chat is None else chat.ledger)


def _of_judge(found: Judgement, settings: JudgeSettings) -> Verdict:
    if settings.promote_from is not None and found.grade >= settings.promote_from:
        return Verdict("promote", "judge", found.grade, settings.promote_from, found.reason)
    decision: Literal["keep", "drop"] = "drop" if found.grade >= settings.drop_from else "keep"
    return Verdict(decision, "judge", found.grade, settings.drop_from, found.reason)


class _Work:
    """The verdicts as they come about."""

    def __init__(
        self, pairs: Sequence[TrainingPair], settings: GuardSettings, judged: Sequence[TrainingPair]
    ) -> None:
        self._pairs, self._settings = pairs, settings
        self._negatives = _with_trust(pairs, judged)
        positives: dict[str, dict[str, None]] = defaultdict(dict)
        for pair in (*judged, *pairs):
            positives[normal_form(pair.query)][pair.positive] = None
        self._positives = {query: tuple(texts) for query, texts in positives.items()}
        self.verdicts: dict[Place, Verdict] = {}
        self.unchecked = 0
        """Rewritten negatives of which nothing can be said: one sentence, or no record that fits."""

    def _positives_of(self, row: int) -> tuple[str, ...]:
        return self._positives[normal_form(self._pairs[row].query)]

    def left(self, origins: Sequence[str]) -> list[Place]:
        """Places of negatives of these origins that nothing has been decided about."""
        return [
            (row, position)
            for row, negatives in enumerate(self._negatives)
            for position, negative in enumerate(negatives)
            if negative.origin in origins and not self._removed((row, position))
        ]

    def _removed(self, place: Place) -> bool:
        return place in self.verdicts and self.verdicts[place].decision != "keep"

    def question(self, place: Place) -> Question:
        """What the judge is asked about a negative."""
        row, position = place
        return self._pairs[row].instruction, self._pairs[row].query, self._negatives[row][position].text

    def drop_duplicates(self) -> None:
        """Drop what is, or nearly is, a positive of its query."""
        self._drop_duplicates_of(self._positives)

    def _drop_duplicates_of(self, positives: Mapping[str, Sequence[str]]) -> None:
        known: dict[str, KnownPositives] = {}
        for row, position in self.left(("judged", *JUDGED)) if positives else ():
            query, negative = normal_form(self._pairs[row].query), self._negatives[row][position]
            if query not in positives:
                continue
            if query not in known:
                known[query] = KnownPositives(query, positives[query])
            near = self._settings.near_duplicate if negative.origin in NEAR_CHECKED else None
            if (found := known[query].duplicate(negative.text, near)) is not None:
                self.verdicts[row, position] = _of_signal("drop", found)

    def suspects(self, retriever: Retriever | None) -> dict[Place, Verdict]:
        """The negatives that reach a limit; of the others, how near they come is noted as their verdict."""
        rows: dict[tuple[str, str], list[Place]] = defaultdict(list)
        for row, position in self.left(self._settings.scored):
            rows[self._pairs[row].query, self._pairs[row].instruction].append((row, position))
        cases = [
            Case(
                key,
                self._positives_of(places[0][0]),
                tuple(dict.fromkeys(self.question(p)[2] for p in places)),
            )
            for key, places in rows.items()
        ]
        found: dict[Place, Verdict] = {}
        for case, scores, places in zip(cases, score_cases(cases, retriever), rows.values(), strict=True):
            for place in places:
                positive, candidate = self._pairs[place[0]].positive, self.question(place)[2]
                told = signals(case, scores, positive, candidate, self._settings)
                strongest = max(told, key=lambda signal: (signal.fires, signal.strength), default=None)
                if strongest is not None and strongest.fires:
                    found[place] = _of_signal("drop", strongest)
                elif strongest is not None:
                    self.verdicts[place] = _of_signal("keep", strongest)
        return found

    def rewritten_suspects(self, retriever: Retriever | None) -> dict[Place, Verdict]:
        """The rewritten negatives that left what answers, or whose new sentences score too high; of others, how near
        they come is their verdict.
        """
        parts: dict[Place, Parts] = {}
        texts: dict[tuple[str, str], dict[str, None]] = defaultdict(dict)
        for row, position in self.left(("perturbed",)):
            pair, negative = self._pairs[row], self._negatives[row][position]
            found = parts_of(pair.positive, negative.text, negative.changes)
            if found is None or not (found.left or negative.kind in FOREIGN):
                self.unchecked += 1
                continue
            parts[row, position] = found
            texts[pair.query, pair.instruction] |= dict.fromkeys((*found, pair.positive, negative.text))
        if not parts:
            return {}
        cases = [Case(key, self._positives[normal_form(key[0])], tuple(own)) for key, own in texts.items()]
        score = {
            (case.key, text): float(found)
            for case, scores in zip(cases, score_cases(cases, retriever), strict=True)
            for text, found in zip(case.candidates, scores.candidates, strict=True)
        }
        suspects: dict[Place, Verdict] = {}
        for place, own in parts.items():
            pair, negative = self._pairs[place[0]], self._negatives[place[0]][place[1]]
            key = pair.query, pair.instruction
            told = []
            if self._settings.left is not None:
                told.append(
                    Signal("left", score[key, own.left], self._settings.left * score[key, own.changed])
                )
            if (
                self._settings.margin is not None
                and negative.kind in FOREIGN
                and score[key, pair.positive] > 0
            ):
                limit = self._settings.margin * score[key, pair.positive]
                told.append(Signal("margin", score[key, negative.text], limit))
            strongest = max(told, key=lambda signal: (signal.fires, signal.strength), default=None)
            if strongest is not None and strongest.fires:
                suspects[place] = _of_signal("drop", strongest)
            elif strongest is not None and place not in self.verdicts:
                self.verdicts[place] = _of_signal("keep", strongest)
        return suspects

    def drop_duplicates_of_promoted(self) -> None:
        """A promoted passage is no negative in any other row of its query."""
        promoted: dict[str, list[str]] = defaultdict(list)
        for place, verdict in self.verdicts.items():
            if verdict.decision == "promote":
                _, query, text = self.question(place)
                promoted[normal_form(query)].append(text)
        self._drop_duplicates_of(promoted)

    def result(self, judge_counts: Mapping[str, int]) -> Guarded:
        """Pairs and new rows as the verdicts say."""
        guarded: list[TrainingPair] = []
        promoted: dict[tuple[str, str, str], TrainingPair] = {}
        rows = zip(numbered(self._pairs), self._negatives, strict=True)
        for place, ((row, pair), negatives) in enumerate(rows):
            verdicts = [self.verdicts.get((place, position), Verdict()) for position in range(len(negatives))]
            after = _with_verdicts(pair, negatives, verdicts)
            guarded.append(after)
            for negative, verdict in zip(negatives, verdicts, strict=True):
                if verdict.decision == "promote":
                    key = (pair.instruction, normal_form(pair.query), normal_form(negative.text))
                    promoted.setdefault(key, promoted_row(after, negative, row, verdict.as_json()))
        return Guarded(guarded, list(promoted.values()), self._counts(guarded, len(promoted), judge_counts))

    def _counts(
        self, guarded: Sequence[TrainingPair], new: int, judge_counts: Mapping[str, int]
    ) -> dict[str, Any]:
        dropped = Counter(verdict.signal for verdict in self.verdicts.values() if verdict.decision == "drop")
        counts: dict[str, Any] = {
            "pairs": len(guarded),
            "negatives": sum(map(len, self._negatives)),
            "kept": sum(len(pair.negatives) for pair in guarded),
            "dropped": dict(sorted(dropped.items())),
            "promoted": sum(verdict.decision == "promote" for verdict in self.verdicts.values()),
            "new_pairs": new,
            "pairs_without_negative": sum(not pair.negatives for pair in guarded),
        }
        if self.unchecked:
            counts["rewritten_unchecked"] = self.unchecked
        return counts | ({"judge": dict(judge_counts)} if judge_counts else {})


def _with_trust(pairs: Sequence[TrainingPair], judged: Sequence[TrainingPair]) -> list[list[Negative]]:
    """Each pair's negatives; one that people judged not relevant to its query is `judged`, wherever it was found."""
    rows = [negatives_of(pair) for pair in pairs]
    trusted: dict[str, set[str]] = defaultdict(set)
    for pair, negatives in (*zip(pairs, rows, strict=True), *((pair, negatives_of(pair)) for pair in judged)):
        texts = (negative.text for negative in negatives if negative.origin == "judged")
        trusted[normal_form(pair.query)].update(map(normal_form, texts))

    def origin_checked(query: str, negative: Negative) -> Negative:
        known = trusted[normal_form(query)]
        return replace(negative, origin="judged") if normal_form(negative.text) in known else negative

    return [
        [origin_checked(pair.query, negative) for negative in negatives]
        for pair, negatives in zip(pairs, rows, strict=True)
    ]


def _of_signal(decision: Literal["keep", "drop"], signal: Signal) -> Verdict:
    return Verdict(decision, signal.name, round(signal.value, 6), round(signal.limit, 6))


def _with_verdicts(
    pair: TrainingPair, negatives: Sequence[Negative], verdicts: Sequence[Verdict]
) -> TrainingPair:
    """The pair without what goes; verdicts of an earlier guard on what went then stay."""
    if all(verdict == Verdict() for verdict in verdicts):
        return pair
    gone = {position for position, verdict in enumerate(verdicts) if verdict.decision != "keep"}
    earlier = pair.provenance.get("guard")
    removed = list(earlier.get("removed", ())) if isinstance(earlier, Mapping) else []
    removed += [
        {
            **verdicts[position].as_json(),
            "origin": negatives[position].label,
            "text": negatives[position].text,
        }
        for position in sorted(gone)
    ]
    kept = [verdict.as_json() for position, verdict in enumerate(verdicts) if position not in gone]
    after = without_negatives(pair, gone)
    return replace(after, provenance={**after.provenance, "guard": {"kept": kept, "removed": removed}})


def promoted_row(
    pair: TrainingPair, negative: Negative, row: int, evidence: Mapping[str, Any]
) -> TrainingPair:
    """The row of a passage that turned out to be a positive: same query, and the negatives that are left to it."""
    provenance = {key: value for key, value in pair.provenance.items() if key not in ("positive_id", "guard")}
    record = {"row": row, "origin": negative.label, **evidence}
    return replace(pair, positive=negative.text, provenance={**provenance, "promoted": record})
