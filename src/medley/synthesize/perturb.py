"""Hard negatives without a language model: the positive, rewritten so that it answers another question.

From training pairs and a corpus to the same pairs with one more negative each. The rewriting stays where the
query points (the sentences that share its rare words): an entity is swapped for a sibling from the corpus,
the answering sentences become others of the same topic, numbers change where the query asks for one, a
statement is turned round. `provenance["perturbed"]` holds every change with its place:
`rewrite.replay(positive, changes)` is the negative.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from medley.collections import Passage
from medley.fingerprint import fingerprint
from medley.pairs import TrainingPair, numbered
from medley.positives import PositiveKeys
from medley.progress import progress
from medley.synthesize import entities, negation
from medley.synthesize.entities import Lexicon, build_lexicon, short_title, stems_of
from medley.synthesize.focus import Focus, find_focus, query_share
from medley.synthesize.generated import Generated
from medley.synthesize.negation import negation_changes
from medley.synthesize.quantities import number_changes
from medley.synthesize.query_forms import asks_for_number, is_claim
from medley.synthesize.rewrite import Change, apply_changes, article_changes, recorded
from medley.synthesize.swaps import entity_changes
from medley.synthesize.transplant import NEAR, NEAR_ENOUGH, NEAREST, make_donor, transplant_changes

LEFT_OF_QUERY = 0.75
"""A swap of entities counts only when at most this share of the query's words in the text is left."""
NAMED = 0.3
"""A positive must hold this share of the query for a swap of entities to take it away."""


class PerturbationSettings(BaseModel):
    """How positives are rewritten into negatives. The weights say how often each kind is tried first."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    per_query: int = Field(1, ge=1, description="negatives made for each row")
    entity: float = Field(0.6, ge=0, description="weight of swapping entities for siblings from the corpus")
    sentence: float = Field(
        0.3, ge=0, description="weight of putting other sentences of the topic for the answer"
    )
    number: float = Field(0.07, ge=0, description="weight of changing the numbers that the query asks for")
    negation: float = Field(0.03, ge=0, description="weight of turning statements round")
    max_entities: int = Field(3, ge=1, description="entities swapped in one text at most")
    siblings: Path | None = Field(None, description="a table of classes instead of the bundled siblings.txt")
    antonyms: Path | None = Field(
        None, description="a table of opposites instead of the bundled antonyms.txt"
    )


@dataclass(frozen=True)
class _Corpus:
    """What rows are rewritten with: the passages, what was learned from them, and each query's known
    positives.
    """

    passages: Sequence[Passage]
    lexicon: Lexicon
    by_text: Mapping[str, Passage]
    positives: PositiveKeys
    counts: Mapping[str, int]
    """How many pairs each query has."""


@dataclass(frozen=True)
class _Row:
    """One row on its way: its texts, the query's stems, and where the positive answers it."""

    pair: TrainingPair
    query_stems: frozenset[str]
    focus: Focus
    title: str


def perturb_negatives(
    pairs: Sequence[TrainingPair], passages: Sequence[Passage], settings: PerturbationSettings, *, seed: int
) -> Generated:
    """Give every row `settings.per_query` more negatives, made from its own positive.

    `passages` is the corpus that siblings are learned from; the positives are added to it. A row depends on
    its own texts, the corpus and the seed only, not on its place among the others. Rows where nothing fits
    are kept as they are and counted under `unchanged`. No row's positive is made a negative of its query.
    """
    corpus = _prepare(pairs, passages, settings)
    counts: Counter[str] = Counter(rows=len(pairs), made=0, unchanged=0)
    made: list[TrainingPair] = []
    with progress("perturb positives", len(pairs)) as advance:
        for row, pair in numbered(pairs):
            rng = random.Random(fingerprint([seed, pair.query, pair.positive]))
            negatives, records = _negatives(pair, corpus, settings, rng)
            for record in records:
                record["row"] = row
                counts[record["kind"]] += 1
            counts["made"] += len(negatives)
            counts["unchanged"] += not negatives
            made.append(
                pair.with_negatives(negatives, {"perturbed": _one_or_all(records)}) if negatives else pair
            )
            advance(1)
    return Generated(tuple(made), dict(counts))


def _prepare(
    pairs: Sequence[TrainingPair], passages: Sequence[Passage], settings: PerturbationSettings
) -> _Corpus:
    by_text = {passage.full_text: passage for passage in passages}
    others = dict.fromkeys(pair.positive for pair in pairs if pair.positive not in by_text)
    everything = [*passages, *(Passage(f"positive {index}", text) for index, text in enumerate(others))]
    lexicon = build_lexicon(everything, table=settings.siblings or entities.TABLE)
    counts = Counter(pair.query for pair in pairs)
    return _Corpus(everything, lexicon, by_text, PositiveKeys(pairs), counts)


