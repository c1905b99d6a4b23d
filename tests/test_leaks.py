"""The leak check against an all-pairs loop, on planted leaks, and on the real sets whose leaks are known."""

from __future__ import annotations

import gzip
import json
import os
import string
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medley.collections import Passage, in_memory, load_collection, write_folder
from medley.errors import InputError
from medley.leaks.against import load_against
from medley.leaks.explain import explain_leaks
from medley.leaks.find import Leak, blocking, find_leaks, hold_out, iter_leaks
from medley.overlap import normal_form
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
        Leak(1, "query", "tests", "q2", "exact", "test", 1.0),
        Leak(1, "positive", "tests", "p1", "exact", "test", 1.0),
    ]


def test_near_duplicates_are_found_with_their_similarity() -> None:
    query = QUERIES["q1"].replace("?", " please?")
    (leak,) = find_leaks([TrainingPair(query, "x", ("Ferritin of something else entirely",))], COLLECTION)
    assert (leak.field, leak.id, leak.kind) == ("query", "q1", "near")
    assert leak.similarity == pytest.approx(22 / 23)  # 11 of 11 words are in both, and 11 of 12
    assert find_leaks([TrainingPair(query, "x")], COLLECTION, threshold=0.97) == []


def test_negatives_and_only_judged_passages_are_looked_at() -> None:
    pair = TrainingPair("x", "y", (PASSAGES[1].text, PASSAGES[2].text))
    assert [(leak.field, leak.id) for leak in find_leaks([pair], COLLECTION)] == [("negative", "p2")]
    assert [leak.id for leak in find_leaks([pair], COLLECTION, passages="all")] == ["p2", "p3"]


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
        "row": 0, "field": "query", "against": "tests", "id": "q2", "kind": "exact", "split": "test",
        "similarity": 1.0,
    }  # fmt: skip


WORDS = st.lists(st.sampled_from(["a", "b", "c", "d", "é", "f-g", "1.5"]), min_size=1, max_size=9).map(
    " ".join
)


def similarity_by_definition(a: str, b: str, threshold: float) -> float:
    """What two texts' similarity is, said without an index: 0 where they are no duplicates."""
    words_a, words_b = normal_form(a).split(), normal_form(b).split()
    if "".join(words_a) == "".join(words_b):
        return 1.0
    runs_a, runs_b = runs_of_three(words_a), runs_of_three(words_b)
    runs = (runs_a & runs_b).total() / (runs_a | runs_b).total()
    found = [runs]
    for more, fewer in ((a, words_b), (b, words_a)):
        if len(normal_form(more).split()) >= 5 and "".join(fewer) in variants(more):
            apart = sum(bool(normal_form(word)) for word in more.split())
            found.append((2 * apart - 2) / (2 * apart - 1))
    return max(found) if max(found) >= threshold - 1e-12 else 0.0


def runs_of_three(words: list[str]) -> Counter[tuple[str, ...]]:
    marked = ["", "", *words, "", ""]
    return Counter(zip(marked, marked[1:], marked[2:], strict=False))


def variants(text: str) -> set[str]:
    """The letters of a text with one word left out, or one that punctuation joins of several."""
    normal = normal_form(text).split()
    tokens = [normal_form(token).split() for token in text.split()]
    by_word = {"".join(normal[:i] + normal[i + 1 :]) for i in range(len(normal))}
    return by_word | {
        "".join("".join(token) for token in tokens[:i] + tokens[i + 1 :]) for i in range(len(tokens))
    }


@settings(max_examples=200, deadline=None)
@given(st.lists(WORDS, min_size=1, max_size=8), st.lists(WORDS, min_size=1, max_size=8), st.floats(0.3, 1.0))
def test_the_index_finds_what_an_all_pairs_loop_finds(
    training: list[str], tested: list[str], threshold: float
) -> None:
    queries = {str(index): text for index, text in enumerate(tested)}
    collection = in_memory("c", "test", PASSAGES, queries, {query: {"p1": 1} for query in queries})
    found = find_leaks([TrainingPair(text, "z") for text in training], collection, threshold=threshold)
    expected = {
        (row, query_id): similarity
        for row, text in enumerate(training)
        for query_id, query in queries.items()
        if (similarity := similarity_by_definition(text, query, threshold))
    }
    assert {(leak.row, leak.id): leak.similarity for leak in found} == pytest.approx(expected)
    assert all((leak.kind == "exact") == (normal_form(training[leak.row]) == normal_form(queries[leak.id])) for leak in found)  # fmt: skip


