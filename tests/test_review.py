"""The review sheet: the sample, the table and what spreadsheets do to it, the page, and what verdicts change."""

from __future__ import annotations

import csv
import html
import io
import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medley.errors import PairsError
from medley.pairs import TrainingPair, read_pairs, write_pairs
from medley.review.agreement import krippendorff_alpha
from medley.review.decisions import apply_verdicts
from medley.review.page import render_sheet
from medley.review.sheet import Item, draw_items, find_item, items_of
from medley.review.table import COLUMNS, LONGEST_CELL, Decision, read_sheet, safe, unsafe, write_sheet
from small import medley
from test_report import Page

NASTY = "=cmd|' /C calc'!A0, \"quoted\"; and\r\na second line\twith a tab"


def make_pairs() -> list[TrainingPair]:
    """Three rows: two negatives and one removed by a guard; a nasty one; one without negatives."""
    guard = {
        "kept": [{"verdict": "keep", "signal": "closeness", "value": 0.61, "limit": 0.8}, {"verdict": "keep"}],
        "removed": [
            {"verdict": "drop", "signal": "judge", "value": 2, "limit": 2, "reason": "half an answer",
             "origin": "mined", "text": "half"},
        ],
    }  # fmt: skip
    first = TrainingPair(
        "heart rate", "60 to 100", ("lung volume", "liver size"), "Find", "example",
        {"mined": {"retriever": "bm25", "ids": ["a", "b"], "scores": [4.25, -0.5], "ranks": [1, 2]}, "guard": guard},
    )  # fmt: skip
    nasty = TrainingPair("-1 + 1 = ?", "@zero", (NASTY,), provenance={"perturbed": [{"kind": "number"}]})
    return [first, nasty, TrainingPair("bare query", "bare positive")]


def ids(pairs: list[TrainingPair]) -> list[str]:
    return [item.id for row, pair in enumerate(pairs) for item in items_of(pair, row)]


def decide(pairs: list[TrainingPair], *verdicts: str) -> list[Decision]:
    """Decisions for the items in order; "" leaves one out."""
    found = zip(ids(pairs), verdicts, strict=False)
    return [Decision(item, verdict, "", "sheet.csv:2") for item, verdict in found if verdict]


# The sample ---------------------------------------------------------------------------------------------------


def test_items_say_what_is_known_about_them() -> None:
    first, second, gone = items_of(make_pairs()[0], 0)
    assert (first.text, first.kind, first.score, first.guard) == (
        "lung volume", "mined", 4.25, "keep (closeness 0.61, limit 0.8)",
    )  # fmt: skip
    assert second.guard == "" and second.score == -0.5, "nothing was measured"
    assert (gone.status, gone.text, gone.kind) == ("removed", "half", "mined")
    assert gone.guard == "drop (judge 2, limit 2): half an answer"
    (nasty,) = items_of(make_pairs()[1], 1)
    assert nasty.kind == "perturbed: number" and nasty.guard == ""
    (bare,) = items_of(make_pairs()[2], 2)
    assert bare.status == "pair" and bare.text == ""


def test_the_sample_is_seeded_ordered_and_without_repetition() -> None:
    pairs = [TrainingPair(f"q{i}", f"p{i}", tuple(f"n{i}.{j}" for j in range(i % 4))) for i in range(40)]
    drawn = draw_items(pairs, count=20, seed=5)
    assert drawn == draw_items(pairs, count=20, seed=5) != draw_items(pairs, count=20, seed=6)
    places = [(item.row, item.position) for item in drawn]
    assert len(set(places)) == 20 and places == sorted(places)
    everything = draw_items(pairs, count=1000, seed=5)
    assert [item.id for item in everything] == ids(pairs) and len(set(ids(pairs))) == len(everything) == 70


