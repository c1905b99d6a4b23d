"""Collections: what is read is what is there, and whatever is wrong is named with its file and line."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medley.collections import (
    FolderCorpus,
    Passage,
    in_memory,
    load_collection,
    read_folder,
    split_spec,
    write_folder,
)
from medley.errors import CollectionError

CORPUS = ['{"_id": "a", "title": "T", "text": "first"}', '{"_id": "b", "text": "second"}']
QUERIES = ['{"_id": "q1", "text": "one?"}', '{"_id": "q2", "text": "two?"}']
QRELS = ["query-id\tcorpus-id\tscore", "q1\ta\t2", "q1\tb\t0"]


def folder(tmp_path: Path, corpus=CORPUS, queries=QUERIES, qrels=QRELS) -> Path:
    root = tmp_path / "collection"
    (root / "qrels").mkdir(parents=True)
    for name, lines in (("corpus.jsonl", corpus), ("queries.jsonl", queries), ("qrels/test.tsv", qrels)):
        (root / name).write_bytes(
            b"\n".join(x if isinstance(x, bytes) else x.encode() for x in lines) + b"\n"
        )
    return root


def test_reads_a_beir_folder(tmp_path):
    collection = load_collection(str(folder(tmp_path)))
    assert collection.split == "test"
    assert list(collection.queries) == ["q1"], "a query that the split does not judge is left out"
    assert collection.judgements == {"q1": {"a": 2, "b": 0}}
    assert collection.positives("q1") == ["a"]
    assert [p.full_text for p in collection.corpus] == ["T first", "second"]
    assert collection.corpus[1] == Passage("b", "second")
    assert [p.id for p in collection.corpus[:2]] == ["a", "b"]


@pytest.mark.parametrize(
    ("part", "lines", "message"),
    [
        ("corpus", [CORPUS[0], '{"_id": "b", "text": '], r"corpus.jsonl:2: not valid JSON"),
        ("corpus", [CORPUS[0], CORPUS[0]], r"corpus.jsonl:2: duplicate passage id 'a'"),
        (
            "corpus",
            [CORPUS[0], '{"_id": "b", "text": "  "}'],
            r"corpus.jsonl:2: the passage is empty; give it a text",
        ),
        (
            "corpus",
            [CORPUS[0], b'{"_id": "b", "text": "\xff"}'],
            r"corpus.jsonl:2: byte \d+ of the line is not UTF-8",
        ),
        ("corpus", [CORPUS[0], '["b"]'], r"corpus.jsonl:2: expected a JSON object, found a list"),
        ("corpus", [CORPUS[0], '{"text": "x"}'], r"corpus.jsonl:2: no usable _id"),
        ("corpus", [""], r"corpus.jsonl: holds no passages"),
        ("queries", [QUERIES[0], QUERIES[0]], r"queries.jsonl:2: duplicate query id 'q1'"),
        ("queries", ['{"_id": "q1", "text": ""}'], r"queries.jsonl:1: query 'q1' is empty"),
        ("queries", ['{"_id": "q1", "text": 7}'], r"queries.jsonl:1: query 'q1': text is a number"),
        (
            "queries",
            ['{"_id": "q1", "query": "x"}'],
            r"queries.jsonl:1: query 'q1': no key `text` \(found: _id, q",
        ),
        ("corpus", ['{"_id": "a\\tb", "text": "x"}'], r"corpus.jsonl:1: the _id 'a\\tb' holds a tab"),
        ("corpus", ['{"_id": "a", "text": null}'], r"corpus.jsonl:1: text is null; it must be a string"),
        ("corpus", ['{"_id": "a", "title": "T"}'], r"corpus.jsonl:1: no key `text` \(found: _id, title\)"),
        ("corpus", ['{"_id": 1, "text": "x"}', '{"_id": "1", "text": "y"}'], r":2: duplicate passage id '1'"),
    ],
)
def test_names_what_is_wrong_and_where(tmp_path, part, lines, message):
    with pytest.raises(CollectionError, match=message):
        read_folder(folder(tmp_path, **{part: lines}), "test")


def test_missing_things_are_named(tmp_path):
    root = folder(tmp_path)
    with pytest.raises(CollectionError, match="this collection has: test"):
        load_collection(f"{root}:dev")
    with pytest.raises(CollectionError, match="no such folder"):
        load_collection(str(tmp_path / "nowhere"))
    with pytest.raises(CollectionError, match="environment variable is not set"):
        load_collection("$MEDLEY_NOT_SET/x")
    with pytest.raises(CollectionError, match="there are demo/general, demo/medicine"):
        load_collection("demo/nothing")


def test_a_split_follows_the_last_colon():
    assert split_spec("data/mine:dev") == ("data/mine", "dev")
    assert split_spec("SciFact") == ("SciFact", "test")
    assert split_spec("C:/data/mine") == ("C:/data/mine", "test")


text = st.text(st.characters(codec="utf-8", exclude_characters="\r\n\x85\u2028\u2029"), min_size=1).filter(
    lambda t: t.strip()
)


@settings(max_examples=40, deadline=None)
@given(texts=st.lists(text, min_size=1, max_size=6), title=st.one_of(st.just(""), text))
def test_what_is_written_is_read_back(tmp_path_factory, texts, title):
    passages = [Passage(f"p{i}", t, title) for i, t in enumerate(texts)]
    collection = in_memory("x", "test", passages, {"q": texts[0]}, {"q": {"p0": 1}})
    root = tmp_path_factory.mktemp("c")
    write_folder(collection, root)
    again = read_folder(root, "test")
    assert list(again.corpus) == passages
    assert [again.corpus[i] for i in range(len(passages))] == passages
    assert dict(again.queries) == dict(collection.queries)
    assert again.judgements == collection.judgements


def test_identity_follows_content(tmp_path):
    first = load_collection(str(folder(tmp_path / "1")))
    same = load_collection(str(folder(tmp_path / "2")))
    other = load_collection(str(folder(tmp_path / "3", qrels=[*QRELS, "q2\tb\t1"])))
    assert first.identity == same.identity != other.identity


def test_a_corpus_keeps_ids_and_offsets_not_texts(tmp_path):
    path = tmp_path / "corpus.jsonl"
    path.write_text("".join(f'{{"_id": "{i}", "text": "{"word " * 200}{i}"}}\n' for i in range(500)))
    corpus = FolderCorpus(path)
    held = {k: v for k, v in vars(corpus).items() if k not in ("path", "_keep_empty")}
    assert set(held) == {"ids", "_offsets"} and len(held["_offsets"]) == 500
    assert corpus[499].text.endswith("499") and corpus[-1] == corpus[499]


def test_a_split_is_sliced_by_queries_in_file_order(tmp_path):
    qrels = [QRELS[0], *(f"q{i}\ta\t{i % 2}" for i in range(10)), "q0\tb\t1"]
    root = folder(tmp_path, queries=[f'{{"_id": "q{i}", "text": "{i}?"}}' for i in range(10)], qrels=qrels)

    def queries(spec):
        return list(load_collection(f"{root}:{spec}").queries)

    assert queries("test[:60%]") == [f"q{i}" for i in range(6)]
    assert queries("test[60%:]") == [f"q{i}" for i in range(6, 10)]
    assert queries("test[2:4]") == ["q2", "q3"]
    whole, part = (load_collection(f"{root}:{spec}") for spec in ("test", "test[:60%]"))
    assert part.judgements["q0"] == {"a": 0, "b": 1} and whole.identity != part.identity
    with pytest.raises(
        CollectionError, match="the slice holds no relevant judgement; the split has 10 queries"
    ):
        queries("test[90:]")
