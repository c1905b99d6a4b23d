"""The leak check against an all-pairs loop, on planted leaks, and on the real sets whose leaks are known."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medley.collections import Passage, in_memory, load_collection
from medley.errors import InputError
from medley.leaks import Leak, blocking, find_leaks
from medley.overlap import jaccard, normal_form, shingles
from medley.pairs import TrainingPair, read_pairs

QUERIES = {
    "q1": "What is the first-line treatment of type 2 diabetes in adults?",
    "q2": "How is iron deficiency diagnosed",
}
PASSAGES = [
    Passage("p1", "Metformin is given first, together with advice on diet and movement.", "Diabetes"),
    Passage("p2", "Ferritin below thirty points to a lack of iron in otherwise healthy people."),
    Passage("p3", "Nobody judged this passage about the weather in the mountains."),
]
COLLECTION = in_memory("tests", "test", PASSAGES, QUERIES, {"q1": {"p1": 1, "p2": 0}, "q2": {"p2": 1}})


def test_case_punctuation_and_white_space_do_not_hide_a_leak() -> None:
    pair = TrainingPair(
        "HOW is  iron-deficiency diagnosed?!",
        "metformin is given first together with advice on diet and movement",
    )
    assert find_leaks([TrainingPair("a", "b"), pair], COLLECTION) == [
        Leak(1, "query", "tests", "q2", "exact", 1.0),
        Leak(1, "positive", "tests", "p1", "exact", 1.0),
    ]


def test_near_duplicates_are_found_with_their_similarity() -> None:
    query = QUERIES["q1"].replace("?", " please?")
    (leak,) = find_leaks([TrainingPair(query, "x", ("Ferritin of something else entirely",))], COLLECTION)
    assert (leak.field, leak.id, leak.kind) == ("query", "q1", "near")
    assert leak.similarity == pytest.approx(
        10 / 11
    )  # 12 words: 10 runs of three, one more in the longer text
    assert find_leaks([TrainingPair(query, "x")], COLLECTION, threshold=0.95) == []


def test_negatives_and_only_judged_passages_are_looked_at() -> None:
    pair = TrainingPair("x", "y", (PASSAGES[1].text, PASSAGES[2].text))
    assert [(leak.field, leak.id) for leak in find_leaks([pair], COLLECTION)] == [("negative", "p2")]
    assert [leak.id for leak in find_leaks([pair], COLLECTION, whole_corpus=True)] == ["p2", "p3"]


def test_only_queries_block() -> None:
    pair = TrainingPair(QUERIES["q1"], PASSAGES[0].full_text)
    leaks = find_leaks([pair], COLLECTION)
    assert {leak.field for leak in leaks} == {"query", "positive"}
    assert [leak.field for leak in blocking(leaks)] == ["query"]


def test_a_threshold_out_of_range_is_refused() -> None:
    with pytest.raises(InputError, match="threshold"):
        find_leaks([], COLLECTION, threshold=0)


def test_a_leak_is_a_line_of_json() -> None:
    leak = find_leaks([TrainingPair(QUERIES["q2"], "x")], COLLECTION)[0]
    assert json.loads(json.dumps(leak.as_json())) == {
        "row": 0, "field": "query", "against": "tests", "id": "q2", "kind": "exact", "similarity": 1.0,
    }  # fmt: skip


WORDS = st.lists(st.sampled_from(["a", "b", "c", "d", "e"]), min_size=1, max_size=9).map(" ".join)


@settings(max_examples=150, deadline=None)
@given(st.lists(WORDS, min_size=1, max_size=8), st.lists(WORDS, min_size=1, max_size=8), st.floats(0.3, 1.0))
def test_the_index_misses_nothing_that_an_all_pairs_loop_finds(
    training: list[str], tested: list[str], threshold: float
) -> None:
    queries = {str(index): text for index, text in enumerate(tested)}
    collection = in_memory("c", "test", PASSAGES, queries, {query: {"p1": 1} for query in queries})
    found = find_leaks([TrainingPair(text, "z") for text in training], collection, threshold=threshold)
    expected = {
        (row, query_id)
        for row, text in enumerate(training)
        for query_id, query in queries.items()
        if normal_form(text) == normal_form(query)
        or jaccard(shingles(normal_form(text)), shingles(normal_form(query))) >= threshold
    }
    assert {(leak.row, leak.id) for leak in found} == expected


def data(path: str) -> Path:
    if "MEDLEY_DATA" not in os.environ:
        pytest.skip("MEDLEY_DATA names no folder with the real collections")
    return Path(os.environ["MEDLEY_DATA"]) / path


def question_pairs() -> list[TrainingPair]:
    with gzip.open(data("pairs/medical/mediqa_rqe.jsonl.gz"), "rt", encoding="utf-8") as stream:
        rows = [json.loads(line) for line in stream]
    return [TrainingPair(row["query"], row["other"]) for row in rows]


@pytest.mark.data
def test_known_question_leaks_of_the_real_sets() -> None:
    found = set()
    for split in ("test", "dev", "train"):
        leaks = find_leaks(question_pairs(), load_collection(f"{data('collections/mediqa2019_qa')}:{split}"))
        found |= {leak.id for leak in blocking(leaks)}
    assert len(found) >= 93
    liveqa = load_collection(f"{data('collections/mediqa2019_qa')}:train_liveqa")
    pairs = [TrainingPair(query, "x") for query in liveqa.queries.values()]
    assert (
        len(blocking(find_leaks(pairs, load_collection(f"{data('collections/medquad_liveqa')}:test")))) > 50
    )


@pytest.mark.data
@pytest.mark.slow
def test_known_answer_leaks_and_no_others() -> None:
    medquad = read_pairs(data("pairs/medical/medquad.jsonl.gz"))
    for name in ("medquad_liveqa", "mediqa2019_qa"):
        leaks = find_leaks(medquad, load_collection(str(data(f"collections/{name}"))))
        assert sum(leak.field == "positive" for leak in leaks) > 100
    for name in ("scifact", "covidqa_passages", "mqp", "pubmedqa_l"):
        assert find_leaks(medquad, load_collection(str(data(f"collections/{name}")))) == []