def test_an_id_finds_its_item_and_no_other_file_s() -> None:
    pairs = make_pairs()
    assert [find_item(pairs, item, "s:2").id for item in ids(pairs)] == ids(pairs)
    changed = [TrainingPair("heart rate?", "60 to 100", ("lung volume",)), *pairs[1:]]
    with pytest.raises(PairsError, match=r"^s\.csv:7: .*another file"):
        find_item(changed, ids(pairs)[0], "s.csv:7")
    for wrong in ("1.2E+46", "r9n0-00000000", "r0n7-00000000", "r0n0"):
        with pytest.raises(PairsError, match=r"^s\.csv:7: "):
            find_item(pairs, wrong, "s.csv:7")


def test_the_positives_of_one_row_share_its_number_and_are_decided_apart(tmp_path: Path) -> None:
    lines = [
        {"query": "a", "positive": "b", "negatives": ["c"]},
        {"query": "q", "positive": ["p1", "p2"], "negatives": ["n"]},
        {"query": "d", "positive": "e", "negatives": ["f"]},
    ]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    pairs = read_pairs(tmp_path / "pairs.jsonl")
    items = draw_items(pairs, count=9, seed=0)
    assert [item.id.partition("-")[0] for item in items] == ["r0n0", "r1n0", "r1n0", "r2n0"]
    assert [find_item(pairs, item.id, "s:2").pair.positive for item in items] == ["b", "p1", "p2", "e"]
    reviewed = apply_verdicts(
        pairs, [Decision(items[2].id, "drop", "", "s:3"), Decision(items[3].id, "keep", "", "s:4")]
    )
    assert [pair.negatives for pair in reviewed.pairs] == [("c",), ("n",), (), ("f",)]


# The table ----------------------------------------------------------------------------------------------------


@settings(max_examples=300)
@given(st.text(alphabet=st.sampled_from("=+-@'\t\r\n＝a1 \u00a0\",;")))
def test_formulas_are_disarmed_and_come_back(text: str) -> None:
    assert not safe(text).startswith(("\t", "\r", "\n"))
    for cell in re.split("[;\t\r\n]", safe(text)):  # as a spreadsheet with another separator would cut it
        assert not cell.lstrip().startswith(("=", "+", "-", "@", "＝"))
    assert unsafe(safe(text)) == text


def test_the_table_holds_every_text_and_no_formula(tmp_path: Path) -> None:
    pairs = make_pairs()
    items = [item for row, pair in enumerate(pairs) for item in items_of(pair, row)]
    write_sheet(tmp_path / "sheet.csv", items)
    raw = (tmp_path / "sheet.csv").read_bytes()
    assert raw.startswith(b"\xef\xbb\xbfid,verdict,note,")
    rows = list(csv.DictReader(io.StringIO(raw.decode("utf-8-sig"), newline="")))
    assert [row["id"] for row in rows] == ids(pairs) and {row["verdict"] for row in rows} == {""}
    for row, item in zip(rows, items, strict=True):
        cells = (row["query"], row["positive"], row["negative"])
        assert tuple(map(unsafe, cells)) == (item.pair.query, item.pair.positive, item.text)
        for name, cell in row.items():
            assert name == "score" or not cell.startswith(("=", "+", "-", "@"))
    assert [row["score"] for row in rows[:2]] == ["4.25", "-0.5"], "a number below zero is no formula"


def test_a_long_text_stays_within_a_spreadsheet_s_cell(tmp_path: Path) -> None:
    pair = TrainingPair("q", "p" * 50_000, ("n",))
    write_sheet(tmp_path / "sheet.csv", items_of(pair, 0))
    (cells,) = list(csv.DictReader(io.StringIO((tmp_path / "sheet.csv").read_text("utf-8-sig"), newline="")))
    assert len(cells["positive"]) == LONGEST_CELL


