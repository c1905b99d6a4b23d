"""Where a result goes: nothing that Medley did not make is removed, and two processes do not write one result."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from medley.api import train as api_train
from medley.claim import claimed, unfinished
from medley.errors import OutputError
from medley.files import write_text, writing
from medley.replaceable import check_replaceable
from small import contents, medley, training_rows, write_collection, write_lines

PAIRS = ["--pairs", "pairs.jsonl"]
CHAT = ["--llm-url", "http://127.0.0.1:9/v1", "--llm-model", "m"]
WRITERS = {
    "mine": ["mine", *PAIRS],
    "synthesize negatives": ["synthesize", "negatives", *PAIRS],
    "synthesize negatives by a model": ["synthesize", "negatives", *PAIRS, *CHAT],
    "synthesize queries": ["synthesize", "queries", "--corpus", "coll", *CHAT],
    "synthesize tasks": ["synthesize", "tasks", *CHAT],
    "guard": ["guard", *PAIRS],
    "review": ["review", *PAIRS],
    "review --read": ["review", *PAIRS, "--read", "sheet.csv"],
    "tune-prompt": ["tune-prompt", "tiny", "--collection", "coll:dev"],
    "train": ["train", "--base", "tiny", *PAIRS],
    "train language": ["train", "--base", "tiny", "--objective", "language", "--text", "pairs.jsonl"],
    "merge": ["merge", "merge.yaml"],
    "merge --as-mergekit": ["merge", "merge.yaml", "--as-mergekit"],
    "search-merge": ["search-merge", "merge.yaml"],
    "evaluate": ["evaluate", "bm25", "--task", "coll:test"],
}
"""Every command that takes --out, but `demo` and `run`, whose folder is the run's."""
FOLDERS = {"train", "train language", "merge", "search-merge"}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a collection, pairs and a merge file."""
    monkeypatch.chdir(tmp_path)
    write_collection(tmp_path / "coll")
    write_lines(tmp_path / "pairs.jsonl", training_rows("train_a"))
    (tmp_path / "merge.yaml").write_text(
        "base: tiny\nexperts: {a: e/a, b: e/b}\nmethod: linear\nweights: {a: 1, b: 1}\nsearch: {dev: ['coll:dev']}\n"
    )
    return tmp_path


@pytest.mark.parametrize("name", WRITERS)
def test_what_is_at_out_stays(name: str, here: Path) -> None:
    out = "out.html" if name == "review" else "out"
    folder = here / out
    (folder / "old").mkdir(parents=True)
    (folder / "old" / "thesis.txt").write_text("precious")
    before = contents(here)
    for force in ([], ["--force"]):
        done = medley(*WRITERS[name], "--out", out, *force)
        assert done.code == 2 and done.out == "" and done.err.count("\n") == 1
        reason = "was not written by Medley" if name in FOLDERS else "is a folder, but the result is a file"
        assert f"{out}: is " in done.err and reason in done.err
        assert contents(here) == before


@pytest.mark.parametrize("name", WRITERS)
def test_a_file_at_out_is_replaced_only_by_a_file_and_with_force(name: str, here: Path) -> None:
    out = here / ("out.html" if name == "review" else "out")
    out.write_text("precious")
    before = contents(here)
    done = medley(*WRITERS[name], "--out", str(out))
    assert done.code == 2 and done.err.count("\n") == 1
    reason = "is a file, but the result is a folder" if name in FOLDERS else "is there already"
    assert done.err.startswith(f"medley: {out}: {reason}")
    if name in FOLDERS:
        assert medley(*WRITERS[name], "--out", str(out), "--force").code == 2
    assert contents(here) == before


def test_force_replaces_a_result(here: Path) -> None:
    for name in ("mine", "evaluate"):
        assert medley(*WRITERS[name], "--out", "made").code == 0
        (here / "made").write_text("old")
        assert medley(*WRITERS[name], "--out", "made", "--force").code == 0
        assert (here / "made").read_text() != "old"
        (here / "made").unlink()


@pytest.mark.parametrize("spelling", ["pairs.jsonl", "./new/../pairs.jsonl", "link.jsonl", "second.jsonl"])
def test_an_input_is_not_rewritten(spelling: str, here: Path) -> None:
    (here / "link.jsonl").symlink_to("pairs.jsonl")
    (here / "second.jsonl").hardlink_to("pairs.jsonl")
    before = contents(here)
    for name in ("mine", "synthesize negatives", "guard", "review --read", "train"):
        done = medley(*WRITERS[name], "--out", spelling, "--force")
        assert done.code == 2 and "the result is made from it (pairs.jsonl)" in done.err
    assert contents(here) == before


def test_a_folder_is_replaced_where_all_in_it_is_medleys(tmp_path: Path) -> None:
    def write(text: str) -> None:
        with writing(tmp_path / "model") as temporary:
            (temporary / "pooling").mkdir(parents=True)
            write_text(temporary / "pooling" / "config.json", text)

    (tmp_path / "model").mkdir()  # empty
    write("1")
    write("2")
    assert (tmp_path / "model" / "pooling" / "config.json").read_text() == "2"
    (tmp_path / "model" / "notes").mkdir()
    with pytest.raises(OutputError, match="holds notes, which Medley did not write"):
        write("3")
    (tmp_path / "model" / "notes" / "a.txt").write_text("x")
    with pytest.raises(OutputError, match="holds notes and 1 more, which Medley did not write"):
        write("3")
    assert (tmp_path / "model" / "pooling" / "config.json").read_text() == "2"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]


def test_a_list_that_is_copied_is_not_written_through(tmp_path: Path) -> None:
    from medley.files import link_tree

    with writing(tmp_path / "a") as temporary:
        temporary.mkdir()
        (temporary / "one").write_text("1")
    listed = (tmp_path / "a" / ".medley-files").read_text()
    with writing(tmp_path / "b") as temporary:
        link_tree(tmp_path / "a", temporary)
        (temporary / "two").write_text("2")
    assert (tmp_path / "a" / ".medley-files").read_text() == listed
    check_replaceable(tmp_path / "a", folder=True, force=True)
    check_replaceable(tmp_path / "b", folder=True, force=True)


@pytest.mark.parametrize("target", ["there", "nowhere"])
def test_a_link_at_the_place_is_left_alone(target: str, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "out").symlink_to(target)
    for folder in (True, False):
        with pytest.raises(OutputError, match="is a symbolic link"):
            check_replaceable(tmp_path / "out", folder=folder, force=True)


def test_what_comes_up_while_work_goes_on_is_kept(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with (
        pytest.raises(OutputError, match="is there already"),
        claimed(out, force=False),
        writing(out, force=False) as temporary,
    ):
        temporary.write_text("new")
        out.write_text("of somebody else")
    assert out.read_text() == "of somebody else"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_claim_leaves_no_folder_that_it_made(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), claimed(tmp_path / "a" / "b" / "out", force=False):
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


CLAIM = """
import sys, time
from pathlib import Path
from medley.claim import claimed
with claimed(Path(sys.argv[1]), force=False):
    print("held", flush=True)
    time.sleep(float(sys.argv[2]))
