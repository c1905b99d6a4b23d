"""The guard against false negatives: what it drops, by which signal, what the judge decides, and that all is on record."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from guard_rows import ANSWER, BARE, BM25, FAR, HARD, OTHER_ANSWER, QUERY, removed, row
from medley.encoder import Retriever, RetrieverSettings, build_retriever, encode_passages, encode_queries
from medley.errors import InputError, ModelError
from medley.guard.decide import guard_negatives
from medley.guard.rewritten import parts_of
from medley.guard.settings import GuardSettings
from medley.guard.signals import KnownPositives
from medley.origins import negatives_of, without_negatives
from medley.overlap import normal_form
from medley.pairs import TrainingPair

# Origins ------------------------------------------------------------------------------------------------------


def full_row() -> TrainingPair:
    """Two judged negatives, one without a record, two mined, one perturbed, two generated."""
    return TrainingPair(
        "q", "p", ("j1", "j2", "own", "m1", "m2", "x1", "g1", "g2"),
        provenance={
            "query_id": "7",
            "judged_negatives": ["d1", "d2"],
            "mined": {"retriever": "bm25", "ids": ["d3", "d4"], "scores": [2.0, 1.0], "ranks": [1, 2]},
            "perturbed": {"kind": "number", "changes": [1, 2, 3]},
            "generated": [{"kind": "sibling", "model": "m"}, {"kind": "partial", "model": "m"}],
        },
    )  # fmt: skip


def test_origins_come_from_the_records() -> None:
    assert [(n.text, n.label, n.score) for n in negatives_of(full_row())] == [
        ("j1", "judged", None), ("j2", "judged", None), ("own", "unknown", None), ("m1", "mined", 2.0),
        ("m2", "mined", 1.0), ("x1", "perturbed: number", None), ("g1", "generated: sibling", None),
        ("g2", "generated: partial", None),
    ]  # fmt: skip
    one_record = TrainingPair("q", "p", ("a", "b"), provenance={"generated": {"kind": "llm"}})
    assert [n.label for n in negatives_of(one_record)] == ["generated: llm"] * 2
    tampered = replace(full_row(), negatives=("j1", "own"))
    assert [n.origin for n in negatives_of(tampered)] == ["unknown"] * 2


@settings(max_examples=60, deadline=None)
@given(st.sets(st.integers(0, 7)))
def test_records_stay_in_step_whatever_is_removed(gone: set[int]) -> None:
    before, after = negatives_of(full_row()), without_negatives(full_row(), gone)
    assert negatives_of(after) == [n for position, n in enumerate(before) if position not in gone]
    assert after.provenance["query_id"] == "7" and full_row().provenance["mined"]["ids"] == ["d3", "d4"]
    if "mined" in after.provenance:
        mined = after.provenance["mined"]
        assert len(mined["ids"]) == len(mined["scores"]) == len(mined["ranks"]) > 0


# Duplicates ---------------------------------------------------------------------------------------------------


def test_a_duplicate_of_any_positive_of_the_query_goes() -> None:
    pairs = [
        row(OTHER_ANSWER.upper() + "!", HARD),
        row(FAR, positive=OTHER_ANSWER, query=QUERY.title() + "?"),
        row(ANSWER, query="another query", positive=FAR),
    ]
    guarded = guard_negatives(pairs, BARE, seed=0)
    assert [pair.negatives for pair in guarded.pairs] == [(HARD,), (FAR,), (ANSWER,)]
    assert removed(guarded.pairs[0]) == {OTHER_ANSWER.upper() + "!": "duplicate"}
    assert guarded.counts["dropped"] == {"duplicate": 1} and guarded.counts["kept"] == 3
    assert guarded.pairs[1:] == pairs[1:], "rows without evidence stay as they are"


def test_the_query_itself_and_judged_positives_outside_the_pairs_go() -> None:
    judged = [TrainingPair(QUERY, HARD)]
    guarded = guard_negatives([row(QUERY + ".", HARD, FAR)], BARE, seed=0, judged=judged)
    assert guarded.pairs[0].negatives == (FAR,)


def test_near_duplicates_and_passages_that_hold_the_positive_go() -> None:
    longer = (
        f"Some words before. {ANSWER} And a great many other words that come after it in a longer passage."
    )
    guarded = guard_negatives([row(ANSWER + " today", longer, HARD)], BARE, seed=0)
    assert removed(guarded.pairs[0]) == {ANSWER + " today": "near_duplicate", longer: "near_duplicate"}
    strict = guard_negatives(
        [row(ANSWER + " today")], BARE.model_copy(update={"near_duplicate": 1.0}), seed=0
    )
    assert strict.pairs[0].negatives == (), "all of the positive's words stand in it"
    name = row("The spleen filters blood and stores it.", positive="The spleen filters")
    assert guard_negatives([name], BARE, seed=0).pairs[0].negatives, "a short positive is in many passages"


def test_a_near_duplicate_is_measured_as_jaccard_or_containment() -> None:
    words = [f"w{i}" for i in range(20)]
    positive = KnownPositives("q", [" ".join(words)])
    changed = " ".join([*words[:-1], "new"])  # 17 of 18 shingles are shared, of 19 in all
    assert positive.duplicate(changed, 0.94) is not None
    found = positive.duplicate(changed, 0.9)
    assert found is not None and found.value == pytest.approx(17 / 18)
    assert positive.duplicate(changed, 0.95) is None and positive.duplicate(changed, None) is None


def test_perturbed_and_judged_negatives_may_be_near_a_positive_but_not_equal() -> None:
    near = ANSWER + " today"
    for record in ({"perturbed": [{"kind": "number"}]}, {"judged_negatives": ["d1"]}):
        assert guard_negatives([row(near, **record)], BARE, seed=0).pairs[0].negatives == (near,)
        assert guard_negatives([row(ANSWER + "!", **record)], BARE, seed=0).pairs[0].negatives == ()


STORY = "Metformin is the first treatment of type 2 diabetes. It was found in 1922. The dose is 500 mg."


def rewritten(*edits: tuple[str, str], record: bool = True) -> TrainingPair:
    """A row whose only negative is its positive with some words changed, and the record of that."""
    negative = STORY
    for old, new in edits:
        negative = negative.replace(old, new)
    changes = [{"from": old, "to": new, "at": [STORY.index(old)], "count": 1} for old, new in edits if record]
    return row(negative, positive=STORY, perturbed={"kind": "entity", "changes": changes, "row": 0})


REWRITTEN = [
    rewritten(("Metformin", "Insulin"), ("type 2", "type 1")),
    rewritten(("1922", "1940")),
    rewritten(("500", "850")),
    rewritten(("type 2 diabetes", "gout")),
    rewritten(("1922", "1940"), record=False),
]


def test_a_rewritten_negative_goes_where_what_answers_was_left() -> None:
    guarded = guard_negatives(REWRITTEN, BM25, seed=0)
    assert [removed(pair) != {} for pair in guarded.pairs] == [False, True, True, False, False]
    assert guarded.counts["dropped"] == {"left": 2} and guarded.counts["rewritten_unchecked"] == 1
    (entry,) = guarded.pairs[1].provenance["guard"]["removed"]
    assert entry["signal"] == "left" and entry["value"] >= entry["limit"]
    (entry,) = guarded.pairs[0].provenance["guard"]["kept"]
    assert entry["verdict"] == "keep" and entry["value"] < entry["limit"]
    off = BM25.model_copy(update={"left": None})
    assert guard_negatives(REWRITTEN, off, seed=0).counts["kept"] == len(REWRITTEN)


def test_a_model_compares_what_was_left_with_what_was_changed(tiny: Retriever) -> None:
    guarded = guard_negatives(REWRITTEN[:4], GuardSettings(retriever="tiny"), seed=0, retriever=tiny)
    (query_H,) = encode_queries(tiny, [QUERY])
    for before, after in zip(REWRITTEN, guarded.pairs, strict=False):
        parts = parts_of(STORY, before.negatives[0], before.provenance["perturbed"]["changes"])
        assert parts is not None
        changed, left = encode_passages(tiny, list(parts)) @ query_H
        assert (removed(after) == {before.negatives[0]: "left"}) == (left >= changed and left > 0)


def test_new_sentences_are_held_against_the_margin_and_other_words_are_not() -> None:
    answer, other = STORY.split(". ")[0] + ".", "In type 2 diabetes the first treatment is metformin."
    for kind, dropped in (("sentence", {"margin": 1}), ("entity", {})):
        changes = [{"from": answer, "to": other, "at": [0], "count": 1}]
        record = {"kind": kind, "changes": changes, "row": 0}
        pair = row(STORY.replace(answer, other), positive=STORY, perturbed=record)
        assert guard_negatives([pair], BM25, seed=0).counts["dropped"] == dropped
        changes = [{"from": STORY, "to": other, "at": [0], "count": 1}]
        pair = row(other, positive=STORY, perturbed={"kind": kind, "changes": changes, "row": 0})
        counts = guard_negatives([pair], BM25, seed=0).counts
        assert counts["dropped"] == dropped and ("rewritten_unchecked" in counts) == (kind == "entity")


def test_parts_of_a_rewriting_follow_its_record() -> None:
    pair = rewritten(("1922", "1940"))
    changes = pair.provenance["perturbed"]["changes"]
    found = parts_of(STORY, pair.negatives[0], changes)
    assert found == (
        "It was found in 1922.",
        "Metformin is the first treatment of type 2 diabetes. The dose is 500 mg.",
    )
    assert parts_of(STORY, STORY, changes) is None and parts_of(ANSWER, pair.negatives[0], changes) is None
    whole = parts_of(
        "One sentence of 1922.", "One sentence of 1940.", [{"from": "1922", "to": "1940", "at": [16]}]
    )
    assert whole == ("One sentence of 1922.", "")


# A retriever --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny(tiny_model_folder: Path) -> Retriever:
    return build_retriever(
        str(tiny_model_folder), RetrieverSettings(max_length=64, dtype="float32"), instruction="Own"
    )


def test_signals_are_those_of_a_plain_loop(tiny: Retriever) -> None:
    pairs = [row(HARD, FAR), row(FAR, positive=OTHER_ANSWER), row(HARD, query="bridges", positive=FAR)]
    vector = {text: encode_passages(tiny, [text])[0] for text in (ANSWER, OTHER_ANSWER, HARD, FAR)}

    def expected(pair: TrainingPair, negative: str) -> dict[str, tuple[float, float]]:
        query = encode_queries(tiny, [pair.query])[0]
        known = [p.positive for p in pairs if p.query == pair.query]
        closeness = max(
            (query @ vector[negative] + vector[p] @ vector[negative]) / (query @ vector[p] + 1) for p in known
        )
        similarity = max(vector[p] @ vector[negative] for p in known)
        return {
            "margin": (query @ vector[negative], 0.9 * (query @ vector[pair.positive])),
            "closeness": (closeness, 0.7),
            "similarity": (similarity, 0.6),
        }

    for name, limit in (("margin", 0.9), ("closeness", 0.7), ("similarity", 0.6)):
        alone = GuardSettings(
            retriever="tiny", **{"margin": None, "closeness": None, "similarity": None, name: limit}
        )
        guarded = guard_negatives(pairs, alone, seed=0, retriever=tiny)
        for before, after in zip(pairs, guarded.pairs, strict=True):
            entries = iter(after.provenance["guard"]["kept"])
            for negative in before.negatives:
                value, at = expected(before, negative)[name]
                if value >= at and value > 0:
                    assert removed(after)[negative] == name
                else:
                    entry = next(entries)
                    assert entry["value"] == pytest.approx(value, abs=1e-4)
                    assert entry["limit"] == pytest.approx(at, abs=1e-4)
    assert guard_negatives(pairs, BARE, seed=0).pairs == pairs


def test_bm25_drops_what_shares_too_much_with_query_and_positive() -> None:
    close = "The first treatment of type 2 diabetes in adults is metformin, if the kidney takes no harm."
    guarded = guard_negatives([row(close, HARD, FAR)], BM25.model_copy(update={"closeness": 0.5}), seed=0)
    assert removed(guarded.pairs[0]).keys() == {close}
    entries = guarded.pairs[0].provenance["guard"]["kept"]
    assert [entry["verdict"] for entry in entries] == ["keep", "keep"]
    assert entries[0]["value"] > entries[1]["value"] == 0.0
    nothing_shared = row("wholly other words", query="zebra", positive="lion")
    assert guard_negatives([nothing_shared], BM25, seed=0).pairs[0].negatives, "no score is no evidence"


def test_only_the_origins_asked_for_are_scored() -> None:
    close = "The first treatment of type 2 diabetes in adults is metformin, if the kidney takes no harm."
    low = BM25.model_copy(update={"closeness": 0.3})
    for record in ({"perturbed": [{"kind": "number"}]}, {"judged_negatives": ["d1"]}):
        assert guard_negatives([row(close, **record)], low, seed=0).pairs[0].negatives == (close,)
    every = low.model_copy(update={"scored": ("perturbed",)})
    assert not guard_negatives([row(close, perturbed=[{"kind": "number"}])], every, seed=0).pairs[0].negatives
    trusted = guard_negatives(
        [row(close, mined={"ids": ["d1"], "scores": [1.0]})],
        low,
        seed=0,
        judged=[row(close, judged_negatives=["d1"])],
    )
    assert trusted.pairs[0].negatives == (close,), "people judged it not relevant"


TEXTS = st.sampled_from(
    [ANSWER, ANSWER.lower() + ".", OTHER_ANSWER, HARD, FAR, QUERY, ANSWER + " now", "metformin"]
)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from([QUERY, QUERY.upper(), "bridges"]), TEXTS, st.lists(TEXTS, max_size=4, unique=True)),
             min_size=1, max_size=5),
    st.sampled_from([BARE, BM25, BM25.model_copy(update={"closeness": 0.2})]),
)  # fmt: skip
def test_what_holds_for_any_rows(rows: list[tuple[str, str, list[str]]], chosen: GuardSettings) -> None:
    pairs = [TrainingPair(query, positive, tuple(negatives)) for query, positive, negatives in rows]
    guarded = guard_negatives(pairs, chosen, seed=0)
    positives = {(normal_form(pair.query), normal_form(pair.positive)) for pair in pairs}
    for before, after in zip(pairs, guarded.pairs, strict=True):
        assert (before.query, before.positive) == (after.query, after.positive)
        assert list(after.negatives) == [text for text in before.negatives if text in after.negatives]
        assert set(before.negatives) == set(after.negatives) | removed(after).keys()
        assert not {(normal_form(after.query), normal_form(text)) for text in after.negatives} & positives
        if "guard" in after.provenance:
            assert len(after.provenance["guard"]["kept"]) == len(after.negatives)
    assert guarded.counts["negatives"] - guarded.counts["kept"] == sum(guarded.counts["dropped"].values())
    again = guard_negatives(guarded.pairs, chosen, seed=0)
    assert again.counts["dropped"].keys() <= {"margin", "closeness"}, (
        "BM25 weighs words anew when texts are gone"
    )
    for first, second in zip(guarded.pairs, again.pairs, strict=True):
        assert removed(first).items() <= removed(second).items(), "an earlier guard's verdicts stay on record"


def test_wrong_calls_are_refused(tiny: Retriever) -> None:
    with pytest.raises(ModelError, match="some/model"):
        guard_negatives([row(HARD)], GuardSettings(retriever="some/model"), seed=0)
    with pytest.raises(ModelError, match="bm25"):
        guard_negatives([row(HARD)], BM25, seed=0, retriever=tiny)
    with pytest.raises(InputError, match="judge"):
        guard_negatives([row(HARD)], GuardSettings(judge=True), seed=0)
