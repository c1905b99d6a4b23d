"""The run folder: what is done stays done, what depends on a change is redone, and a kill loses nothing."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import replace
from pathlib import Path

import pytest

from medley import run as running
from medley.artefact import EDITED, Mark, read_artefact
from medley.errors import OutputError, RecipeError
from medley.run import (
    Step,
    check_folder,
    execute,
    locked,
    manifest_of,
    stages_until,
    states,
    step_keys,
    working_on,
)


def chain(calls: list[str], **settings) -> list[Step]:
    """a -> b -> c, and d on its own; each writes its name and what it read."""

    def build(name):
        def write(out: Path, needs):
            calls.append(name)
            (out / "text").write_text(name + "".join((path / "text").read_text() for path in needs.values()))
            return {"name": name}

        return write

    def step(stage, name, *needs):
        return Step(stage, name, {"value": settings.get(name, 0)}, build(name), needs=needs, code="1")

    return [step("one", "a"), step("two", "b", "one/a"), step("two", "d"), step("three", "c", "two/b")]


def run(folder, calls, stages=None, **settings):
    return execute(folder, chain(calls, **settings), stages=stages)


def test_makes_everything_once_in_order(tmp_path):
    calls: list[str] = []
    run(tmp_path, calls)
    run(tmp_path, calls)
    assert calls == ["a", "b", "d", "c"]
    assert (tmp_path / "stages/three/c/text").read_text() == "cba"
    manifest = manifest_of(tmp_path, chain([]), name="x", seed=1)
    assert manifest["stages"]["three"]["c"]["summary"] == {"name": "c"}
    assert manifest["versions"]["torch"] and manifest["seed"] == 1


def test_a_changed_setting_redoes_exactly_what_depends_on_it(tmp_path):
    calls: list[str] = []
    run(tmp_path, calls)
    calls.clear()
    found = {s.step.id: (s.state, s.reason) for s in states(tmp_path, chain(calls, b=7))}
    assert found == {
        "one/a": ("done", ""),
        "two/b": ("stale", "value: 0 -> 7"),
        "two/d": ("done", ""),
        "three/c": ("stale", "two/b changed"),
    }
    run(tmp_path, calls, b=7)
    assert calls == ["b", "c"]
    calls.clear()
    run(tmp_path, calls, b=0)
    assert calls == ["b", "c"], "going back is a change as well"


def test_until_stops_after_the_stage(tmp_path):
    calls: list[str] = []
    run(tmp_path, calls, stages=stages_until("two", ("one", "two", "none", "three")))
    assert calls == ["a", "b", "d"]
    assert [s.state for s in states(tmp_path, chain([]))] == ["done", "done", "done", "to do"]
    with pytest.raises(RecipeError, match="--until tow: no such stage; choose one of one, two"):
        stages_until("tow", ("one", "two"))
    assert stages_until("none", ("one", "none", "three")) == ("one", "none"), (
        "also where a run has no such step"
    )


def test_a_failing_step_leaves_nothing_half_written(tmp_path):
    def fail(out, needs):
        (out / "half").write_text("x")
        raise OutputError("no")

    with pytest.raises(OutputError):
        execute(tmp_path, [Step("one", "a", {}, fail)])
    assert read_artefact(tmp_path, "one/a") is None
    assert [p.name for p in (tmp_path / "stages").rglob("*")] == ["one"]


def test_a_full_disk_is_one_sentence(tmp_path):
    def fill(out, needs):
        with Path("/dev/full").open("w") as stream:
            stream.write("x" * 10_000)
        return {}

    with pytest.raises(OutputError, match="the disk is full; free some space and run the same command again"):
        execute(tmp_path, [Step("one", "a", {}, fill)])
    assert [p.name for p in (tmp_path / "stages").rglob("*")] == ["one"]


def test_a_folder_belongs_to_one_run(tmp_path):
    for _ in range(2):
        with working_on(tmp_path / "new", "x"):
            pass
    with pytest.raises(OutputError, match=r"holds another run \('x', not 'y'\)"):
        check_folder(tmp_path / "new", "y")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("precious")
    with pytest.raises(OutputError, match="is not empty and holds no Medley run"):
        check_folder(tmp_path / "other", "x")
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="is a file"):
        check_folder(tmp_path / "file", "x")


def test_what_a_linked_stage_folder_leads_to_is_not_swept(tmp_path):
    folder, disk = tmp_path / "run", tmp_path / "disk"
    (disk / ".git").mkdir(parents=True)
    (disk / ".bashrc").write_text("precious")
    (disk / ".x.writing-99999999").write_text("precious")
    (folder / "stages" / "one").mkdir(parents=True)
    (folder / "stages" / "one" / ".a.writing-99999999").mkdir()
    (folder / "stages" / "one" / ".notes").write_text("precious")
    (folder / "stages" / "four").symlink_to(disk)
    (folder / "manifest.json").write_text('{"name": "x"}')
    with working_on(folder, "x"):
        pass
    assert {path.name for path in disk.iterdir()} == {".git", ".bashrc", ".x.writing-99999999"}
    assert {path.name for path in (folder / "stages" / "one").iterdir()} == {".notes"}


@pytest.mark.parametrize("make", [Path.mkdir, lambda path: path.symlink_to("elsewhere")])
def test_what_stands_where_the_lock_goes_is_one_sentence(tmp_path, make):
    make(tmp_path / ".lock")
    with pytest.raises(OutputError, match="stands where a file is needed; move it away"), locked(tmp_path):
        pass


def test_a_folder_is_checked_without_being_touched(tmp_path):
    check_folder(tmp_path / "new" / "run", "x")
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="a file stands where a folder is needed"):
        check_folder(tmp_path / "file" / "run", "x")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_keys_follow_inputs_not_names():
    first, second = step_keys(chain([])), step_keys(chain([], a=1))
    assert first["two/d"] == second["two/d"]
    assert all(first[k] != second[k] for k in ("one/a", "two/b", "three/c"))


KILLED = """
import sys, time
from pathlib import Path
from medley.run import Step, execute, working_on
def build(name):
    def write(out, needs):
        (out / "first").write_text(name)
        time.sleep(0.05)
        (out / "text").write_text(name + "".join((p / "text").read_text() for p in needs.values()))
        with open(sys.argv[2], "a") as log: log.write(name)
        return {}
    return write
