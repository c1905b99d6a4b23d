"""The model card: what it says is in the run's files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from fake_run import EXPERTS, TASKS, make_run
from medley.report.card import model_card
from medley.report.reading import read_run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_run(tmp_path_factory.mktemp("card") / "run", queries=30)
    recipe = (folder / "recipe.yaml").read_text(encoding="utf-8")
    care = "care: {collection: demo/medicine, split: train_care"
    assert care in recipe
    (folder / "recipe.yaml").write_text("licence: mit\n" + recipe.replace(care, care + ", licence: CC0 1.0"))
    return folder


def test_the_card_says_what_the_run_holds(run: Path) -> None:
    card = model_card(read_run(run))
    front = yaml.safe_load(card.split("---")[1])
    assert front["license"] == "mit" and front["library_name"] == "sentence-transformers"
    results = json.loads((run / "results.json").read_text())
    merged = [results["variants"]["merged"]["tasks"][task]["ndcg_at_10"] for task in TASKS]
    row = next(line for line in card.splitlines() if line.startswith("| merged |"))
    assert all(f"{value:.3f}"[1:] in row for value in (*merged, sum(merged) / 2)) and "±" in row
    search = json.loads((run / "stages/merge/search/search.json").read_text())
    for name in EXPERTS:
        assert f"{name} {search['best']['coefficients'][name]:.3g}" in card
    assert "| care | 40 | CC0 1.0 | 38 | 37 |" in card and "| science | 40 | not stated |" in card
    assert json.loads((run / "stages/prompts/all/prompt.json").read_text())["instruction"] in card
    assert "Tested on 60 queries" in card and "95 % interval" in card and "no difference shown" in card
    assert "Rows whose query recurs in a dev or test collection were dropped." in card


def test_an_unfinished_run_promises_nothing(run: Path, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(run, tmp_path / "run")
    (tmp_path / "run" / "results.json").unlink()
    text = model_card(read_run(tmp_path / "run"))
    assert "Not evaluated." in text and "| merged |" not in text
