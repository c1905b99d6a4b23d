"""The pipeline over real parts, in seconds: a random tiny base, twelve passages, two experts of two steps each."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from llm_server import serving
from medley.encoder import encode_passages, encode_queries, open_retriever
from medley.merge.model import merge_model
from medley.merge.settings import parse_merge_file
from medley.pipeline import STAGES
from medley.pipeline.timing import Speeds, timed
from medley.run import locked
from small import contents, medley, write_collection, write_recipe

KINDS = {"other_aspect", "sibling_entity", "contradicted_claim", "partial_answer", "wrong_number"}
VARIANTS = {"merged", "base", "bm25", "all", "expert:a", "expert:b"}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, tiny_model_folder: Path) -> Path:
    """A folder with a finished run; tests that change it work on a copy."""
    folder = tmp_path_factory.mktemp("place")
    write_collection(folder / "coll")
    recipe = write_recipe(folder / "small.yaml", tiny_model_folder, folder / "coll")
    done = medley("run", recipe, "--out", folder / "run")
    assert done.code == 0, done.err
    return folder


@pytest.fixture
def again(place: Path, tmp_path: Path) -> Path:
    """A copy of the finished run; nothing in it knows where it lay."""
    return Path(shutil.copytree(place / "run", tmp_path / "run"))


def rerun(place: Path, run: Path, *arguments: object) -> list[str]:
    """The steps that a further call makes."""
    done = medley("run", place / "small.yaml", "--out", run, *arguments)
    assert done.code == 0, done.err
    return [line.split()[1] for line in done.err.splitlines() if line.startswith("[")]


def means(run: Path) -> dict[str, float]:
    variants = json.loads((run / "results.json").read_text())["variants"]
    return {name: result["tasks"]["coll"]["ndcg_at_10"] for name, result in variants.items()}


def test_everything_from_data_to_proof_is_there(place):
    run = place / "run"
    results = json.loads((run / "results.json").read_text())
    assert set(results["variants"]) == VARIANTS
    for result in results["variants"].values():
        task = result["tasks"]["coll"]
        assert task["split"] == "test" and set(task["per_query"]) == {"t1", "t2", "t3", "t4"}
        per_query = [scores["ndcg_at_10"] for scores in task["per_query"].values()]
        assert task["ndcg_at_10"] == pytest.approx(sum(per_query) / 4)
        assert {"recall_at_100", "mrr_at_10"} <= set(task)
    assert means(run)["bm25"] > 0.9, "words decide in this collection"
    assert {row["b"] for row in results["comparisons"]} == VARIANTS - {"merged"}
    manifest = json.loads((run / "manifest.json").read_text())
    assert list(manifest["stages"]) == [stage for stage in STAGES if stage != "pretrain"]
    assert manifest["seed"] == 3 and manifest["seconds"] > 0 and manifest["versions"]["torch"]
    page = (run / "report.html").read_text()
    assert "<html" in page and "http://" not in page.replace("http://www.w3.org", "")
    assert {entry.name for entry in run.iterdir()} == {
        "failures.json", "manifest.json", "model", "recipe.yaml", "report.html", "results.json", "stages", "vectors",
    }  # fmt: skip


def test_negatives_come_from_judgements_mining_and_perturbation(place):
    stages = place / "run" / "stages"

    def rows(stage: str) -> list[dict]:
        return [json.loads(line) for line in (stages / stage / "a" / "pairs.jsonl").read_text().splitlines()]

    judged, mined, generated = rows("sources"), rows("mine"), rows("synthesize")
    assert len(judged) == len(mined) == len(generated) == 4
    corpus = {row["positive"] for row in judged} | {text for row in judged for text in row["negatives"]}
    written = [row for row in generated if row["negatives"]]
    assert written, "perturbation made nothing"
    for row in written:
        change = row["provenance"]["perturbed"]["changes"][0]
        assert change["from"] in row["positive"] and change["to"] in row["negatives"][0]
        assert not set(row["negatives"]) & corpus
    assert any(row["negatives"] for row in mined)
    assert all(text != row["positive"] for row in (*mined, *generated) for text in row["negatives"])


PLAIN = """
import json, sys
import numpy as np
from sentence_transformers import SentenceTransformer
model = SentenceTransformer(sys.argv[1])
texts = json.load(sys.stdin)
assert not any(name.split(".")[0] == "medley" for name in sys.modules)
np.savez(sys.argv[2], queries=model.encode_query(texts), passages=model.encode_document(texts))
"""


def test_the_model_opens_without_medley_and_gives_the_scored_vectors(place, tmp_path, tiny_model_folder):
    texts = ["which penicillin for an ear infection", "Copper is a metal.", "x"]
    subprocess.run(
        [sys.executable, "-I", "-c", PLAIN, place / "run" / "model", tmp_path / "plain.npz"],
        input=json.dumps(texts), text=True, check=True, capture_output=True,
    )  # fmt: skip
    plain = np.load(tmp_path / "plain.npz")
    ours = open_retriever(str(place / "run" / "model"))
    assert ours.instruction
    np.testing.assert_allclose(plain["queries"], encode_queries(ours, texts), atol=1e-5)
    np.testing.assert_allclose(plain["passages"], encode_passages(ours, texts), atol=1e-5)
    search = json.loads((place / "run/stages/merge/search/search.json").read_text())
    gate = json.loads((place / "run/manifest.json").read_text())["stages"]["merge"]["model"]["summary"]
    assert gate["min_cosine_to_scored"] > 0.9999
    assert gate["min_cosine_to_base"] < 0.99999 and any(search["best"]["coefficients"].values())


def test_a_finished_run_does_nothing_and_says_so(place, again):
    before = contents(again)
    assert rerun(place, again) == []
    assert contents(again) == before
    states = medley("status", again, "--json").json()
    assert {state["state"] for state in states} == {"done"}


def test_what_was_handed_over_is_checked_and_put_right(place, again):
    (again / "results.json").unlink()
    (again / "report.html").unlink()
    (again / "model/config.json").write_text("mine")
    (again / "model/notes.txt").write_text("mine")
    rows = medley("status", again, "--json").json()
    assert {row["why"] for row in rows if row["state"] != "done"} == {
        "model/config.json was changed after it was made", "results.json is not there", "report.html is not there",
    }  # fmt: skip
    assert rerun(place, again) == [], "all of it is in the artefacts"
    assert {row["state"] for row in medley("status", again, "--json").json()} == {"done"}
    for name in ("results.json", "report.html", "model/config.json", "model/README.md"):
        assert (again / name).read_bytes() == (place / "run" / name).read_bytes(), name
    assert {path.name for path in again.glob("edited/*/model/*")} == {"config.json", "notes.txt"}
    shutil.rmtree(again / "model")
    assert rerun(place, again, "--until", "sources") == []
    assert contents(again / "model") == contents(place / "run/model")


def test_a_finished_run_can_be_taken_whole(place, tmp_path):
    done = medley("run", place / "small.yaml", "--out", tmp_path / "new", "--reuse", place / "run")
    assert done.code == 0 and "nDCG@10" in done.out, done.err
    assert not [line for line in done.err.splitlines() if line.startswith("[")]
    for name in ("results.json", "report.html", "recipe.yaml", "manifest.json", "failures.json"):
        assert (tmp_path / "new" / name).read_bytes() == (place / "run" / name).read_bytes(), name
    assert contents(tmp_path / "new/model") == contents(place / "run/model")


def test_what_was_handed_over_speaks_of_its_own_run(place, again, monkeypatch):
    def handed_over():
        return {name: content for name, content in contents(again).items() if name in before}

    before = {n: c for n, c in contents(again).items() if not n.startswith(("stages/", "vectors/", "."))}
    other = ("--set", "seed=99", "--set", "licence=mit", "--set", "leaks=drop")
    assert rerun(place, again, "--until", "leaks", *other) != []
    assert handed_over() == before and "licence: mit" in (again / "recipe-unfinished.yaml").read_text()
    last = medley("status", again, "--json").json()[-1]
    assert (
        last["state"] == "stale" and "recipe-unfinished.yaml was run later and not to its end" in last["why"]
    )
    monkeypatch.setattr("medley.run.PATIENCE_S", 0.0)
    with locked(again):
        refused = medley("run", place / "small.yaml", "--out", again, "--set", "seed=98")
    assert refused.code == 2 and "another process is working on this run" in refused.err
    assert handed_over() == before and "seed: 99" in (again / "recipe-unfinished.yaml").read_text()
    rerun(place, again, "--until", "leaks")
    assert not (again / "recipe-unfinished.yaml").exists(), "the recipe of before is run again"
    assert rerun(place, again, "--set", "licence=mit") == ["report/report"]
    assert "license: mit" in (again / "model/README.md").read_text()
    assert "licence: mit" in (again / "recipe.yaml").read_text()
    assert not (again / "recipe-unfinished.yaml").exists()


@pytest.mark.slow
def test_coefficients_changed_by_hand_are_seen_kept_and_found_again(place, again):
    path = again / "stages/merge/search/search.json"
    found = json.loads(path.read_text())
    path.write_text(json.dumps({**found, "best": {**found["best"], "coefficients": {"a": 0.0, "b": 3.0}}}))
    stale = {
        row["step"]: row["why"] for row in medley("status", again, "--json").json() if row["state"] != "done"
    }
    assert stale == {
        "merge/search": "stages/merge/search/search.json was changed after it was made",
        "merge/model": "merge/search has other content than this was made from",
    }
    shutil.rmtree(again / "stages/merge/model")
    assert rerun(place, again) == ["merge/search", "merge/model"], "they are again what was evaluated"
    (kept,) = again.glob("edited/*/stages/merge/search/search.json")
    assert json.loads(kept.read_text())["best"]["coefficients"] == {"a": 0.0, "b": 3.0}
    assert contents(again / "model") == contents(place / "run/model")


def test_a_plan_is_refused_where_the_run_would_be(place, tmp_path):
    (tmp_path / "file").write_text("")
    assert "is a file" in medley("run", place / "small.yaml", "--out", tmp_path / "file", "--plan").err
    other = medley("run", place / "small.yaml", "--out", place / "run", "--set", "name=other", "--plan")
    assert other.code == 2 and "holds another run ('small', not 'other')" in other.err


def test_a_changed_learning_rate_redoes_what_depends_on_it_and_status_says_why(place, again):
    change = ("--set", "train.learning_rate=0.02")
    plan = medley("run", place / "small.yaml", "--out", again, "--plan", "--json", *change).json()
    stale = {row["step"]: row["why"] for row in plan if row["state"] != "done"}
    dependent = {"train/a", "train/b", "train/all", "merge/search", "merge/model", "report/report"}
    dependent |= {f"evaluate/{variant}" for variant in VARIANTS - {"base", "bm25"}}
    assert set(stale) == dependent
    assert stale["train/a"] == "train.learning_rate: 0.01 -> 0.02"
    assert "train/a changed" in stale["merge/search"]
    # a run that stops early leaves the rest stale, and status names the reason
    assert rerun(place, again, "--until", "train", *change) == ["train/a", "train/b", "train/all"]
    rows = {row["step"]: row for row in medley("status", again, "--json").json()}
    assert rows["train/a"]["state"] == "done" and rows["evaluate/base"]["state"] == "done"
    assert rows["merge/search"]["state"] == "stale" and "train/a changed" in rows["merge/search"]["why"]
    text = medley("status", again).out
    assert any(line.startswith("stale") and "merge/search" in line for line in text.splitlines())


@pytest.mark.slow
def test_a_changed_search_leaves_the_experts_alone(place, again):
    change = ("--set", "merge.search.grid=[0, 1]", "--until", "merge")
    assert rerun(place, again, *change) == ["merge/search", "merge/model"]


@pytest.mark.slow
def test_a_run_searches_other_methods_than_sums_and_merges_as_a_merge_file_does(
    place, again, tmp_path, tiny_model_folder
):
    change = (
        "--set",
        "merge.methods=[linear, ties]",
        "--set",
        "merge.parameters={density: 0.6, normalize: false}",
    )
    assert rerun(place, again, *change, "--until", "merge") == ["merge/search", "merge/model"]
    search = json.loads((again / "stages/merge/search/search.json").read_text())
    assert set(search["methods"]) == {"linear", "ties"}
    rerun(place, again, "--set", "merge.methods=[ties]", *change[2:], "--until", "merge")
    found = json.loads((again / "stages/merge/search/search.json").read_text())
    assert found["method"] == "ties" and found["best"]["score"] <= 1
    file = parse_merge_file(
        {
            "base": str(tiny_model_folder), "method": "ties", "weights": found["best"]["coefficients"],
            "experts": {name: str(again / "stages/train" / name / "adapter") for name in "ab"},
            "parameters": {"density": 0.6, "normalize": False}, "dtype": "float32",
        },
        "merge.yaml",
    )  # fmt: skip
    merge_model(file, tmp_path / "by-file")
    ours, theirs = (
        load_file(folder / "model.safetensors")
        for folder in (again / "stages/merge/model/model", tmp_path / "by-file")
    )
    for name, tensor in theirs.items():
        np.testing.assert_allclose(ours[name], tensor, atol=1e-6, err_msg=name)


def test_a_changed_evaluation_only_evaluates(place, again):
    steps = rerun(place, again, "--set", f"evaluate.medical=['{place}/coll:test[:50%]']")
    assert {step.split("/")[0] for step in steps} == {"leaks", "evaluate", "report"}
    assert {step.removeprefix("evaluate/") for step in steps if step.startswith("evaluate")} == VARIANTS


def test_a_further_test_collection_only_evaluates(place, again):
    plan = medley("run", place / "small.yaml", "--out", again, "--plan", "--json",
                  "--set", f"evaluate.medical=['{place}/coll:test', 'demo/general:test']").json()  # fmt: skip
    redone = {row["step"].split("/")[0] for row in plan if row["state"] != "done"}
    assert not redone & {"mine", "synthesize", "prompts", "train", "merge"}


def test_fewer_baselines_only_write_the_report_again(place, again):
    assert rerun(place, again, "--set", "evaluate.baselines=[base]") == ["report/report"]
    assert set(means(again)) == {"merged", "base"}


def test_an_edited_corpus_is_noticed_by_its_content(place, tmp_path, tiny_model_folder):
    collection = Path(shutil.copytree(place / "coll", tmp_path / "coll"))
    recipe = write_recipe(tmp_path / "small.yaml", tiny_model_folder, collection)
    assert medley("run", recipe, "--out", tmp_path / "run", "--until", "mine").code == 0
    assert {r["state"] for r in medley("status", tmp_path / "run", "--json").json()[:4]} == {"done"}
    corpus = collection / "corpus.jsonl"
    corpus.write_text(corpus.read_text().replace("900 years", "800 years"))
    rows = {row["step"]: row for row in medley("status", tmp_path / "run", "--json").json()}
    assert rows["sources/a"]["state"] == "stale" and rows["sources/a"]["why"].startswith("content: ")
    assert rows["mine/a"]["state"] == "stale"


def test_a_plan_refuses_the_folders_that_a_run_refuses(place, tmp_path):
    recipe = place / "small.yaml"
    (tmp_path / "file").write_text("x")
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "thesis.txt").write_text("x")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "manifest.json").write_text('{"name": "another"}')
    before = contents(tmp_path)
    for out in ("file", "file/below", "thesis", "other"):
        planned = medley("run", recipe, "--out", tmp_path / out, "--plan")
        assert planned == medley("run", recipe, "--out", tmp_path / out)
        assert planned.code == 2 and planned.err.count("\n") == 1
    assert contents(tmp_path) == before


def test_until_and_plan(place, tmp_path):
    recipe = place / "small.yaml"
    before = contents(tmp_path)
    plan = medley("run", recipe, "--out", tmp_path / "run", "--plan", "--json")
    assert contents(tmp_path) == before, "--plan touches nothing"
    assert {row["state"] for row in plan.json()} == {"to do"}
    planned = {row["step"]: row for row in plan.json()}
    for name in ("a", "all"):
        adapter = load_file(place / "run/stages/train" / name / "adapter/adapter_model.safetensors")
        assert planned[f"train/{name}"]["trained_parameters"] == sum(
            tensor.size for tensor in adapter.values()
        )
        training = json.loads((place / "run/stages/train" / name / "training.json").read_text())
        assert planned[f"train/{name}"]["steps"] == training["losses"][-1]["step"]
    done = medley("run", recipe, "--out", tmp_path / "run", "--until", "synthesize")
    assert done.code == 0 and done.out == ""
    rows = medley("status", tmp_path / "run", "--json").json()
    made = [row["step"] for row in rows if row["state"] == "done"]
    assert made == [
        "sources/a", "sources/b", "leaks/sources", "mine/a", "mine/b", "synthesize/a", "synthesize/b",
    ]  # fmt: skip
    assert not (tmp_path / "run" / "results.json").exists()


def test_a_plan_can_be_timed(place, again):
    change = ("--set", "train.learning_rate=0.02", "--plan")
    before = contents(again)
    rows = medley("run", place / "small.yaml", "--out", again, "--measure", "--json", *change).json()
    assert contents(again) == before
    seconds = {row["step"]: row["seconds"] for row in rows if "seconds" in row}
    waiting = {row["step"] for row in rows if row["state"] != "done"}
    computing = {
        step for step in waiting if step.startswith(("train/", "evaluate/")) or step == "merge/search"
    }
    assert set(seconds) == computing and min(seconds.values()) > 0
    untimed = medley("run", place / "small.yaml", "--out", again, "--json", *change).json()
    assert [{k: v for k, v in row.items() if k != "seconds"} for row in rows] == untimed
    said = medley("run", place / "small.yaml", "--out", again, "--measure", *change).out.splitlines()
    assert said[-1].startswith("training and encoding: about ") and said[-1].endswith(" min on this machine")
    wrong = medley("run", place / "small.yaml", "--out", again, "--measure")
    assert wrong.code == 2 and "give --plan with it" in wrong.err


def test_times_follow_from_texts_and_speeds():
    rows = [
        {"step": "train/a", "state": "stale", "why": "", "texts_trained": 100, "texts_encoded": 1000},
        {"step": "train/b", "state": "done", "why": "", "texts_trained": 100},
        {"step": "mine/a", "state": "to do", "why": ""},
    ]
    assert timed(rows, Speeds(encoded=0.01, trained=0.2)) == [{**rows[0], "seconds": 30.0}, *rows[1:]]


def test_pretraining_comes_before_the_experts(place, tmp_path):
    pretrain = (
        f"pretrain={{collections: ['{place}/coll:dev'], train: {{lora: null, max_steps: 1, batch_size: 4}}}}"
    )
    done = medley("run", place / "small.yaml", "--out", tmp_path / "run", "--until", "train", "--set", pretrain)  # fmt: skip
    assert done.code == 0, done.err
    rows = {row["step"]: row for row in medley("status", tmp_path / "run", "--json").json()}
    assert rows["pretrain/base"]["state"] == rows["train/all"]["state"] == "done"
    assert "evaluate/pretrained" in rows
    assert (tmp_path / "run/stages/pretrain/base/model/model.safetensors").is_file()


def test_with_an_endpoint_the_generated_negatives_come_from_it(place, tmp_path, monkeypatch):
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    with serving() as server:
        server.script = lambda number, body: f"Passage number {number} is a fluent text about something else altogether."  # fmt: skip
        llm = f"llm={{base_url: '{server.url}', model: m, concurrency: 1}}"
        call = ["run", place / "small.yaml", "--out", tmp_path / "run", "--until", "synthesize", "--set", llm]
        assert medley(*call).code == 0
        assert len(server.bodies) == 8
        asked = [body["messages"][-1]["content"] for body in server.bodies]
        assert "first tablet for high sugar in type 2 diabetes" in "".join(asked)
        rows = [json.loads(line) for line in (tmp_path / "run/stages/synthesize/a/pairs.jsonl").open()]
        assert all(row["negatives"][0].startswith("Passage number") for row in rows)
        assert all(row["provenance"]["generated"][0]["kind"] in KINDS for row in rows)
        # the artefact is lost, the replies are not: nothing is asked twice
        shutil.rmtree(tmp_path / "run/stages/synthesize/a")
        assert medley(*call).code == 0
        assert len(server.bodies) == 8