steps = [Step("s", str(i), {}, build(str(i)), needs=(f"s/{i-1}",) if i else ()) for i in range(8)]
with working_on(Path(sys.argv[1]), "run"): execute(Path(sys.argv[1]), steps)
"""


def test_killed_at_any_point_it_ends_the_same(tmp_path):
    script = tmp_path / "killed.py"
    script.write_text(textwrap.dedent(KILLED))
    folder, log = tmp_path / "run", tmp_path / "log"
    folder.mkdir()
    kills = 0
    for delay_s in (0.35, 0.45, 0.5, 0.55, 0.6):
        process = subprocess.Popen([sys.executable, script, folder, log], stderr=subprocess.DEVNULL)
        time.sleep(delay_s)
        if process.poll() is None:
            os.kill(process.pid, signal.SIGKILL)
            kills += 1
        process.wait()
    subprocess.run([sys.executable, script, folder, log], check=True, stderr=subprocess.DEVNULL)
    assert kills, "no process lived long enough to be killed"
    assert (folder / "stages/s/7/text").read_text() == "76543210"
    assert not list((folder / "stages" / "s").glob(".*"))
    assert set(log.read_text()) == set("01234567")


def test_two_processes_do_not_work_in_one_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(running, "PATIENCE_S", 0.0)
    with (
        working_on(tmp_path, "x"),
        pytest.raises(OutputError, match="another process is working"),
        working_on(tmp_path, "x"),
    ):
        pass


def test_a_lock_that_is_a_folder_is_one_sentence(tmp_path):
    (tmp_path / ".lock").mkdir()
    with pytest.raises(OutputError, match="a folder stands where a file is needed"), locked(tmp_path):
        pass


@pytest.mark.parametrize("text", ["[]", "{}", "", "{", '{"name": 3}', "[" * 100_000])
def test_a_manifest_that_is_none_is_one_sentence(tmp_path, text):
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(OutputError, match=r'write \{"name": "x"\} into it'):
        check_folder(tmp_path, "x")
    (tmp_path / "manifest.json").write_text('{"name": "x"}')
    check_folder(tmp_path, "x")


def reasons(folder, **settings):
    return {
        s.step.id: (s.state, s.reason) for s in states(folder, chain([], **settings)) if s.state != "done"
    }


def test_an_edited_file_makes_stale_what_is_made_from_it_and_is_kept(tmp_path, capsys):
    run(tmp_path, [])
    (tmp_path / "stages/two/b/text").write_text("mine")
    assert reasons(tmp_path) == {
        "two/b": ("stale", "stages/two/b/text was changed after it was made"),
        "three/c": ("stale", "two/b has other content than this was made from"),
    }
    calls: list[str] = []
    assert run(tmp_path, calls)
    assert calls == ["b"], "made again as it was, so what comes after it is right"
    assert reasons(tmp_path) == {}
    (kept,) = tmp_path.glob(f"{EDITED}/*/stages/two/b/text")
    assert kept.read_text() == "mine" and str(kept.parents[3]) in capsys.readouterr().err


def test_what_is_made_again_with_other_content_makes_stale_what_comes_after(tmp_path):
    run(tmp_path, [])
    (tmp_path / "stages/two/b/artefact.json").unlink()
    assert reasons(tmp_path) == {"two/b": ("to do", "")}, "it may well be made as it was"
    steps = chain([])

    def differently(out, needs):
        (out / "text").write_text("another draw")
        return {}

    execute(
        tmp_path, [replace(s, build=differently) if s.id == "two/b" else s for s in steps], stages=["two"]
    )
    assert reasons(tmp_path) == {"three/c": ("stale", "two/b has other content than this was made from")}
    calls: list[str] = []
    run(tmp_path, calls)
    assert calls == ["c"]
    assert (tmp_path / "stages/three/c/text").read_text() == "canother draw"


def test_a_file_that_is_gone_is_seen_and_one_of_the_users_own_is_kept(tmp_path):
    run(tmp_path, [])
    (tmp_path / "stages/three/c/text").unlink()
    (tmp_path / "stages/three/c/notes.txt").write_text("mine")
    assert reasons(tmp_path) == {"three/c": ("stale", "stages/three/c/text is not there")}
    run(tmp_path, [])
    assert [path.read_text() for path in tmp_path.glob(f"{EDITED}/*/stages/three/c/*")] == ["mine"]


def test_a_copied_run_is_the_same_run_and_nothing_is_hashed_where_nothing_changed(tmp_path, monkeypatch):
    run(tmp_path / "old", [])
    shutil.copytree(tmp_path / "old", tmp_path / "new")
    assert reasons(tmp_path / "new") == {}
    monkeypatch.setattr("medley.artefact.fingerprint_file", lambda path: pytest.fail(f"{path} was read"))
    assert reasons(tmp_path / "old") == {}
    (tmp_path / "old/stages/one/a/text").write_text("longer")
    assert "one/a" in reasons(tmp_path / "old"), "another size says enough"


@pytest.mark.parametrize("text", ["{}", "[]", '{"key": ', "", "\0"])
def test_an_artefact_that_says_nothing_is_made_again(tmp_path, text):
    run(tmp_path, [])
    (tmp_path / "stages/three/c/artefact.json").write_text(text)
    assert reasons(tmp_path) == {"three/c": ("stale", "stages/three/c/artefact.json cannot be read")}
    calls: list[str] = []
    run(tmp_path, calls)
    assert calls == ["c"] and reasons(tmp_path) == {}


def test_an_artefact_file_that_is_a_folder_is_made_again(tmp_path):
    run(tmp_path, [])
    (tmp_path / "stages/three/c/artefact.json").unlink()
    (tmp_path / "stages/three/c/artefact.json").mkdir()
    calls: list[str] = []
    run(tmp_path, calls)
    assert calls == ["c"] and reasons(tmp_path) == {}


def test_an_artefact_of_the_older_format_is_stale_and_nothing_of_it_is_kept(tmp_path):
    run(tmp_path, [])
    path = tmp_path / "stages/three/c/artefact.json"
    old = json.loads(path.read_text())
    for key in ("made_from", "files", "versions", "machine"):
        del old[key]
    path.write_text(json.dumps({**old, "key": "0" * 16, "ingredients": {**old["ingredients"], "format": 1}}))
    assert reasons(tmp_path) == {"three/c": ("stale", "the run folder's format changed")}
    run(tmp_path, [])
    assert not (tmp_path / EDITED).exists()


def test_versions_are_those_that_a_step_was_made_with(tmp_path, monkeypatch):
    monkeypatch.setattr(running, "versions", lambda: {"torch": "1.0", "peft": "2.0"})
    run(tmp_path, [], stages=["one"])
    monkeypatch.setattr(running, "versions", lambda: {"torch": "1.1", "peft": "2.0"})
    calls: list[str] = []
    run(tmp_path, calls)
    assert calls == ["b", "d", "c"], "another version does not make a step stale"
    first, *others = states(tmp_path, chain([]))
    assert (first.state, first.reason) == ("done", "made with torch 1.0, now 1.1")
    assert {(s.state, s.reason) for s in others} == {("done", "")}
    manifest = manifest_of(tmp_path, chain([]), name="x", seed=1)
    assert manifest["versions"] == {"torch": "1.0 and 1.1", "peft": "2.0"}


def test_a_mark_knows_a_file_by_its_content(tmp_path):
    path = tmp_path / "a"
    path.write_text("one")
    mark = Mark.of(path)
    os.utime(path, ns=(1, 1))
    assert mark.fits(path)
    path.write_text("two")
    assert not mark.fits(path)
    path.unlink()
    assert not mark.fits(path)