def saved(path: Path, pairs: list[TrainingPair], verdicts: list[str], **how: Any) -> Path:
    """The sheet of all items as a spreadsheet would save it, with verdicts and notes filled in."""
    items = [item for row, pair in enumerate(pairs) for item in items_of(pair, row)]
    write_sheet(path, items)
    rows = list(csv.DictReader(io.StringIO(path.read_text(encoding="utf-8-sig"), newline="")))
    for number, (row, verdict) in enumerate(zip(rows, verdicts, strict=True)):
        row |= {"verdict": verdict, "note": f"=note {number} é", "mine": "extra"}
    columns = how.get("columns", [*COLUMNS, "mine"])
    stream = io.StringIO(newline="")
    writer = csv.DictWriter(stream, columns, delimiter=how.get("separator", ","),
                            lineterminator=how.get("end", "\r\n"), extrasaction="ignore",
                            quoting=how.get("quoting", csv.QUOTE_MINIMAL))  # fmt: skip
    writer.writeheader()
    writer.writerows(rows)
    text = how.get("before", "") + stream.getvalue() + how.get("after", "")
    path.write_bytes(text.encode(how.get("encoding", "utf-8-sig")))
    return path


VERDICTS = ["keep", "Drop", " PROMOTE ", "", "drop_pair"]
SPREADSHEETS: dict[str, dict[str, Any]] = {
    "as written": {},
    "no byte-order mark": {"encoding": "utf-8"},
    "semicolons": {"separator": ";"},
    "tabs in UTF-16": {"separator": "\t", "encoding": "utf-16"},
    "line feeds": {"end": "\n"},
    "everything quoted": {"quoting": csv.QUOTE_ALL},
    "reordered and added columns": {"columns": ["mine", "note", "negative", "verdict", "query", "id"]},
    "only what counts": {"columns": ["verdict", "id", "note"]},
    "Windows-1252": {"encoding": "cp1252"},
    "separator named": {"separator": ";", "before": "sep=;\r\n"},
    "empty lines": {"before": ",,,\r\n", "after": ",,,,\r\n\r\n"},
}


@pytest.mark.parametrize("how", SPREADSHEETS.values(), ids=SPREADSHEETS)
def test_a_sheet_is_read_whatever_the_spreadsheet_did(tmp_path: Path, how: dict[str, Any]) -> None:
    pairs = make_pairs()
    decisions = read_sheet(saved(tmp_path / "sheet.csv", pairs, VERDICTS, **how))
    assert [d.id for d in decisions] == ids(pairs)
    assert [d.verdict for d in decisions] == ["keep", "drop", "promote", "", "drop pair"]
    assert [d.note for d in decisions] == [f"=note {i} é" for i in range(5)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", ":1: no columns named id and verdict"),
        ("query,negative\na,b\n", ":1: no columns named id and verdict"),
        (
            'id,verdict,note\nr0n0-aaaaaaaa,keep,"two\nlines"\nr0n1-aaaaaaaa,maybe,\n',
            ":4: the verdict 'maybe'",
        ),
        (
            'id,verdict,note\nr0n0-aaaaaaaa,keep,\nr0n1-aaaaaaaa,keep,"never closed\n',
            ":3: the table breaks off",
        ),
        ("id,verdict\n,keep\n", ":2: a verdict without an id"),
        ("id;verdict\nr0n0-aaaaaaaa;keep\nr0n0-aaaaaaaa;drop\n", ":3: r0n0-aaaaaaaa is 'drop' here"),
        ("sep=;\nid;verdict\nr0n0-aaaaaaaa;perhaps\n", ":3: the verdict 'perhaps'"),
    ],
)
def test_a_bad_sheet_is_one_sentence_with_its_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "sheet.csv"
    path.write_text(text, encoding="utf-8", newline="")
    with pytest.raises(PairsError) as problem:
        read_sheet(path)
    assert str(problem.value).startswith(f"{path}{message}") and "\n" not in str(problem.value)


# What verdicts change -----------------------------------------------------------------------------------------


def test_keeping_everything_changes_nothing_but_the_record() -> None:
    pairs = make_pairs()
    reviewed = apply_verdicts(pairs, decide(pairs, "keep", "keep", "", "keep", "keep"))
    assert [(p.query, p.positive, p.negatives) for p in reviewed.pairs] == [
        (p.query, p.positive, p.negatives) for p in pairs
    ]
    assert reviewed.pairs[0].provenance["review"][0] == {
        "verdict": "keep", "text": "lung volume", "origin": "mined",
    }  # fmt: skip
    assert reviewed.counts["decided"] == reviewed.counts["keep"] == 4
    assert reviewed.counts["guard_agrees"] == reviewed.counts["guard_compared"] == 1
    assert apply_verdicts(pairs, []).pairs == pairs


