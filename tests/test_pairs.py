"""Training pairs: our layout and three foreign ones, and what is wrong is named with its line."""

from __future__ import annotations

import json

import pytest

from medley.collections import Passage, in_memory
from medley.errors import PairsError
from medley.pairs import TrainingPair, numbered, pairs_from_collection, read_pairs, write_pairs

PAIR = TrainingPair("q", "p", ("n1", "n2"), "Find it", "src", {"row": 3, "mined": {"ranks": [4]}})


@pytest.mark.parametrize("name", ["pairs.jsonl", "pairs.jsonl.gz", "pairs.parquet"])
def test_what_is_written_is_read_back(tmp_path, name):
    assert write_pairs(tmp_path / name, [PAIR, TrainingPair("a", "b")]) == 2
    assert read_pairs(tmp_path / name) == [PAIR, TrainingPair("a", "b")]


@pytest.mark.parametrize(
    "row",
    [
        {"anchor": "q", "positive": "p", "negative_2": "n2", "negative_1": "n1"},
        {"query": "q", "positive": "p", "negative": "n1", "negative_1": "n2"},
        {"query": "q", "positive": "p", "negative": ["n1", "n2"]},
        {"query": "q", "positive": ["p"], "negatives": ["n1", "n2"]},
        {
            "query_id": "1", "query": "q",
            "positive_passages": [{"docid": "1", "title": "", "text": "p"}],
            "negative_passages": [{"docid": "2", "title": "n1", "text": ""}, {"docid": "3", "text": "n2"}],
        },
        {"query": "q", "pos": ["p"], "neg": ["n1", "n2"]},
    ],
    ids=["sentence-transformers", "triplet", "list", "lists", "tevatron", "flagembedding"],
)  # fmt: skip
def test_reads_foreign_layouts(tmp_path, row):
    path = tmp_path / "x.jsonl"
    path.write_text(json.dumps(row))
    (pair,) = read_pairs(path)
    assert (pair.query, pair.positive, pair.negatives) == ("q", "p", ("n1", "n2"))


@pytest.mark.parametrize(
    "row",
    [
        {"query": "q", "positive": ["p1", "p2", "p1"], "negative": ["n"]},
        {"query": "q", "pos": ["p1", "p2"], "neg": ["n"]},
        {
            "query": "q", "positive_passages": [{"text": "p1"}, {"text": "p2"}],
            "negative_passages": [{"text": "n"}],
        },
    ],
)  # fmt: skip
def test_a_row_with_several_positives_is_as_many_pairs_of_one_row(tmp_path, row):
    path = tmp_path / "x.jsonl"
    path.write_text("\n".join(json.dumps(line) for line in ({"query": "a", "positive": "b"}, row, row)))
    pairs = read_pairs(path)
    wanted = [TrainingPair("q", "p1", ("n",)), TrainingPair("q", "p2", ("n",))]
    assert pairs == [TrainingPair("a", "b"), *wanted, *wanted]
    assert [number for number, _ in numbered(pairs)] == [0, 1, 1, 2, 2]
    write_pairs(tmp_path / "y.jsonl", pairs)
    assert [number for number, _ in numbered(read_pairs(tmp_path / "y.jsonl"))] == [0, 1, 2, 3, 4]
    assert "row" not in json.loads((tmp_path / "y.jsonl").read_text().splitlines()[0])


def test_reads_a_dataset_folder(tmp_path):
    import datasets

    rows = datasets.Dataset.from_list([{"anchor": "q", "positive": "p", "negative": "n"}])
    rows.save_to_disk(tmp_path / "set")
    assert read_pairs(tmp_path / "set") == [TrainingPair("q", "p", ("n",))]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"query": "q", "positive"', r":2: not valid JSON"),
        ('{"query": "q"}', r":2: no key 'positive' \(found: query\)"),
        ('{"query": " ", "positive": "p"}', r":2: query is empty"),
        ('{"query": "q", "positive": "p", "negatives": ["p "]}', r":2: negative 0 equals the positive"),
        ('{"query": "q", "positive": "p", "negatives": ["n", ""]}', r":2: negative 1 is empty"),
        ('{"query": "q", "positive": "p", "negatives": "n"}', r":2: negatives must be a list"),
        ('{"query": "q", "positive": "p", "negative": ["n", ""]}', r":2: negative 1 is empty"),
        (
            '{"query": "q", "positive": "p", "negative": ["n", 7]}',
            r":2: negative 1 is empty or not a string",
        ),
        (
            '{"query": "q", "positive": ["p", "p2"], "negative": "p2 "}',
            r":2: negative equals a positive of its",
        ),
        (
            '{"query": "q", "positive": "caf\\u00e9", "negative": "cafe\\u0301"}',
            r":2: negative equals the positive",
        ),
        ('{"query": "q", "positive": ["p", ""]}', r":2: positive 1 is empty"),
        ('{"query": "q", "positive": {"p": 1}}', r":2: positive is empty or not a string"),
        ('{"query": "q", "pos": []}', r":2: pos is empty; a row needs a positive"),
        ('{"query": "q", "positive_passages": []}', r":2: positive_passages is empty"),
    ],
)
def test_names_what_is_wrong_and_where(tmp_path, line, message):
    path = tmp_path / "x.jsonl"
    path.write_text('{"query": "a", "positive": "b"}\n' + line + "\n")
    with pytest.raises(PairsError, match=message):
        read_pairs(path)


def test_not_utf8_missing_and_empty(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_bytes(b'{"query": "\xe9", "positive": "b"}\n')
    with pytest.raises(PairsError, match=r"x.jsonl:1: byte 11 of the line is not UTF-8"):
        read_pairs(path)
    with pytest.raises(PairsError, match="no such file"):
        read_pairs(tmp_path / "none.jsonl")
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(PairsError, match="holds no rows"):
        read_pairs(tmp_path / "empty.jsonl")


def test_what_repeats_another_positive_of_its_query_is_no_judged_negative():
    passages = [Passage("a", "first answer"), Passage("b", "second  answer"), Passage("c", "second answer")]
    collection = in_memory("c", "train", passages, {"q": "query"}, {"q": {"a": 1, "b": 1, "c": 0}})
    assert [pair.negatives for pair in pairs_from_collection(collection)] == [(), ()]


def test_judgements_become_pairs_and_zeros_negatives():
    passages = [Passage(i, f"text {i}", "T") for i in "abcd"]
    collection = in_memory("c", "train", passages, {"q": "query"}, {"q": {"a": 2, "b": 1, "c": 0}})
    pairs = pairs_from_collection(collection, instruction="Find", source="s")
    assert [p.positive for p in pairs] == ["T text a", "T text b"]
    assert all(p.negatives == ("T text c",) and p.provenance["judged_negatives"] == ["c"] for p in pairs)
    bare = pairs_from_collection(collection, with_judged_negatives=False)
    assert all(p.negatives == () for p in bare)