CLAIM = "In adults, low-dose IL-6 (1.5 mg/kg) doesn't prevent COVID-19 relapse after 12 weeks"


@pytest.mark.parametrize(
    "text",
    [
        CLAIM.upper(),
        CLAIM.translate(str.maketrans("", "", string.punctuation)),
        CLAIM.replace("-", " ").replace("'", "’") + "?!",
        *(" ".join(CLAIM.split()[:i] + CLAIM.split()[i + 1 :]) for i in range(len(CLAIM.split()))),
        " ".join(CLAIM.split()[:8] + CLAIM.split()[9:]).translate(str.maketrans("", "", string.punctuation)).lower(),
        CLAIM.replace("low", "very low"),
        CLAIM.replace(" ", "\u00a0\n").replace("12", "１２"),
    ],
)  # fmt: skip
def test_a_word_less_or_more_punctuation_and_case_hide_nothing(text: str) -> None:
    queries = {"q": CLAIM, "other": "An unrelated question about the weather in the mountains"}
    collection = in_memory("c", "test", PASSAGES, queries, {"q": {"p1": 1}, "other": {"p2": 1}})
    assert {leak.id for leak in find_leaks([TrainingPair(text, "z")], collection)} == {"q"}


@pytest.mark.parametrize(
    "text",
    [
        CLAIM.replace("adults", "children"),
        CLAIM.replace("weeks", "years"),
        CLAIM.replace("IL-6", "IL-8"),
        CLAIM.replace("12 weeks", "6 weeks"),
        "In adults, low-dose IL-6 helps",
        "does low-dose IL-6 prevent relapse of COVID-19 in adults, 12 weeks after (1.5 mg/kg)",
    ],
)
def test_look_alikes_are_no_leaks(text: str) -> None:
    collection = in_memory("c", "test", PASSAGES, {"q": CLAIM}, {"q": {"p1": 1}})
    assert find_leaks([TrainingPair(text, "z")], collection) == []


def test_several_collections_are_searched_at_once_and_rows_stay_in_order() -> None:
    other = in_memory("other", "test", PASSAGES[:1], {"x": QUERIES["q2"]}, {"x": {"p1": 1}})
    rows = [TrainingPair("unheard of", PASSAGES[0].text), TrainingPair(QUERIES["q2"], "nothing")]
    found = list(iter_leaks(iter(rows), [hold_out(COLLECTION), hold_out(other, passages="none")]))
    assert [(leak.row, leak.field, leak.against, leak.id) for leak in found] == [
        (0, "positive", "tests", "p1"), (1, "query", "tests", "q2"), (1, "query", "other", "x"),
    ]  # fmt: skip


def test_texts_without_any_word_match_nothing() -> None:
    collection = in_memory("c", "test", PASSAGES, {"q": "?!", "r": "what"}, {"q": {"p1": 1}, "r": {"p1": 1}})
    assert [leak.id for leak in find_leaks([TrainingPair("...", "--"), TrainingPair("What?", "-")], collection)] == ["r"]  # fmt: skip


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
    rqe = load_against(str(data("collections/mediqa2019_qa"))).collection
    exact = {normal_form(rqe.queries[leak.id]) for leak in find_leaks(question_pairs(), rqe, passages="none")
             if leak.kind == "exact" and leak.field == "query"}  # fmt: skip
    assert len(exact) == 93  # the data's README says so
    liveqa = load_collection(f"{data('collections/mediqa2019_qa')}:train_liveqa")
    pairs = [TrainingPair(query, "x") for query in liveqa.queries.values()]
    test = load_collection(f"{data('collections/medquad_liveqa')}:test")
    assert len({leak.row for leak in blocking(find_leaks(pairs, test))}) > 50


