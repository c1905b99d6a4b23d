"""Judgements: every layout that people have gives the same, what is not there is counted, what is wrong has its line."""

from __future__ import annotations

import json

import pytest

from medley.collections import load_collection
from medley.errors import CollectionError
from medley.evaluate.scores import evaluate_bm25
from medley.qrels import read_qrels
from small import medley, write_lines

KNOWN = {"known_queries": {"q1", "q2"}, "known_passages": {"a", "b"}}
WANTED = {"q1": {"a": 2, "b": 0}, "q2": {"b": 1}}


@pytest.mark.parametrize(
    "text",
    [
        "query-id\tcorpus-id\tscore\nq1\ta\t2\nq1\tb\t0\nq2\tb\t1\n",
        "q1\ta\t2\nq1\tb\t0\nq2\tb\t1\n",
        "q1 0 a 2\nq1 0 b 0\nq2 0 b 1\n",
        "q1\tQ0\ta\t2\nq1\tQ0\tb\t0\nq2\tQ0\tb\t1",
        "query_id\tcorpus_id\tscore\nq1\ta\t2\nq1\tb\t0\nq2\tb\t1\n",
        "qid pid label\nq1 a 2\nq1 b 0\nq2 b 1\n",
        "docid\tRelevance\tQuery_ID\na\t2\tq1\nb\t0\tq1\nb\t1\tq2\n",
        "query_id\titeration\tdoc_id\trelevance\nq1\t0\ta\t2\nq1\t0\tb\t0\nq2\t0\tb\t1\n",
        "\ufeffquery-id\tcorpus-id\tscore\r\nq1\ta\t2\r\n\r\nq1\tb\t0\r\nq2\tb\t1\r\n",
        "q1\ta\t2.0\nq1\tb\t0.\nq2\tb\t+1\n",
        "q1\ta\t2\nq1\ta\t2\nq1\tb\t0\nq2\tb\t1\n",
    ],
    ids=["beir", "bare", "trec", "trec-tabs", "underscores", "spaces", "any-order", "four-names", "windows", "floats", "twice"],
)  # fmt: skip
def test_every_usual_layout_is_read(tmp_path, text):
    path = tmp_path / "test.tsv"
    path.write_bytes(text.encode())
    assert read_qrels(path, **KNOWN) == (WANTED, 0)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["q1\ta\tyes"], r"test.tsv:2: score 'yes' is not a whole number; use 0, 1, 2"),
        (["q1\ta\t0.5"], r"test.tsv:2: score '0.5' is not a whole number"),
        (["q1\ta\tinf"], r"test.tsv:2: score 'inf' is not a whole number"),
        (["q1\ta\t" + "9" * 5000], r"test.tsv:2: score '9+' is not a whole number"),
        (["q1\ta\t2", "q1\ta\t1"], r"test.tsv:3: 'q1' judges 'a' a second time, and differently"),
        (["q1 a"], r"test.tsv:2: 2 columns where the first line has 3"),
        (["q1\ta\t0"], r"test.tsv: no judgement above 0"),
        (
            ["q9\ta\t1", "q1\tz\t1"],
            r"test.tsv:2: query id 'q9' is not in queries.jsonl, and so it is with every",
        ),
        ([], r"test.tsv: no judgement above 0"),
    ],
)
def test_names_what_is_wrong_and_where(tmp_path, lines, message):
    path = tmp_path / "test.tsv"
    path.write_text("\n".join(["query-id\tcorpus-id\tscore", *lines]) + "\n")
    with pytest.raises(CollectionError, match=message):
        read_qrels(path, **KNOWN)


@pytest.mark.parametrize(
    ("first", "message"),
    [
        ("query-id\tcorpus-id\twhatever", r"test.tsv:1: the columns query-id, corpus-id, whatever do not name"),
        ("qid\tquery\tpid\tscore", r"test.tsv:1: the columns .* once each; write query-id, corpus-id, score with tabs"),
        ("q1", r"test.tsv:1: 1 column; write query-id"),
        ("q1 Q0 a 1 2.5 run", r"test.tsv:1: 6 columns; write query-id"),
    ],
)  # fmt: skip
def test_a_first_line_that_names_no_columns(tmp_path, first, message):
    path = tmp_path / "test.tsv"
    path.write_text(first + "\nq1\ta\t1\n")
    with pytest.raises(CollectionError, match=message):
        read_qrels(path, **KNOWN)


@pytest.fixture
def dangling(tmp_path):
    """BEIR's ArguAna in little: judgements of passages, and here of a query too, that are not there."""
    (tmp_path / "c" / "qrels").mkdir(parents=True)
    passages = {"a": "insulin lowers glucose", "b": "copper conducts"}
    write_lines(tmp_path / "c/corpus.jsonl", [{"_id": i, "text": t} for i, t in passages.items()])
    write_lines(
        tmp_path / "c/queries.jsonl",
        [{"_id": "q1", "text": "what lowers glucose"}, {"_id": "q2", "text": ""}],
    )
    judged = "q1\ta\t1\nq1\tgone\t1\nq1\tgone2\t0\nq7\ta\t1\n"
    (tmp_path / "c/qrels/test.tsv").write_text("query-id\tcorpus-id\tscore\n" + judged)
    return tmp_path / "c"


def test_dangling_judgements_are_left_out_counted_and_told(dangling, capsys):
    collection = load_collection(f"{dangling}:test")
    assert collection.judgements == {"q1": {"a": 1}} and collection.dangling == 3
    assert capsys.readouterr().err == (
        f"{dangling}/qrels/test.tsv:3: passage id 'gone' is in no line of corpus.jsonl; "
        "3 such judgements are left out\n"
    )
    (scores,) = evaluate_bm25([collection]).values()
    assert scores.as_json()["dangling_judgements"] == 3 and scores.ndcg_at_10 == 1.0


def test_dangling_judgements_stand_in_the_results(dangling, tmp_path):
    out = tmp_path / "r.json"
    done = medley("evaluate", "bm25", "--task", f"{dangling}:test", "--out", out)
    assert done.code == 0 and "3 such judgements are left out" in done.err
    assert json.loads(out.read_text())["tasks"]["c"]["dangling_judgements"] == 3


def test_a_query_without_text_matters_only_to_a_split_that_judges_it(dangling):
    (dangling / "qrels/dev.tsv").write_text("q2\ta\t1\n")
    assert load_collection(f"{dangling}:test").queries == {"q1": "what lowers glucose"}
    with pytest.raises(CollectionError, match=r"queries.jsonl:2: query 'q2' is empty"):
        load_collection(f"{dangling}:dev")