def _one_or_all(records: list[dict[str, Any]]) -> dict[str, Any] | list[dict[str, Any]]:
    return records[0] if len(records) == 1 else records


def _negatives(
    pair: TrainingPair, corpus: _Corpus, settings: PerturbationSettings, rng: random.Random
) -> tuple[list[str], list[dict[str, Any]]]:
    """Up to `per_query` distinct texts for one row, each with the record of its changes."""
    passage = corpus.by_text.get(pair.positive)
    title = passage.title if passage else ""
    focus = find_focus(pair.query, pair.positive, title, corpus.lexicon)
    row = _Row(pair, frozenset(stems_of(pair.query)), focus, title)
    taken = {_normal(text) for text in (pair.positive, pair.query, *pair.negatives)}
    texts: list[str] = []
    records: list[dict[str, Any]] = []
    for _ in range(settings.per_query):
        for kind in _kinds_in_order(settings, rng):
            changes, extra = _changes(kind, row, corpus, settings, rng)
            if not changes:
                continue
            changes += article_changes(pair.positive, changes)
            text = apply_changes(pair.positive, changes)
            if _normal(text) not in taken and not corpus.positives.holds(pair.query, text):
                taken.add(_normal(text))
                texts.append(text)
                records.append({"kind": kind, "changes": recorded(changes), **extra})
                break
    return texts, records


def _normal(text: str) -> str:
    return " ".join(text.lower().split())


def _kinds_in_order(settings: PerturbationSettings, rng: random.Random) -> list[str]:
    """Kinds in random order, the likelier first: each next one is drawn by weight from those left."""
    weights = {kind: getattr(settings, kind) for kind in ("entity", "sentence", "number", "negation")}
    weights = {kind: weight for kind, weight in weights.items() if weight > 0}
    order = []
    while weights:
        kind = rng.choices(list(weights), list(weights.values()))[0]
        order.append(kind)
        del weights[kind]
    return order


def _changes(
    kind: str, row: _Row, corpus: _Corpus, settings: PerturbationSettings, rng: random.Random
) -> tuple[list[Change], dict[str, Any]]:
    """The changes that one kind proposes, and what else its record holds; none where it would leave the
    answer.
    """
    text = row.pair.positive
    if kind == "entity":
        return _entity(row, corpus, settings, rng), {}
    if kind == "sentence":
        return _sentences(row, corpus, rng)
    if not row.focus.trusted:
        return [], {}
    if kind == "number":
        asked = asks_for_number(row.pair.query)
        return (number_changes(text, row.focus.answering[:1], rng) if asked else []), {}
    if not is_claim(row.pair.query):
        return [], {}
    return negation_changes(text, row.focus.answering, rng, table=settings.antonyms or negation.TABLE), {}


def _entity(row: _Row, corpus: _Corpus, settings: PerturbationSettings, rng: random.Random) -> list[Change]:
    """Swapped entities, if the text then holds clearly less of the query."""
    text = row.pair.positive
    changes = entity_changes(
        text, row.query_stems, corpus.lexicon, rng=rng, at_most=settings.max_entities,
        title_end=row.focus.title_end,
    )  # fmt: skip
    if not changes:
        return []
    before = query_share(row.query_stems, text, corpus.lexicon)
    after = query_share(row.query_stems, apply_changes(text, changes), corpus.lexicon)
    return changes if before >= NAMED and after <= LEFT_OF_QUERY * before else []


def _sentences(row: _Row, corpus: _Corpus, rng: random.Random) -> tuple[list[Change], dict[str, Any]]:
    """Sentences of a known negative, or else of a near passage, instead of those that answer."""
    query = row.pair.query
    own = [corpus.by_text.get(text, Passage("negative", text)) for text in row.pair.negatives]
    body = row.pair.positive[row.focus.title_end :]
    near = [
        (corpus.passages[index], similarity)
        for index, similarity in corpus.lexicon.near(row.title, body, NEAREST + corpus.counts[query])
        if not corpus.positives.holds(query, corpus.passages[index].full_text)
    ]
    least = max(NEAR, NEAR_ENOUGH * near[0][1]) if near else 0.0
    donors = [
        make_donor(passage, short_title(row.title), whole=not row.focus.trusted)
        for passage in [*own, *(passage for passage, similarity in near if similarity >= least)][:NEAREST]
    ]
    changes, donor = transplant_changes(
        row.pair.positive, row.query_stems, row.focus, donors, lexicon=corpus.lexicon, rng=rng
    )
    return changes, {"from_passage": donor}