def test_drop_promote_and_restore() -> None:
    pairs = make_pairs()
    reviewed = apply_verdicts(pairs, decide(pairs, "drop", "promote", "keep"))
    first, nasty, bare, new = reviewed.pairs
    assert first.negatives == ("half",), "put back; the others are gone"
    assert "mined" not in first.provenance and first.provenance["guard"]["removed"] == []
    assert len(first.provenance["guard"]["kept"]) == 1
    assert [nasty, bare] == pairs[1:]
    assert (new.query, new.positive, new.negatives, new.instruction) == (
        "heart rate",
        "liver size",
        ("half",),
        "Find",
    )
    assert new.provenance["promoted"] == {"row": 0, "origin": "mined", "by": "review"}
    counts = reviewed.counts
    assert (counts["negatives_removed"], counts["negatives_restored"], counts["pairs_added"]) == (2, 1, 1)
    assert (counts["guard_agrees"], counts["guard_compared"]) == (0, 2)
    assert (counts["rows"], counts["rows_after"]) == (3, 4)


def test_records_of_what_stays_still_fit() -> None:
    pairs = make_pairs()
    (first, *_) = apply_verdicts(pairs, decide(pairs, "drop")).pairs
    assert first.negatives == ("liver size",)
    assert first.provenance["mined"] == {"retriever": "bm25", "ids": ["b"], "scores": [-0.5], "ranks": [2]}
    assert first.provenance["guard"]["kept"] == [{"verdict": "keep"}]


def test_a_pair_can_be_dropped_from_any_of_its_items() -> None:
    pairs = make_pairs()
    reviewed = apply_verdicts(pairs, decide(pairs, "drop pair", "keep", "", "", "drop"))
    assert reviewed.pairs == [pairs[1]] and reviewed.counts["pairs_removed"] == 2
    with pytest.raises(PairsError, match=r"^sheet\.csv:2: .*nothing can be promoted"):
        apply_verdicts(pairs, decide(pairs, "", "", "", "", "promote"))


def test_a_promoted_passage_is_negative_nowhere_and_positive_once() -> None:
    pairs = [
        TrainingPair("q", "p1", ("same passage", "other")),
        TrainingPair("Q?", "p2", ("Same passage!", "far")),
        TrainingPair("another", "p3", ("same passage",)),
    ]
    reviewed = apply_verdicts(pairs, decide(pairs, "promote", "", "promote"))
    assert [pair.negatives for pair in reviewed.pairs] == [
        ("other",),
        ("far",),
        ("same passage",),
        ("other",),
    ]
    assert [pair.positive for pair in reviewed.pairs] == ["p1", "p2", "p3", "same passage"]


def test_a_guard_s_promotion_can_be_taken_back() -> None:
    entry = {
        "verdict": "promote",
        "signal": "judge",
        "value": 3,
        "limit": 3,
        "origin": "mined",
        "text": "risen",
    }
    pairs = [
        TrainingPair("q", "p", (), provenance={"guard": {"kept": [], "removed": [entry]}}),
        TrainingPair("q", "risen", (), provenance={"promoted": {"row": 0}}),
    ]
    kept = apply_verdicts(pairs, decide(pairs, "keep"))
    assert [(pair.positive, pair.negatives) for pair in kept.pairs] == [("p", ("risen",))]
    assert [pair.positive for pair in apply_verdicts(pairs, decide(pairs, "drop")).pairs] == ["p"]
    agreed = apply_verdicts(pairs, decide(pairs, "promote"))
    assert [pair.positive for pair in agreed.pairs] == ["p", "risen"] and agreed.counts["guard_agrees"] == 1


