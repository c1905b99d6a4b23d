"""The report: its numbers are those of the files, it loads nothing, escapes texts, shows unfinished runs."""

from __future__ import annotations

import json
import re
import shutil
import statistics
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

import medley.report
from fake_run import EXPERTS, TASKS, make_run
from medley.errors import InputError, PairsError
from medley.report import numbers as written
from medley.report import write_report
from medley.report.charts import running_mean
from medley.report.dev_chart import dev_chart
from medley.report.findings import Difference
from medley.report.formats import DevCurve, DevPoint, Results
from medley.report.samples import changed_parts, shortened
from medley.report.svg import Scale
from medley.report.verdict import judge
from medley.statistics.compare import compare
from medley.statistics.family import holm

HOSTILE = "\x1b[31m\u202e<script>alert('x')</script><img src=http://example.org/x.png>\"'"
VOID = {"meta", "br", "link", "img", "input", "hr", "wbr"}


class Page(HTMLParser):
    """Collects what a page would load, whether its tags nest, the rows of its tables, and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.links: list[str] = []
        self.ids: list[str] = []
        self.rows: list[list[str]] = []
        self.text = ""
        self.bad: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.links += [
            value or "" for key, value in attrs if key in ("src", "href", "srcset", "action", "data")
        ]
        self.ids += [value or "" for key, value in attrs if key == "id"]
        self.bad += [key for key, _ in attrs if key.startswith("on")]
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.bad.append(f"</{tag}>")

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] in ("style", "script"):
            return
        self.text += data
        if "td" in self.open or "th" in self.open:
            self.rows[-1][-1] += data


def flat(text: str) -> str:
    return " ".join(text.split())


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("report") / "run", queries=40)


@pytest.fixture(scope="module")
def page(run: Path) -> Page:
    path = write_report(run)
    assert path == run / "report.html"
    return Page(path.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def results(run: Path) -> dict[str, Any]:
    return json.loads((run / "results.json").read_text(encoding="utf-8"))


def row_of(page: Page, first: str) -> list[str]:
    return next([flat(cell) for cell in row] for row in page.rows if row and flat(row[0]) == first)


def test_scores_table_holds_the_scores_of_results_json(page: Page, results: dict[str, Any]) -> None:
    for variant, name in (
        ("base", "base"),
        ("bm25", "BM25"),
        ("all", "all data"),
        ("expert:care", "expert care"),
    ):
        scores = [results["variants"][variant]["tasks"][task]["ndcg_at_10"] for task in TASKS]
        wanted = [f"{value:.3f}"[1:] for value in (*scores, sum(scores) / len(scores))]
        cells = [re.sub(r" \(best\)| ±\.\d+", "", cell) for cell in row_of(page, name)[1:4]]
        assert cells == wanted
        for cell, task in zip(row_of(page, name)[1:3], TASKS, strict=True):
            rows = [
                row["ndcg_at_10"] for row in results["variants"][variant]["tasks"][task]["per_query"].values()
            ]
            half = 1.96 * statistics.stdev(rows) / len(rows) ** 0.5
            assert cell.endswith(f"±{half:.3f}".replace("0.", "."))


def test_differences_and_p_values_are_those_of_compare(page: Page, results: dict[str, Any]) -> None:
    def per_query(variant: str) -> dict[str, dict[str, float]]:
        tasks = results["variants"][variant]["tasks"]
        return {task: {q: row["ndcg_at_10"] for q, row in tasks[task]["per_query"].items()} for task in tasks}

    rivals = ["all", *(f"expert:{name}" for name in EXPERTS), "base", "bm25"]
    ours = per_query("merged")
    found = {rival: compare(ours, per_query(rival), seed=13) for rival in rivals}
    by_task = {
        (rival, task): compare({task: ours[task]}, {task: per_query(rival)[task]}, seed=13)
        for rival in rivals
        for task in TASKS
    }
    family = {**found, **by_task}
    corrected = dict(zip(family, holm([one.p_value for one in family.values()]), strict=True))
    for rival, name in (("all", "all data"), ("base", "base"), ("expert:science", "expert science")):
        cells = row_of(page, name)[-3:]
        assert cells[0] == written.signed(found[rival].difference)
        assert cells[1] == written.interval(found[rival].ci_low, found[rival].ci_high)
        assert cells[2] == flat(written.p_alone(corrected[rival]))
    gain = found["base"]
    assert flat(
        f"{written.signed(gain.difference)} over the base ({written.p_value(corrected['base'])})"
    ) in flat(page.text)


def test_the_best_of_each_column_is_marked(page: Page, results: dict[str, Any]) -> None:
    for column, task in enumerate(TASKS):
        best = max(results["variants"].values(), key=lambda v: v["tasks"][task]["ndcg_at_10"])["model"][
            "name"
        ]
        marked = [row for row in page.rows if len(row) > column + 1 and "(best)" in row[column + 1]]
        assert [flat(row[0]) for row in marked] == [best]


def test_the_page_loads_nothing_and_nests_correctly(page: Page) -> None:
    assert page.links and all(link.startswith("#") for link in page.links)
    assert {link[1:] for link in page.links} <= set(page.ids)
    assert len(page.ids) == len(set(page.ids))
    assert not page.tags & {"link", "img", "iframe", "object", "embed", "form"}
    assert not page.bad and not page.open


def test_the_style_loads_nothing(run: Path, page: Page) -> None:
    style = re.search(r"<style>(.*?)</style>", (run / "report.html").read_text(encoding="utf-8"), re.DOTALL)
    assert style and "url(" not in style.group(1) and "@import" not in style.group(1)


def test_every_picture_has_words(run: Path, page: Page) -> None:
    pictures = re.findall(r"<svg [^>]*>", (run / "report.html").read_text(encoding="utf-8"))
    assert len(pictures) > 12
    assert all(
        'role="img"' in picture and re.search(r'aria-label="[^"]{20,}"', picture) for picture in pictures
    )


def test_texts_are_escaped_everywhere(tmp_path: Path) -> None:
    text = write_report(make_run(tmp_path / "run", queries=20, hostile=HOSTILE)).read_text(encoding="utf-8")
    hostile_page = Page(text)
    own = (Path(medley.report.__file__).parent / "report.js").read_text(encoding="utf-8")
    assert text.count("<script") == 1 and f"{own.strip()}</script>" in text and "<img" not in text
    assert "img" not in hostile_page.tags and not hostile_page.bad
    assert hostile_page.text.count("alert('x')") > 10
    assert (
        not re.search("[\x00-\x08\x0b-\x1f\u202a-\u202e\u2066-\u2069]", text) and "\\x1b[31m\\u202e" in text
    )


def test_changes_of_perturbed_rows_are_shown(page: Page, run: Path) -> None:
    text = (run / "report.html").read_text(encoding="utf-8")
    went, came = re.findall(r"<del>(.*?)</del>", text), re.findall(r"<ins>(.*?)</ins>", text)
    assert went[0] == "this went" and came[0] == "this came" and len(went) == len(came) == 7
    rows = [
        json.loads(line)
        for name in EXPERTS
        for line in (run / "stages" / "synthesize" / name / "pairs.jsonl").read_text().splitlines()
    ]
    changes = {(c["from"], c["to"]) for row in rows for c in row["provenance"]["perturbed"]["changes"]}
    assert set(zip(went[1:], came[1:], strict=True)) <= changes


def test_counts_losses_and_choices_are_those_of_the_files(page: Page, run: Path) -> None:
    assert row_of(page, "together") == ["together", "120", "114", "111", ""]
    assert "30 entity, 4 negation, 3 number; 3 rows got none" in flat(page.text)
    search = json.loads((run / "stages/merge/search/search.json").read_text())
    assert f"The choice scores {written.score(search['best']['score'])} nDCG@10 on dev" in flat(page.text)
    prompt = json.loads((run / "stages/prompts/care/prompt.json").read_text())
    assert prompt["instruction"] in page.text
    assert "2 of care in demo/medicine:test" in flat(page.text)


def test_what_recurs_is_shown_whether_dropped_or_only_found(page: Page) -> None:
    assert "2 rows with a query of demo/medicine:test" in page.text
    assert "7 rows with a positive that answers a query of demo/medicine:test" in page.text


def test_what_dev_said_of_a_training_is_shown(run: Path) -> None:
    text = write_report(run).read_text(encoding="utf-8")
    assert text.count("Dev nDCG@10: ") == 1 == text.count(f"Dev nDCG@10 of {EXPERTS[0]}: ")
    assert ".410 to .442 (+.032) at step 30, 0.5 of its update, stopped early" in text
    assert "<title>step 30, 0.5 of its update: .442</title>" in text
    base = DevPoint(step=0, scale=1, score=0.5)
    assert "stays the base" in dev_chart(DevCurve(points=[base], chosen=base), name="one")


STAGES = ("sources", "mine", "synthesize", "prompts", "train", "merge", "evaluate")


@pytest.mark.parametrize("done", range(len(STAGES)))
def test_unfinished_runs_are_shown_as_far_as_they_came(tmp_path: Path, run: Path, done: int) -> None:
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    (folder / "results.json").unlink()
    for stage in STAGES[done:]:
        shutil.rmtree(folder / "stages" / stage, ignore_errors=True)
    partial = Page(write_report(folder).read_text(encoding="utf-8"))
    assert "Nothing has been evaluated yet." in partial.text
    assert ("No expert has been trained yet." in partial.text) == (done < 5)
    assert ("No merge has been searched for yet." in partial.text) == (done < 6)
    assert not partial.bad


def test_evaluations_count_before_results_json_is_written(
    tmp_path: Path, run: Path, results: dict[str, Any]
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    (folder / "results.json").unlink()
    place = folder / "stages" / "evaluate" / "expert:care" / "results.json"
    place.parent.mkdir(parents=True)
    place.write_text(json.dumps(results["variants"]["expert:care"]))
    partial = Page(write_report(folder).read_text(encoding="utf-8"))
    assert "The merged model has not been evaluated yet." in partial.text
    score = results["variants"]["expert:care"]["tasks"]["demo/medicine"]["ndcg_at_10"]
    assert row_of(partial, "expert care")[1].startswith(f"{score:.3f}"[1:])


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("results.json", '{"variants": {"base": {"tasks": {"t": {"ndcg_at_10": "high"}}}}}', "ndcg_at_10"),
        ("results.json", '{"variants": {"base": {"tasks": {"t": {"ndcg_at_10": NaN}}}}}', "finite"),
        ("results.json", "{", "not valid JSON"),
        ("manifest.json", "{}", "name"),
        ("stages/merge/search/search.json", '{"best": {"score": 1.0}}', "coefficients"),
        ("stages/train/care/training.json", '{"pairs": 3, "steps": 1, "losses": [1]}', "losses.0"),
        ("stages/mine/care/counts.json", '{"negatives": "many"}', "whole numbers"),
        ("recipe.yaml", "a: [", "recipe.yaml"),
    ],
)
def test_malformed_files_are_named(tmp_path: Path, run: Path, file: str, content: str, message: str) -> None:
    shutil.copytree(run, tmp_path / "run")
    (tmp_path / "run" / file).write_text(content)
    with pytest.raises(InputError, match=re.escape(Path(file).name)) as problem:
        write_report(tmp_path / "run")
    assert message in str(problem.value)
    assert "\n" not in str(problem.value).rstrip() or file == "recipe.yaml"


def test_malformed_pairs_and_foreign_folders_are_refused(tmp_path: Path, run: Path) -> None:
    with pytest.raises(InputError, match=r"no manifest\.json"):
        write_report(tmp_path)
    shutil.copytree(run, tmp_path / "run")
    (tmp_path / "run/stages/sources/care/pairs.jsonl").write_text('{"query": "a"}\n')
    with pytest.raises(PairsError, match=r"pairs\.jsonl:1"):
        write_report(tmp_path / "run")


def make_difference(b: str, value: float, p: float) -> Difference:
    return Difference("merged", b, value, value - 0.01, value + 0.01, p, p)


def test_the_verdict_says_better_worse_and_not_shown() -> None:
    rows = {"q": {"ndcg_at_10": 0.5}}
    variants = {
        name: {"tasks": {"t": {"ndcg_at_10": 0.5, "per_query": rows}}}
        for name in ("merged", "base", "all", "bm25", "expert:law")
    }
    results = Results.model_validate({"variants": variants})
    found = [
        make_difference("base", 0.034, 0.0001), make_difference("expert:law", 0.012, 0.03),
        make_difference("all", -0.004, 0.4), make_difference("bm25", -0.02, 0.004),
    ]  # fmt: skip
    verdict = judge(results, found)
    assert verdict.headline == (
        "The merged model is better than the base and the best expert, but worse than BM25. "
        "It is not shown to differ from one model trained on all data."
    )
    assert flat(verdict.sentence) == (
        "Merged .500 nDCG@10 on 1 test set (1 query): +.034 over the base (p < .001), "
        "+.012 over the best expert, law (p = .03), −.020 against BM25 (p = .004); "
        "against one model trained on all data: no difference shown (−.004, p = .40)."
    )
    only_open = judge(results, [make_difference("base", 0.01, 0.2)])
    assert only_open.headline == "The merged model is not shown to differ from the base."


def test_changed_parts_rebuild_both_texts() -> None:
    positive, negative = "Take 5 mg of iron, then 5 mg more.", "Take 9 mg of zinc, then 5 mg more."
    changes = [{"from": "iron", "to": "zinc", "at": [13]}, {"from": "5", "to": "9", "at": [5]}]
    parts = changed_parts(positive, negative, changes)
    assert "".join(text for tag, text in parts if tag != "ins") == positive
    assert "".join(text for tag, text in parts if tag != "del") == negative
    without_offsets = changed_parts(positive, negative, [{"from": "iron", "to": "zinc", "count": 1}])
    assert ("mark", "zinc") in without_offsets and "".join(text for _, text in without_offsets) == negative
    wrong_offset = changed_parts(positive, negative, [{"from": "iron", "to": "zinc", "at": [2]}])
    assert ("mark", "zinc") in wrong_offset
    long = shortened((("", "a" * 2000), ("ins", "new"), ("", "b" * 10)))
    assert ("ins", "new") in long and sum(len(text) for _, text in long) < 1000


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.51249, ".512"), (1.0, "1.000"), (-0.0304, "−.030"), (None, "–"), (0.0, ".000"), (-0.0001, ".000")],
)
def test_scores_are_written_as_the_field_does(value: float | None, text: str) -> None:
    assert written.score(value) == text


def test_signs_p_values_and_times() -> None:
    assert [written.signed(value) for value in (0.034, -0.012, 0.0001)] == ["+.034", "−.012", ".000"]
    assert [flat(written.p_value(p)) for p in (0.0001, 0.0042, 0.03, 0.4, 1.0)] == [
        "p < .001", "p = .004", "p = .03", "p = .40", "p = 1",
    ]  # fmt: skip
    assert [written.duration(s) for s in (3.21, 59.6, 125, 7265)] == [
        "3.2 s",
        "1 min 0 s",
        "2 min 5 s",
        "2 h 1 min",
    ]


def test_scales_and_running_means() -> None:
    scale = Scale(-0.05, 0.21, 0, 100)
    assert scale(-0.05) == 0 and scale(0.21) == pytest.approx(100)
    assert scale.ticks() == [0.0, 0.1, 0.2]
    assert Scale(1, 1, 0, 10).ticks() == [1]
    assert running_mean([3.0, 1.0]) == [3.0, 1.0]
    assert running_mean([5.0] * 60) == [5.0] * 60


def test_segments_and_lone_candidates_are_drawn(tmp_path: Path, run: Path) -> None:
    shutil.copytree(run, tmp_path / "run")
    best = {
        "coefficients": {"conditions": [0.1, 0.5], "care": [0.9, 0.0], "science": [0.0, -0.2]},
        "score": 0.5,
    }
    (tmp_path / "run/results.json").unlink()
    (tmp_path / "run/stages/merge/search/search.json").write_text(
        json.dumps({"strategy": "grid", "best": best})
    )
    text = write_report(tmp_path / "run").read_text(encoding="utf-8")
    assert "Chosen coefficients: conditions 0.1 / 0.5, care 0.9 / 0, science 0 / -0.2." in text


def test_importing_the_report_is_light() -> None:
    heavy = ("torch", "jinja2", "numpy", "pydantic", "yaml")
    code = f"import sys, medley.report; print([m for m in {heavy} if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
