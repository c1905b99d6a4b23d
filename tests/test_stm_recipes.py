"""The paper's recipes: they say what the paper says, run on a small base and local data, and fill its tables."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from medley.evaluate.published import mean_lines, own_scores, published, task_lines
from medley.evaluate.suites import suite
from medley.merge.settings import read_merge_file
from medley.recipe import load_recipe
from small import medley, training_rows, write_collection, write_lines

FOLDER = Path(__file__).parents[1] / "recipes" / "stm"
PAPER = {"qwen3-0.6b": (5e-5, 256), "gemma-2b": (1e-5, 128), "phi-4-mini": (2e-5, 64)}


@pytest.mark.parametrize("name", PAPER)
def test_a_recipe_has_the_papers_settings(name):
    recipe = load_recipe(FOLDER / f"{name}.yaml")
    rate, batch = PAPER[name]
    assert (recipe.train.learning_rate, recipe.train.batch_size, recipe.train.epochs) == (rate, batch, 1)
    assert recipe.train.lora is not None and (recipe.train.lora.rank, recipe.train.lora.alpha) == (16, 32)
    assert recipe.train.warmup * (356_000 / batch) == pytest.approx(100, rel=0.02)
    assert (recipe.retriever.pooling, recipe.retriever.attention, recipe.retriever.max_length) == (
        "last", "bidirectional", 512,
    )  # fmt: skip
    assert list(recipe.experts) == ["med-synth", "med-real", "search", "nlu"]
    assert recipe.merge.methods == ["linear"] and recipe.merge.search.grid == tuple(i / 10 for i in range(10))
    assert recipe.evaluate.groups == suite("stm12").specs_by_group() | {
        group: [spec if ":" in spec else f"{spec}:test" for spec in specs]
        for group, specs in suite("stm12").specs_by_group().items()
    }
    arguana = "Given a claim, retrieve arguments that support or refute the claim"
    assert recipe.instruction_for("ArguAna:test") == arguana and len(recipe.evaluate.instructions) == 12
    ties = read_merge_file(FOLDER / f"{name}-ties.yaml")
    assert ties.method == "ties" and list(ties.experts) == list(recipe.experts) and ties.base == recipe.base


def test_what_a_recipe_says_stands_above_its_suite(tmp_path):
    path = tmp_path / "r.yaml"
    own = [
        "evaluate.instructions={SciFact: Mine}",
        "evaluate.medical=[SciFact]",
        "evaluate.systems={e5: org/e5, both: merged+bm25}",
    ]
    recipe = load_recipe(FOLDER / "qwen3-0.6b.yaml", own)
    assert recipe.instruction_for("SciFact:test") == "Mine" and recipe.evaluate.groups["medical"] == [
        "SciFact:test"
    ]
    assert len(recipe.evaluate.groups["general"]) == 5 and recipe.evaluate.systems["both"] == "merged+bm25"
    for wrong, message in {
        "evaluate.suite=stm13": "no such suite",
        "evaluate.systems={base: org/e5}": "name is taken",
        "evaluate.systems={x: expert:nobody+bm25}": "no expert is called 'nobody'",
        "evaluate.systems={x: bm25}": "BM25 is one of",
    }.items():
        outcome = medley("run", FOLDER / "qwen3-0.6b.yaml", "--set", wrong, "--plan", "--out", path)
        assert outcome.code == 2 and message in outcome.err, outcome.err


def test_the_papers_linear_tasks_average_to_its_means():
    figures = published()
    assert set(figures["linear"]) == {task.name for task in suite("stm12").tasks}
    for column in range(3):
        mean = sum(values[column] for values in figures["linear"].values()) / 12
        assert mean == pytest.approx(figures["means"]["STM linear"][column], abs=0.001)


def variant(score: float, *tasks: str) -> dict:
    return {"tasks": {task: {"ndcg_at_10": score} for task in tasks}}


def test_own_numbers_stand_in_the_papers_rows():
    names = ["SciFact", "CUREv1/en", "fiqa"]
    run = {"merged": variant(0.5, *names), "expert:a": variant(0.2, *names), "expert:b": variant(0.4, *names),
           "all": variant(0.45, *names), "bm25": variant(0.3, "SciFact")}  # fmt: skip
    lines = {
        line.name: line
        for line in mean_lines({"FT": run, "TIES": {"merged": variant(0.6, "scifact")}}, "gemma-2b")
    }
    own = {name: (line.own, line.tasks) for name, line in lines.items() if line.own is not None}
    assert own == {
        "expert mean FT": (pytest.approx(0.3), 3), "best single expert": (pytest.approx(0.4), 3),
        "FT on everything": (pytest.approx(0.45), 3), "STM linear": (pytest.approx(0.5), 3), "STM TIES": (0.6, 1),
        "BM25": (0.3, 1),
    }  # fmt: skip
    assert lines["STM linear"].published == 0.622 and lines["BM25"].published == 0.525
    assert own_scores(run["merged"]) == {"SciFact": 0.5, "CUREv1": 0.5, "FiQA2018": 0.5}
    tasks = task_lines(run["merged"], "gemma-2b")
    assert tasks[-1].published == pytest.approx((0.715 + 0.503 + 0.338) / 3) and tasks[-1].tasks == 3


@pytest.mark.slow
def test_the_recipe_runs_on_tiny_and_local_data_to_the_papers_table(tmp_path, monkeypatch, tiny_model_folder):
    monkeypatch.setenv("STM_DATA", str(tmp_path))
    for index, name in enumerate(("med-synth", "med-real", "search", "nlu")):
        write_lines(tmp_path / f"{name}.jsonl", training_rows("train_a" if index % 2 else "train_b"))
    collection = write_collection(tmp_path / "scifact")
    changes = {
        "base": tiny_model_folder, "retriever.max_length": 48, "retriever.dtype": "float32", "merge.dtype": "float32",
        "train.batch_size": 4, "train.learning_rate": 0.01, "merge.dev": f"[{collection}:dev]",
        "evaluate": json.dumps({
            "medical": [f"{collection}:test"], "systems": {"fused": "merged+bm25", "other": str(tiny_model_folder)},
        }),
    }  # fmt: skip
    options = [part for key, value in changes.items() for part in ("--set", f"{key}={value}")]
    out = tmp_path / "run"
    done = medley("run", FOLDER / "qwen3-0.6b.yaml", "--out", out, *options)
    assert done.code == 0, done.err
    results = json.loads((out / "results.json").read_text(encoding="utf-8"))
    assert {"merged", "base", "bm25", "all", "expert:nlu", "fused", "other"} <= set(results["variants"])
    merged = results["variants"]["merged"]["tasks"]["scifact"]
    assert merged["encoded"]["first_query"].endswith("\nQuery: tetracycline course of two weeks")
    assert results["variants"]["fused"]["model"]["fused_with"] == "bm25"
    table = medley("published", "--run", f"FT={out}", "--json").json()
    own = {line["name"]: line["own"] for line in table["means"]}
    assert own["STM linear"] == merged["ndcg_at_10"] and own["FT on everything"] is not None
    assert "published" in medley("published", "--run", f"FT={out}").out

    ties = yaml.safe_load((FOLDER / "qwen3-0.6b-ties.yaml").read_text(encoding="utf-8"))
    ties |= {"base": str(tiny_model_folder)}
    ties["experts"] = {name: str(out / "stages" / "train" / name / "adapter") for name in ties["experts"]}
    ties["search"] |= {"dev": [f"{collection}:dev"], "encodings": 8}
    (tmp_path / "ties.yaml").write_text(yaml.safe_dump(ties), encoding="utf-8")
    found = medley("search-merge", tmp_path / "ties.yaml", "--out", tmp_path / "ties")
    assert found.code == 0, found.err
    scored = medley(
        "evaluate", tmp_path / "ties" / "model", "--task", f"{collection}:test", "--out", tmp_path / "t.json"
    )
    assert scored.code == 0, scored.err
    both = medley("published", "--run", f"FT={out}", "--run", f"TIES={tmp_path / 't.json'}", "--json").json()
    assert {line["name"] for line in both["means"] if line["own"] is not None} >= {"STM linear", "STM TIES"}