@settings(max_examples=50, deadline=None)
@given(st.lists(st.sampled_from(["", "keep", "drop", "promote", "drop pair"]), min_size=4, max_size=4))
def test_no_text_is_lost_and_none_is_both(verdicts: list[str]) -> None:
    pairs = make_pairs()
    reviewed = apply_verdicts(pairs, decide(pairs, *verdicts))
    for pair in reviewed.pairs:
        assert pair.positive not in pair.negatives
        if "guard" in pair.provenance:
            assert len(pair.provenance["guard"]["kept"]) == len(pair.negatives)
    if "drop pair" not in verdicts[:3]:
        told = str([pair.as_row() for pair in reviewed.pairs])
        assert all(text in told for text in ("lung volume", "liver size", "half"))


# The command --------------------------------------------------------------------------------------------------


def test_the_command_writes_a_sheet_and_reads_it_back(tmp_path: Path) -> None:
    pairs, page, table = tmp_path / "pairs.jsonl", tmp_path / "sheet.html", tmp_path / "sheet.csv"
    write_pairs(pairs, make_pairs())
    done = medley("review", "--pairs", pairs, "--out", page, "--csv", table, "--rows", 4, "--seed", 2)
    assert done.code == 0 and done.json()["rows"] == 4, done.err
    assert page.read_text().count('class="item"') == table.read_text("utf-8-sig").count("\nr") == 4
    saved(table, make_pairs(), ["drop", "", "", "", ""])
    out = tmp_path / "reviewed.jsonl"
    done = medley("review", "--pairs", pairs, "--read", table, "--out", out)
    assert done.code == 0 and done.json()["negatives_removed"] == 1, done.err
    assert read_pairs(out)[0].negatives == ("liver size",)


def test_wrong_uses_are_one_sentence(tmp_path: Path) -> None:
    pairs, out = tmp_path / "pairs.jsonl", tmp_path / "out.jsonl"
    write_pairs(pairs, make_pairs())
    other = tmp_path / "other.jsonl"
    write_pairs(other, make_pairs()[1:])
    sheet = saved(tmp_path / "sheet.csv", make_pairs(), VERDICTS)
    for arguments, words in (
        (("--pairs", pairs, "--out", out), r"\.html"),
        (("--pairs", pairs, "--out", out, "--read", tmp_path / "none.csv"), "no such file"),
        (("--pairs", other, "--out", out, "--read", sheet), r"sheet\.csv:2: r0n0-\w{8} is in no row"),
        (("--pairs", pairs, "--out", out, "--read", sheet, "--csv", out), "--csv"),
    ):
        done = medley("review", *arguments)
        assert done.code == 2 and re.search(words, done.err) and "Traceback" not in done.err, done.err
        assert not out.exists()


# The page -----------------------------------------------------------------------------------------------------


def all_items() -> list[Item]:
    pairs = make_pairs()
    pairs.append(
        TrainingPair("<script>alert(1)</script>", "<b>bold</b>", ("</p></li><img src=x onerror=alert(1)>",))
    )
    return [item for row, pair in enumerate(pairs) for item in items_of(pair, row)]


def test_the_page_loads_nothing_nests_and_escapes() -> None:
    text = render_sheet(all_items(), name="pairs.jsonl", total=4)
    page = Page(re.sub(r"<script>.*?</script>", "", text, count=1, flags=re.DOTALL))
    assert not page.bad and not page.open
    assert not page.tags & {"img", "link", "iframe", "object", "form", "script"}
    assert all(link.startswith("#") and link[1:] in page.ids for link in page.links)
    assert (
        "default-src 'none'" in text and "url(" not in text and "http" not in text.replace("http-equiv", "")
    )
    assert len(page.ids) == len(set(page.ids))
    assert "<script>alert(1)</script>" in page.text and "<b>bold" not in text and "<img" not in text


def test_every_control_has_a_name() -> None:
    text = render_sheet(all_items(), name="pairs.jsonl", total=4)
    assert text.count("<fieldset") == text.count("<legend>") == 6
    assert len(re.findall(r"<label[^>]*>[^<]*<input", text)) == text.count("<input") + text.count("<input>")
    assert text.count('type="radio"') == 5 * 4 + 2, "a bare pair can only be kept or dropped"
    assert 'lang="en"' in text and 'role="status"' in text and "<noscript>" in text