"""


def test_the_second_writer_is_told(here: Path) -> None:
    command = [sys.executable, "-c", CLAIM, "out.jsonl", "600"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout is not None and first.stdout.readline() == "held\n"
        done = medley("mine", *PAIRS, "--out", "out.jsonl")
        assert done.code == 2 and done.err == (
            "medley: out.jsonl: another process is writing it; wait for it, stop it, or choose another --out.\n"
        )
        assert (here / ".out.jsonl.lock").is_file()
        first.kill()
    assert medley("mine", *PAIRS, "--out", "out.jsonl").code == 0, "a killed process holds nobody up"
    assert not (here / ".out.jsonl.lock").exists()


@pytest.mark.parametrize("make", [Path.mkdir, lambda path: path.symlink_to("pairs.jsonl")])
def test_what_stands_where_the_lock_goes_is_told(make, here: Path) -> None:
    make(here / ".out.jsonl.lock")
    done = medley("mine", *PAIRS, "--out", "out.jsonl")
    assert done.code == 2 and "stands where a file is needed; move it away." in done.err


def test_what_a_killed_process_left_is_cleared_away_by_the_next(here: Path) -> None:
    (here / ".out.jsonl.writing-99999999").mkdir()
    (here / ".out.jsonl.writing-99999999" / "half").write_text("")
    (here / ".other.writing-99999999").mkdir()
    assert medley("mine", *PAIRS, "--out", "out.jsonl").code == 0
    assert {path.name for path in here.glob(".*")} == {".other.writing-99999999"}


def test_unfinished_work_goes_on_with_the_same_settings_only(tmp_path: Path) -> None:
    out = tmp_path / "expert"
    with pytest.raises(RuntimeError), unfinished(out, "checkpoints", {"train": {"rate": 1}}) as folder:
        raise RuntimeError
    assert not folder.exists(), "nothing was begun"
    with pytest.raises(RuntimeError), unfinished(out, "checkpoints", {"train": {"rate": 1}}) as folder:
        (folder / "step-1").write_text("x")
        raise RuntimeError
    with (
        pytest.raises(
            OutputError, match=r"holds unfinished work with train\.rate = 1, not 2; go on with the same"
        ),
        unfinished(out, "checkpoints", {"train": {"rate": 2}}),
    ):
        raise AssertionError
    with pytest.raises(RuntimeError), unfinished(out, "checkpoints", {"train": {"rate": 1}}) as folder:
        assert (folder / "step-1").is_file()
        raise RuntimeError
    with unfinished(out, "checkpoints", {"train": {"rate": 2}}, force=True) as folder:
        assert not (folder / "step-1").exists()
    assert list(tmp_path.iterdir()) == []


def test_a_folder_of_somebody_elses_is_not_taken_for_unfinished_work(here: Path) -> None:
    (here / "expert.checkpoints").mkdir()
    (here / "expert.checkpoints" / "thesis.txt").write_text("precious")
    done = medley("train", "--base", "tiny", *PAIRS, "--out", "expert")
    assert done.code == 2 and "something of another kind is there" in done.err
    assert (here / "expert.checkpoints" / "thesis.txt").is_file()


def test_a_train_command_keeps_the_checkpoints_of_another_setting(here: Path) -> None:
    train = ["train", "--base", "tiny", *PAIRS, "--out", "expert"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(api_train, "train_best", killed)
        assert medley(*train, "--batch-size", "4").code == 130
    done = medley(*train, "--batch-size", "2")
    assert done.code == 2 and "holds unfinished work with batch_size = 4, not 2" in done.err
    assert (here / "expert.checkpoints" / "step").is_file()
    assert medley(*train, "--batch-size", "2", "--force").code == 0
    assert not (here / "expert.checkpoints").exists()
    assert json.loads((here / "expert" / ".medley-files").read_text())["files"]
    assert medley(*train, "--batch-size", "2").code == 2, "and the expert is not replaced unasked"


def killed(*_: object, folder: Path, **__: object) -> None:
    """A training that leaves something and is interrupted."""
    (folder / "step").write_text("x")
    raise KeyboardInterrupt


def test_only_the_first_of_several_processes_claims(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from medley.train.processes import is_first

    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank, first in (("0", True), ("1", False)):
        monkeypatch.setenv("RANK", rank)
        assert is_first() is first
    monkeypatch.delenv("WORLD_SIZE")
    assert is_first(), os.environ.get("RANK")


def test_a_file_of_an_input_folder_is_not_replaced(here: Path) -> None:
    (here / "coll" / "mine.jsonl").write_text("{}\n")
    before = contents(here)
    collection = {
        "evaluate": [],
        "mine": ["--corpus", "coll"],
        "guard": ["--collection", "coll:dev"],
        "tune-prompt": [],
        "synthesize queries": [],
    }
    for name, more in collection.items():
        for place in ("coll/corpus.jsonl", "./coll/queries.jsonl", "coll/qrels/test.tsv", "coll/mine.jsonl"):
            done = medley(*WRITERS[name], *more, "--out", place, "--force")
            assert done.code == 2 and "is there already in coll, which the result is made from" in done.err
    assert contents(here) == before
    assert medley(*WRITERS["evaluate"], "--out", "coll/results.json").code == 0


@pytest.mark.parametrize("name", ["n" * 300, "n" * 250, "/proc/none"])
def test_a_place_that_cannot_be_written_is_told(name: str, here: Path) -> None:
    for writer in ("mine", "train", "merge", "evaluate"):
        done = medley(*WRITERS[writer], "--out", name)
        assert done.code == 2 and done.err.count("\n") == 1
        assert "cannot be written" in done.err or "cannot be looked up" in done.err
    for reader in (["compare", name, name], ["status", name], ["report", name]):
        done = medley(*reader)
        assert done.code == 2 and done.err.count("\n") == 1
