"""The report's part on the merge search: held-out score and the front of domain against general."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from fake_run import make_run
from medley.errors import InputError
from medley.merge.pareto import Front, front_of
from medley.report import numbers as written
from medley.report import write_report


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    make_run(folder)
    place = folder / "stages/merge/search/search.json"
    search = json.loads(place.read_text())
    scores = np.array([[c["scores"]["demo/medicine:dev"], c["scores"]["demo/general:dev"] + 0.1 * (i % 3)]
                       for i, c in enumerate(search["candidates"])])  # fmt: skip
    chosen = int(scores[:, 0].argmax())
    search["best"]["confirm"] = {"score": 0.4567, "scores": {}}
    search["front"] = Front(tuple(front_of(scores)), chosen, scores).as_json()
    place.write_text(json.dumps(search))
    return folder


def test_held_out_score_and_front_are_on_the_page(run: Path) -> None:
    write_report(run)
    page = (run / "report.html").read_text()
    search = json.loads((run / "stages/merge/search/search.json").read_text())
    front = search["front"]
    assert f"<b>{written.score(0.4567)}</b> on those held out" in page
    best = front["scores"][front["chosen"]]
    said = f"chosen: domain {written.score(best['domain'])}, general {written.score(best['general'])}"
    assert f"{len(front['candidates'])} are beaten by none at both; {said}." in page


def test_a_front_that_names_no_candidate_is_refused(run: Path) -> None:
    place = run / "stages/merge/search/search.json"
    search = json.loads(place.read_text())
    search["front"]["chosen"] = 999
    place.write_text(json.dumps(search))
    with pytest.raises(InputError, match=r"front.*beyond the"):
        write_report(run)