@pytest.mark.slow
def test_the_page_in_a_browser_saves_the_table_that_is_read_back(chromium: str, tmp_path: Path) -> None:
    """Keys are pressed and a note is typed in a real browser; what it would save is read by `read_sheet`."""
    pairs = make_pairs()
    items = [item for row, pair in enumerate(pairs) for item in items_of(pair, row)]
    script = """<script>
      const press = (key, on = document.activeElement) => on.dispatchEvent(new KeyboardEvent("keydown", {key, bubbles: true}));
      press("1", document.body);              // nothing is current yet
      items[0].focus(); press("1"); press("2"); press("3");   // each moves on to the next
      press("b"); press("n");                 // to the third and back to the fourth
      const current = items.indexOf(document.activeElement);
      press("4"); press("b"); press("0");     // decided, back, opened again
      items[3].querySelector("[data-note]").focus();
      items[3].querySelector("[data-note]").value = "=1+1, said \\"she\\"\\tso";
      items[3].querySelector("[data-note]").dispatchEvent(new Event("input", {bubbles: true}));
      press("1");                             // typing into a note decides nothing
      items[4].focus(); press("3");           // a bare pair cannot be promoted
      document.getElementById("shortcuts").checked = false; press("1");
      const out = document.createElement("pre");
      out.id = "out"; out.textContent = JSON.stringify([current, table(), document.getElementById("progress").textContent]);
      document.body.append(out);
    </script></body>"""
    page = tmp_path / "sheet.html"
    page.write_text(
        render_sheet(items, name="pairs.jsonl", total=3).replace("</body>", script), encoding="utf-8"
    )
    done = subprocess.run(
        [chromium, "--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}",
         "--dump-dom", page.as_uri()],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    found = re.search(r'<pre id="out">(.*?)</pre>', done.stdout, re.DOTALL)
    assert found, done.stdout[-2000:] + done.stderr[-2000:]
    current, table, progress = json.loads(html.unescape(found[1]))
    assert current == 3 and progress == "3 of 5 decided, not saved"
    (tmp_path / "sheet.csv").write_text(table, encoding="utf-8", newline="")
    decisions = read_sheet(tmp_path / "sheet.csv")
    assert [(d.id, d.verdict, d.note) for d in decisions] == [
        (items[0].id, "keep", ""), (items[1].id, "drop", ""), (items[2].id, "promote", ""),
        (items[3].id, "", '=1+1, said "she"\tso'),
    ]  # fmt: skip
    write_sheet(tmp_path / "python.csv", items)
    rows = [
        list(csv.DictReader(io.StringIO((tmp_path / name).read_text("utf-8-sig"), newline="")))
        for name in ("sheet.csv", "python.csv")
    ]
    for mine, theirs in zip(*rows, strict=True):
        for name in set(COLUMNS) - {"verdict", "note"}:
            assert mine[name].replace("\r\n", "\n") == theirs[name].replace("\r\n", "\n"), name


# Several reviewers ------------------------------------------------------------------------------------------------


def test_alpha_is_krippendorff_s() -> None:
    """The examples of Krippendorff, Computing Krippendorff's Alpha-Reliability (2011), sections A and C."""
    meg, owen = "0100000010", "1110010000"
    assert krippendorff_alpha(zip(meg, owen, strict=True)) == pytest.approx(0.095, abs=5e-4)
    observers = ("123321412...", "1233224125.3", ".3332342251.", "12332441251.")
    units = [[v for v in unit if v != "."] for unit in zip(*observers, strict=True)]
    assert krippendorff_alpha(units) == pytest.approx(0.743, abs=5e-4)
    assert krippendorff_alpha([["keep", "keep"], ["keep", "keep"]]) is None
    assert krippendorff_alpha([["keep"], ["drop"]]) is None
    assert krippendorff_alpha([["keep", "keep"], ["drop", "drop"]]) == 1


def sheet(path: Path, *lines: str, columns: str = "id,verdict,note") -> Path:
    path.write_text("\n".join([columns, *lines]), encoding="utf-8")
    return path


def test_several_sheets_agree_are_applied_and_disputes_wait_for_a_judge(tmp_path: Path) -> None:
    pairs = [TrainingPair(f"q{i}", f"p{i}", (f"n{i}",)) for i in range(4)]
    write_pairs(tmp_path / "pairs.jsonl", pairs)
    names = ids(pairs)
    first = sheet(tmp_path / "first.csv", f"{names[0]},keep,", f"{names[1]},drop,half", f"{names[2]},drop,")
    second = sheet(
        tmp_path / "second.csv", f"{names[0]},drop,=why", f"{names[1]},drop,yes", f"{names[3]},,hm"
    )
    read = ["review", "--pairs", tmp_path / "pairs.jsonl", "--read", first, "--read", second]
    done = medley(*read, "--out", tmp_path / "reviewed.jsonl")
    counts = done.json()
    assert counts["reviewers"] == {"first": 3, "second": 2} and counts["judged_by_several"] == 2
    assert (counts["agree"], counts["disputed"], counts["agreement"]) == (1, 1, 0.5)
    assert counts["alpha"] == pytest.approx(krippendorff_alpha([["keep", "drop"], ["drop", "drop"]]))
    assert "reviewers disagree on 1 items" in done.err
    reviewed = read_pairs(tmp_path / "reviewed.jsonl")
    assert [pair.negatives for pair in reviewed] == [("n0",), (), (), ("n3",)]
    (record,) = reviewed[1].provenance["review"]
    assert record["reviewers"] == {"first": "drop", "second": "drop"}
    assert record["note"] == "first: half; second: yes"
    disputes = tmp_path / "reviewed.jsonl.disputes.csv"
    assert counts["disputes"] == str(disputes)
    (row,) = csv.DictReader(io.StringIO(disputes.read_text("utf-8-sig"), newline=""))
    assert (row["id"], row["verdict"], row["negative"]) == (names[0], "", "n0")
    assert row["reviewers"] == "first: keep; second: drop (=why)"
    settled = sheet(tmp_path / "settled.csv", f"{names[0]},promote,clear")
    done = medley(*read, "--settled", settled, "--out", tmp_path / "final.jsonl")
    assert done.json()["disputed"] == 0 and done.json()["settled"] == 1
    assert not (tmp_path / "final.jsonl.disputes.csv").exists()
    final = read_pairs(tmp_path / "final.jsonl")
    assert [pair.positive for pair in final] == ["p0", "p1", "p2", "p3", "n0"] and final[0].negatives == ()
    (record,) = final[0].provenance["review"]
    assert record["reviewers"] == {"settled": "promote", "first": "keep", "second": "drop"}


def test_one_file_with_two_verdicts_names_its_reviewers_or_is_refused(tmp_path: Path) -> None:
    pairs = [TrainingPair("q", "p", ("n",))]
    write_pairs(tmp_path / "pairs.jsonl", pairs)
    (name,) = ids(pairs)
    both = sheet(tmp_path / "both.csv", f"{name},keep,", f"{name},drop,")
    done = medley(
        "review", "--pairs", tmp_path / "pairs.jsonl", "--read", both, "--out", tmp_path / "o.jsonl"
    )
    assert done.code == 2 and "name them in a column `reviewer`" in done.err
    both = sheet(tmp_path / "b.csv", f"{name},keep,Ann", f"{name},drop,Bob", columns="id,verdict,reviewer")
    done = medley(
        "review", "--pairs", tmp_path / "pairs.jsonl", "--read", both, "--out", tmp_path / "o.jsonl"
    )
    assert done.json()["reviewers"] == {"Ann": 1, "Bob": 1} and done.json()["disputed"] == 1
    assert read_pairs(tmp_path / "o.jsonl")[0].negatives == ("n",)
