"""Cut texts are counted where texts are encoded, each once, whatever was kept from before."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest

from medley.collections import load_collection
from medley.encoder import RetrieverSettings, build_retriever, encode_passages, encode_queries, token_ids
from medley.evaluate.systems import Options, Row, evaluate_rows, system_of
from medley.merge.pool import build_pool, score_candidate
from medley.noticed import Count, count_as, notice, noticing
from medley.search import encode_corpus
from small import PASSAGES, medley, training_rows, write_collection, write_lines, write_recipe

LIMIT = 24


@pytest.fixture(scope="module")
def retriever(tiny_model_folder):
    settings = RetrieverSettings(dtype="float32", max_length=LIMIT)
    return build_retriever(str(tiny_model_folder), settings, device="cpu")


def longer(retriever, texts) -> list[bool]:
    """By another way: without truncation, the end token included."""
    return [len(retriever.model.tokenizer(text, truncation=False)["input_ids"]) > LIMIT for text in texts]


def texts_around_the_limit(retriever) -> list[str]:
    """Texts of every length from far below the limit to far above it: one is just as long as the limit."""
    lengths = {}
    for words in range(1, 60):
        text = "z" * words
        lengths[len(retriever.model.tokenizer(text, truncation=False)["input_ids"])] = text
    assert {LIMIT - 1, LIMIT, LIMIT + 1} <= set(lengths)
    return list(lengths.values())


def test_a_text_of_just_the_limit_is_not_cut(retriever):
    texts = texts_around_the_limit(retriever)
    expected = longer(retriever, texts)
    assert 0 < sum(expected) < len(texts)
    assert token_ids(retriever, texts)[1].tolist() == expected
    prompt = retriever.document_prompt
    expected = longer(retriever, [prompt + text for text in texts])
    with noticing() as noticed:
        encode_passages(retriever, [*texts, texts[-1]])
    assert (noticed.flags("passages") == 1).tolist() == [*expected, expected[-1]]
    assert noticed.counts() == {"passages": Count(len(texts) + 1, sum(expected) + 1)}


def test_scopes_count_for_themselves_and_names_count_once():
    notice("queries", np.ones(3, np.uint8), max_tokens=8)  # nobody listens
    with noticing() as outer:
        for _ in range(2):
            with noticing() as inner:
                notice("queries", np.array([1, 0, 4, 2], np.uint8), max_tokens=8)
            count_as("queries of dev", inner.counts()["queries"])
    assert outer.counts() == {"queries of dev": Count(3, 1, 1)}
    assert outer.as_json() == {"queries of dev": {"texts": 3, "cut": 1, "share": 0.3333, "zero_vectors": 1}}


def test_what_is_kept_from_before_is_counted_too(retriever, tmp_path):
    collection = load_collection(f"{write_collection(tmp_path / 'data')}:test")
    texts = [retriever.document_prompt + passage.full_text for passage in collection.corpus]
    expected = {
        "texts": 12,
        "cut": sum(longer(retriever, texts)),
        "share": round(sum(longer(retriever, texts)) / 12, 4),
    }
    assert expected["cut"]
    for _ in range(2):  # the second time from the store
        system, options = system_of("m", retriever), Options(store=tmp_path / "store")
        with noticing() as noticed:
            task = evaluate_rows(system, [Row("m")], collection, options, dict)[Row("m")]
        assert task["cut"]["passages"] == expected and task["cut"]["queries"]["texts"] == 4
        assert noticed.as_json()["passages of data"] == expected
    for _ in range(2):  # the second time from the shards
        with noticing() as noticed:
            encode_corpus(retriever, collection.corpus, store=tmp_path / "shards", shard_rows=5)
        assert noticed.as_json() == {"passages": expected}


def test_candidates_that_encode_the_same_pool_count_it_once(retriever, tmp_path):
    pool = build_pool(load_collection(f"{write_collection(tmp_path / 'data')}:dev"))
    with noticing() as noticed:
        for _ in range(3):
            score_candidate(retriever, [pool])
    assert noticed.counts()["passages of data:dev"].texts == 12


def test_zeros_are_told(retriever, capsys):
    with noticing() as noticed:
        notice("passages", np.array([2, 0], np.uint8), max_tokens=8)
    noticed.tell("mine/a")
    assert capsys.readouterr().err.startswith("mine/a: 1 texts have a vector of zeros")
    encode_queries(retriever, ["nobody listens"])


@pytest.mark.slow
def test_commands_and_runs_tell_what_was_cut(tiny_model_folder, tmp_path):
    data = write_collection(tmp_path / "data")
    long = " ".join(text for _, text in PASSAGES.values())
    rows = [{**row, "positive": f"{row['positive']} {long * 3}"} for row in training_rows("train_a")]
    pairs = write_lines(tmp_path / "pairs.jsonl", rows)
    done = medley("train", "--base", tiny_model_folder, "--pairs", pairs, "--out", tmp_path / "expert")
    assert re.search(
        r"cut to 256 tokens, so that the rest is not read: 4 of 4 positives \(100 %\); raise", done.err
    )
    done = medley("evaluate", tmp_path / "expert", "--task", f"{data}:test")
    assert done.code == 0 and "cut to" not in done.err
    recipe = write_recipe(tmp_path / "r.yaml", tiny_model_folder, data, **{"retriever.max_length": LIMIT})
    plan = medley("run", recipe, "--out", tmp_path / "run", "--plan", "--json").json()
    planned = {row["step"]: row for row in plan}
    assert planned["train/a"]["texts_cut_by_estimate"] == 4
    assert "texts_cut_by_estimate" not in planned["evaluate/bm25"]
    done = medley("run", recipe, "--out", tmp_path / "run")
    assert done.code == 0, done.err
    assert "train/a: cut to 24 tokens" in done.err and "evaluate/base: cut to 24 tokens" in done.err
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())["stages"]
    assert manifest["train"]["a"]["summary"]["cut"]["positives"]["share"] > 0
    results = json.loads((tmp_path / "run" / "results.json").read_text())["variants"]["merged"]["tasks"][
        "data"
    ]
    assert results["cut"]["passages"]["cut"] == planned["evaluate/base"]["texts_cut_by_estimate"]
    assert results["cut"]["passages"]["texts"] == 12 and results["cut"]["passages"]["cut"] > 0
    report = (tmp_path / "run" / "report.html").read_text()
    assert "Texts longer than the model reads" in report and "passages of data" in report
