"""Perturbed negatives: what their provenance says is what was done, for any corpus, query and seed."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from medley.collections import Passage
from medley.errors import InputError
from medley.pairs import TrainingPair
from medley.sentences import sentence_spans
from medley.synthesize.entities import build_lexicon, read_classes
from medley.synthesize.focus import find_focus
from medley.synthesize.negation import negation_changes, read_antonyms
from medley.synthesize.perturb import PerturbationSettings, perturb_negatives
from medley.synthesize.quantities import number_changes
from medley.synthesize.rewrite import (
    Change,
    apply_changes,
    article_changes,
    is_plural,
    like_case,
    plural,
    recorded,
    replay,
    singular,
    starts_with_vowel_sound,
)
from medley.synthesize.swaps import entity_changes

PASSAGES = [
    Passage("1", "Apples are kept for months in a cool cellar. An apple is easily bruised. Fruit gives off ethylene.",
            "Storing apples"),
    Passage("2", "Pears ripen from the inside. A pear should be picked hard. Keep it at 2 degrees for 10 to 12 weeks.",
            "Storing pears"),
    Passage("3", "Onions need dry air. Hang them in nets. They must not be kept beside potatoes in the cellar.",
            "Storing onions"),
    Passage("4", "Potatoes turn green in light. The dose of solanine rises to 200 mg per kg. Keep the cellar dark.",
            "Storing potatoes"),
    Passage("5", "Warfarin is monitored by blood tests. Bleeding is the main harm of warfarin in older people.",
            "Warfarin"),
    Passage("6", "Apixaban is taken twice daily. Apixaban and rivaroxaban need no blood tests.",
            "Apixaban"),
]  # fmt: skip
QUERIES = [
    "how long do apples keep in a cellar", "solanine dose in green potatoes", "which drug needs blood tests",
    "warfarin bleeding", "pears ripen inside", "Onions should be kept in dry air beside potatoes.",
    "quantum chess",
]  # fmt: skip
rows = st.builds(
    lambda query, passage, negative: TrainingPair(
        query, passage.full_text, (negative.full_text,) if negative != passage else ()
    ),
    st.sampled_from(QUERIES), st.sampled_from(PASSAGES), st.sampled_from(PASSAGES),
)  # fmt: skip
weights = st.sampled_from(
    [{}, {"entity": 0}, {"sentence": 0}, {"sentence": 0, "entity": 0}, {"per_query": 3}]
)


def kinds(pair: TrainingPair) -> list[dict]:
    record = pair.provenance.get("perturbed", [])
    return record if isinstance(record, list) else [record]


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(rows, min_size=1, max_size=4), st.integers(0, 5), weights)
def test_provenance_rebuilds_every_negative_and_none_is_a_text_of_the_row(
    pairs: list[TrainingPair], seed: int, chosen: dict
) -> None:
    made = perturb_negatives(pairs, PASSAGES, PerturbationSettings(**chosen), seed=seed)
    assert made == perturb_negatives(pairs, PASSAGES, PerturbationSettings(**chosen), seed=seed)
    assert made.counts["rows"] == len(pairs) == len(made.pairs)
    for index, (before, after) in enumerate(zip(pairs, made.pairs, strict=True)):
        new = after.negatives[len(before.negatives) :]
        assert after.negatives[: len(before.negatives)] == before.negatives
        assert list(new) == [replay(before.positive, record["changes"]) for record in kinds(after)]
        for text, record in zip(new, kinds(after), strict=True):
            assert record["row"] == index and text.strip()
            assert text not in (before.positive, before.query, *before.negatives)
            if record["kind"] == "entity":
                assert_all_mentions_swapped(text, record["changes"])
    made_count = sum(len(a.negatives) - len(b.negatives) for a, b in zip(made.pairs, pairs, strict=True))
    assert made.counts["made"] == made_count
    assert made.counts["unchanged"] == sum(a == b for a, b in zip(made.pairs, pairs, strict=True))


def assert_all_mentions_swapped(text: str, changes: list[dict]) -> None:
    for change in changes:
        if change["from"].lower() not in ("a", "an"):
            forms = {change["from"], singular(change["from"]), plural(singular(change["from"]))}
            for form in forms:
                assert not re.search(rf"\b{re.escape(form)}\b", text, re.IGNORECASE), (form, text)


def test_a_row_does_not_depend_on_the_rows_beside_it() -> None:
    pairs = [TrainingPair(query, PASSAGES[i % 6].full_text) for i, query in enumerate(QUERIES)]
    together = perturb_negatives(pairs, PASSAGES, PerturbationSettings(), seed=1)
    for pair, made in zip(pairs, together.pairs, strict=True):
        alone = perturb_negatives([pair], PASSAGES, PerturbationSettings(), seed=1).pairs[0]
        assert alone.negatives == made.negatives


def test_an_entity_that_the_query_names_is_swapped_in_every_form() -> None:
    text = PASSAGES[0].full_text
    only = PerturbationSettings(sentence=0, number=0, negation=0)
    made = perturb_negatives([TrainingPair("how do apples keep", text)], PASSAGES, only, seed=0).pairs[0]
    assert made.negatives and not re.search("apple", made.negatives[0], re.IGNORECASE)
    assert "ethylene" in made.negatives[0]


def test_a_gene_takes_a_gene_and_an_abbreviated_term_stays() -> None:
    passages = [
        Passage("1", "Loss of BRCA1 in tumours raises risk. The role of BRCA1 is repair.", "Role of BRCA1"),
        Passage("2", "Loss of FOXP3 in tumours raises risk. The role of FOXP3 is control.", "Role of FOXP3"),
        Passage("3", "Asthma (AS) is common. Diabetes is common."),
    ]
    lexicon = build_lexicon(passages)
    import random

    changes = entity_changes(
        passages[0].full_text, frozenset({"brca1"}), lexicon, rng=random.Random(0), at_most=3
    )
    assert {change.new for change in changes} == {"FOXP3"} and len(changes) == 3
    assert not entity_changes(
        passages[2].text, frozenset({"asthma"}), lexicon, rng=random.Random(0), at_most=3
    )


def test_sentences_that_answer_are_replaced_from_a_known_negative() -> None:
    pair = TrainingPair("solanine dose in potatoes", PASSAGES[3].full_text, (PASSAGES[2].full_text,))
    only = PerturbationSettings(entity=0, number=0, negation=0)
    made = perturb_negatives([pair], PASSAGES, only, seed=0).pairs[0]
    assert "solanine" not in made.negatives[-1]
    assert kinds(made)[0]["from_passage"] == "3"
    assert made.negatives[-1].startswith("Storing potatoes")


def test_numbers_change_only_where_the_query_asks_for_one() -> None:
    only = PerturbationSettings(entity=0, sentence=0, negation=0)
    asks = TrainingPair("solanine dose in potatoes in mg per kg", PASSAGES[3].full_text)
    does_not = TrainingPair("solanine in green potatoes", PASSAGES[3].full_text)
    made = perturb_negatives([asks, does_not], PASSAGES, only, seed=0)
    assert "200 mg" not in made.pairs[0].negatives[0] and re.search(
        r"\d+ mg per kg", made.pairs[0].negatives[0]
    )
    assert made.pairs[1] == does_not and made.counts["unchanged"] == 1


@pytest.mark.parametrize(
    "text",
    [
        "Take 10 to 12 mg.",
        "In 1998 and 2003 it rose by 45%.",
        "From 1,000 to 2,500 people.",
        "pH 7.35 to 7.45",
        "0.5%",
    ],
)
def test_ranges_keep_their_order_percentages_their_limit_and_numbers_their_format(text: str) -> None:
    import random

    for seed in range(20):
        changes = number_changes(text, [(0, len(text))], random.Random(seed))
        new = apply_changes(text, changes)
        old_numbers, new_numbers = (re.findall(r"\d[\d,.]*\d|\d", value) for value in (text, new))
        assert len(old_numbers) == len(new_numbers) and changes
        for old, number in zip(old_numbers, new_numbers, strict=True):
            assert old.count(".") == number.count(".")
            assert len(old.partition(".")[2]) == len(number.partition(".")[2])
        values = [float(number.replace(",", "")) for number in new_numbers]
        if len(values) == 2:
            assert values[0] < values[1]
        if "%" in text:
            assert values[-1] < 100


def test_names_with_numbers_stay() -> None:
    import random

    text = "HbA1c, vitamin B12, type 2 diabetes, Figure 3, COVID-19 and CD4 are names."
    assert number_changes(text, [(0, len(text))], random.Random(0)) == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Insulin lowers glucose.", {"Insulin raises glucose."}),
        ("The tablet should not be crushed.", {"The tablet should be crushed."}),
        ("It is taken before meals.", {"It is taken after meals."}),
        ("The valve is made of brass.", {"The valve is not made of brass."}),
        ("A few people took an overnight fast.", {"A few people took an overnight fast."}),
    ],
)
def test_statements_are_turned_round(text: str, expected: set[str]) -> None:
    import random

    assert apply_changes(text, negation_changes(text, [(0, len(text))], random.Random(0))) in expected


@given(st.text("ab .", max_size=30), st.data())
def test_changes_are_undone_by_their_inverse(text: str, data: st.DataObject) -> None:
    changes, shift, inverse, position = [], 0, [], 0
    while position < len(text) and data.draw(st.booleans()):
        start = data.draw(st.integers(position, len(text) - 1))
        end = data.draw(st.integers(start + 1, len(text)))
        new = data.draw(st.text("xyz", min_size=1, max_size=4))
        changes.append(Change(start, text[start:end], new))
        inverse.append(Change(start + shift, new, text[start:end]))
        shift += len(new) - (end - start)
        position = end
    changed = apply_changes(text, reversed(changes))
    assert apply_changes(changed, inverse) == text
    assert replay(text, recorded(changes)) == changed


def test_overlapping_or_unfitting_changes_are_refused() -> None:
    with pytest.raises(ValueError, match="does not fit"):
        apply_changes("abcd", [Change(0, "abc", "x"), Change(2, "cd", "y")])
    with pytest.raises(ValueError, match="does not fit"):
        apply_changes("abcd", [Change(0, "b", "x")])


@pytest.mark.parametrize(
    ("one", "many"),
    [("kidney", "kidneys"), ("artery", "arteries"), ("child", "children"), ("fuel cell", "fuel cells"),
     ("box", "boxes"), ("diagnosis", "diagnoses"), ("patch", "patches"), ("virus", "viruses")],
)  # fmt: skip
def test_number_forms(one: str, many: str) -> None:
    assert plural(one) == many and is_plural(many) and not is_plural(one)


@pytest.mark.parametrize("word", ["diabetes", "kidney", "arthritis", "glass", "gas", "physics", "pus"])
def test_words_that_only_look_plural(word: str) -> None:
    if word != "diabetes":
        assert singular(word) == word


def test_case_and_articles_follow() -> None:
    assert like_case("zinc-air cell", "Alkaline cell") == "Zinc-air cell"
    assert like_case("pear", "APPLE") == "PEAR"
    assert like_case("blood pressure", "Heart Rate") == "Blood Pressure"
    text = "Eat an apple or a plum."
    changes = [Change(7, "apple", "pear"), Change(18, "plum", "orange")]
    assert apply_changes(text, changes + article_changes(text, changes)) == "Eat a pear or an orange."
    assert [starts_with_vowel_sound(word) for word in ("MRI", "unit", "hour", "X-ray", "8 mg", "CT")] == [
        True, False, True, True, True, False,
    ]  # fmt: skip


def test_sentences_end_where_readers_end_them() -> None:
    text = "Dr. Smith saw e.g. Mrs. Jones. It was 3.5 mg. (Really?) Yes!"
    assert [text[a:b] for a, b in sentence_spans(text)] == [
        "Dr. Smith saw e.g. Mrs. Jones.", "It was 3.5 mg.", "(Really?)", "Yes!",
    ]  # fmt: skip


def test_the_answering_sentence_is_found_and_the_title_left_out() -> None:
    lexicon = build_lexicon(PASSAGES)
    focus = find_focus("solanine dose", PASSAGES[3].full_text, PASSAGES[3].title, lexicon)
    start, end = focus.answering[0]
    assert PASSAGES[3].full_text[start:end] == "The dose of solanine rises to 200 mg per kg."
    assert focus.trusted and not find_focus("quantum chess", PASSAGES[3].full_text, "", lexicon).trusted


def test_tables_are_sound_and_a_broken_one_names_its_line(tmp_path: Path) -> None:
    for members in read_classes(Path(build_lexicon.__kwdefaults__["table"])):
        assert len({member.lower() for member in members}) == len(members), members
    opposites = read_antonyms(Path(negation_changes.__kwdefaults__["table"]))
    assert all(word != other for word, other in opposites.items())
    (tmp_path / "classes.txt").write_text("# fine\na, b\nalone\n")
    with pytest.raises(InputError, match=r"classes.txt:3"):
        read_classes(tmp_path / "classes.txt")
    (tmp_path / "antonyms.txt").write_text("up / down\nsideways\n")
    with pytest.raises(InputError, match=r"antonyms.txt:2"):
        read_antonyms(tmp_path / "antonyms.txt")