@pytest.mark.data
def test_known_abstracts_of_the_real_sets() -> None:
    """Ten abstracts begin alike, says the data's README; one more differs in its first words alone."""
    sysrev = read_pairs(data("pairs/medical/sysrev_title_abstract.jsonl.gz"))
    scifact = load_collection(str(data("collections/scifact")), keep_empty=True)
    found = find_leaks(sysrev, scifact, passages="all")
    assert {leak.field for leak in found} == {"positive"}
    assert {leak.id for leak in found} == {
        "704526", "6191684", "5956016", "23865182", "12672066", "21373821", "22995579", "39300105", "5912283",
        "6549091", "24634621",
    }  # fmt: skip


@pytest.mark.data
@pytest.mark.slow
def test_known_answer_leaks_and_no_others() -> None:
    medquad = read_pairs(data("pairs/medical/medquad.jsonl.gz"))[::8]
    for name in ("medquad_liveqa", "mediqa2019_qa"):
        leaks = find_leaks(medquad, load_collection(str(data(f"collections/{name}"))))
        assert sum(leak.field == "positive" for leak in leaks) > 10
    for name in ("scifact", "covidqa_passages", "mqp", "pubmedqa_l"):
        collection = load_collection(str(data(f"collections/{name}")), keep_empty=True)
        assert find_leaks(medquad, collection, passages="all") == []


def test_a_row_with_several_positives_is_one_row(tmp_path: Path) -> None:
    other = {"query": "unheard of", "positive": "nothing"}
    row = {"query": QUERIES["q1"], "positive": ["new", PASSAGES[0].text], "negatives": [PASSAGES[1].text]}
    (tmp_path / "p.jsonl").write_text("\n".join(map(json.dumps, (other, row, other))), encoding="utf-8")
    leaks = find_leaks(read_pairs(tmp_path / "p.jsonl"), COLLECTION, passages="all")
    assert [(leak.row, leak.field) for leak in leaks] == [(1, "query"), (1, "positive"), (1, "negative")]


def test_what_leaks_mean() -> None:
    rows = [
        TrainingPair(
            QUERIES["q1"], PASSAGES[2].text
        ),  # a test query with a passage that is not judged for it
        TrainingPair("unheard of", PASSAGES[0].text, (PASSAGES[1].text, "else")),
        TrainingPair("never asked", PASSAGES[2].text),
    ]
    leaks = find_leaks(rows, COLLECTION, passages="all")
    findings = {f.kind: f for f in explain_leaks(leaks, COLLECTION)}
    assert {kind: (f.rows, f.texts) for kind, f in findings.items()} == {
        "query": (1, 1), "unlabelled": (1, 1), "answer": (1, 1), "unjudged": (1, 1), "punished": (1, 1),
    }  # fmt: skip
    assert findings["query"].sentence.startswith("1 row with a query of tests:")
    (example,) = findings["punished"].examples
    assert example.training == PASSAGES[1].text and example.held_out == PASSAGES[1].full_text


def test_a_folder_without_a_split_stands_for_all_of_them(tmp_path: Path) -> None:
    for split, query in (("dev", "q1"), ("test", "q2")):
        judged = {query: {"p1": 1}}
        write_folder(in_memory("both", split, PASSAGES, {query: QUERIES[query]}, judged), tmp_path / "both")
    both = load_against(str(tmp_path / "both"))
    assert set(both.collection.queries) == {"q1", "q2"}
    assert set(load_against(f"{tmp_path / 'both'}:dev").collection.queries) == {"q1"}
    rows = [TrainingPair(QUERIES["q2"], PASSAGES[0].full_text, (PASSAGES[2].full_text,))]
    found = list(iter_leaks(rows, [hold_out(both.collection, passages="all", splits=both.splits)]))
    assert [(leak.field, leak.split) for leak in found] == [
        ("query", "test"), ("positive", "dev,test"), ("negative", "dev,test"),
    ]  # fmt: skip
    dev = load_against(f"{tmp_path / 'both'}:dev")
    (positive, *_) = iter_leaks(rows, [hold_out(dev.collection, splits=dev.splits)])
    assert (positive.field, positive.split) == ("positive", "dev")
