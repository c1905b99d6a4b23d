"""The commands as functions: they do what the commands do, and the example of the whole workflow runs."""

from __future__ import annotations

import importlib
import inspect
import json
import pydoc
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

import medley
from medley.errors import CollectionError, InputError, OutputError
from medley.pairs import pairs_from_collection
from small import medley as command

ROOT = Path(__file__).parents[1]
FUNCTIONS = ("mine", "train", "train_on_text", "merge", "search_merge", "evaluate", "compare")


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    path = tmp_path / "pairs.jsonl"
    medley.write_pairs(path, pairs_from_collection(medley.load_collection("demo/medicine:train_care[:8]")))
    return path


def test_functions_stay_functions_when_their_subpackages_are_imported():
    for name in ("mine.select", "train.trials", "merge.model", "evaluate.scores"):
        package = importlib.import_module(f"medley.{name}").__package__
        assert package == f"medley.{name.partition('.')[0]}"
    for name in FUNCTIONS:
        function = getattr(medley, name)
        assert inspect.isfunction(function) and function.__doc__, name
        assert name in medley.__all__


def test_help_shows_the_workflow():
    said = pydoc.render_doc(medley, renderer=pydoc.plaintext)
    for name in FUNCTIONS:
        assert f"{name}(" in said, name
    assert "medley.search_merge(" in said and "to_frame()" in said


def test_importing_medley_loads_nothing_heavy():
    code = "import sys, medley; print(*(n for n in ('torch', 'pandas', 'pydantic', 'numpy') if n in sys.modules))"
    assert (
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout.split()
        == []
    )


def test_mine_does_what_the_command_does(pairs: Path, tmp_path: Path):
    mined = medley.mine(pairs, tmp_path / "a.jsonl", corpus="demo/medicine")
    done = command("mine", "--pairs", pairs, "--out", tmp_path / "b.jsonl", "--corpus", "demo/medicine")
    assert done.json() == mined.counts
    assert (tmp_path / "a.jsonl").read_bytes() == (tmp_path / "b.jsonl").read_bytes()
    frame = mined.to_frame()
    assert list(frame["query"]) == [pair.query for pair in medley.read_pairs(tmp_path / "a.jsonl")]
    with pytest.raises(OutputError, match="--force"):
        medley.mine(pairs, tmp_path / "a.jsonl")
    assert medley.mine(pairs, str(tmp_path / "a.jsonl"), force=True).counts


@pytest.mark.slow
def test_evaluate_and_compare_do_what_the_commands_do(tmp_path: Path):
    tasks = ["demo/medicine:dev", "demo/general:dev"]
    found = medley.evaluate(["bm25", "tiny"], tasks, out=tmp_path / "a.json")
    done = command("evaluate", "bm25", "--baseline", "tiny", *(w for t in tasks for w in ("--task", t)),
                   "--out", tmp_path / "b.json", "--json")  # fmt: skip
    assert done.json() == found.as_json() == json.loads((tmp_path / "a.json").read_text())
    frame = found.to_frame()
    assert list(frame["model"]) == ["bm25", "bm25", "tiny", "tiny"]
    assert list(frame["task"]) == ["medicine", "general"] * 2
    assert frame["ndcg_at_10"][2] == found.table["tiny"]["tasks"]["medicine"]["ndcg_at_10"]

    compared = medley.compare(found)
    assert command("compare", tmp_path / "a.json", "--json").json() == compared.rows
    rows = compared.to_frame()
    assert list(rows["task"]) == ["", "medicine", "general"]
    assert rows["difference"][0] == pytest.approx((rows["difference"][1] + rows["difference"][2]) / 2)
    with pytest.raises(CollectionError, match="is given twice"):
        medley.compare(tmp_path / "a.json", tmp_path / "a.json")
    with pytest.raises(InputError, match="nothing to score on"):
        medley.evaluate("bm25", [])
    with pytest.raises(InputError, match="no model to score"):
        medley.evaluate([], ["demo/medicine:dev"])
    with pytest.raises(CollectionError, match=r"^nope: "):
        medley.evaluate("bm25", "nope:dev")


def test_one_task_may_be_a_string_and_no_model_is_told(tmp_path: Path):
    one = medley.evaluate("bm25", "demo/medicine:dev")
    assert one.as_json() == medley.evaluate(["bm25"], ["demo/medicine:dev"]).as_json()
    with pytest.raises(InputError):
        medley.evaluate([], ["demo/medicine:dev"])


@pytest.mark.slow
def test_the_workflow_example_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(sys, "argv", ["workflow.py", str(tmp_path / "out")])
    values = runpy.run_path(str(ROOT / "examples" / "workflow.py"))
    said = capsys.readouterr().out
    assert "ndcg_at_10" in said and "p_holm" in said
    frame = values["searched"].to_frame()
    assert len(frame) == 8 and frame["chosen"].sum() == 1
    assert frame["score"].max() == pytest.approx(values["searched"].result.best.score)
    assert medley.encode_queries(medley.open_retriever(str(values["searched"].model)), ["a"]).shape[0] == 1
