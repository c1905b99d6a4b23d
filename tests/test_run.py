"""The run folder: what is done stays done, what depends on a change is redone, and a kill loses nothing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from medley.errors import OutputError, RecipeError
from medley.run import Step, claim_folder, execute, read_artefact, stages_until, states, step_keys


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
    execute(folder, chain(calls, **settings), name="x", seed=1, stages=stages)


def test_makes_everything_once_in_order(tmp_path):
    calls: list[str] = []
    run(tmp_path, calls)
    run(tmp_path, calls)
    assert calls == ["a", "b", "d", "c"]
    assert (tmp_path / "stages/three/c/text").read_text() == "cba"
    manifest = json.loads((tmp_path / "manifest.json").read_text())
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
    assert [s.state for s in states(tmp_path, chain([]))] == ["done", "done", "done", "missing"]
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
        execute(tmp_path, [Step("one", "a", {}, fail)], name="x", seed=1)
    assert read_artefact(tmp_path, "one/a") is None
    assert [p.name for p in (tmp_path / "stages").rglob("*")] == ["one"]


def test_a_full_disk_is_one_sentence(tmp_path):
    def fill(out, needs):
        with Path("/dev/full").open("w") as stream:
            stream.write("x" * 10_000)
        return {}

    with pytest.raises(OutputError, match="the disk is full; free some space and run the same command again"):
        execute(tmp_path, [Step("one", "a", {}, fill)], name="x", seed=1)
    assert [p.name for p in (tmp_path / "stages").rglob("*")] == ["one"]


def test_a_folder_belongs_to_one_run(tmp_path):
    claim_folder(tmp_path / "new", "x")
    claim_folder(tmp_path / "new", "x")
    with pytest.raises(OutputError, match=r"holds another run \('x', not 'y'\)"):
        claim_folder(tmp_path / "new", "y")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("precious")
    with pytest.raises(OutputError, match="is not empty and holds no Medley run"):
        claim_folder(tmp_path / "other", "x")
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="is a file"):
        claim_folder(tmp_path / "file", "x")


def test_keys_follow_inputs_not_names():
    first, second = step_keys(chain([])), step_keys(chain([], a=1))
    assert first["two/d"] == second["two/d"]
    assert all(first[k] != second[k] for k in ("one/a", "two/b", "three/c"))


KILLED = """
import sys, time
from pathlib import Path
from medley.run import Step, execute
def build(name):
    def write(out, needs):
        (out / "first").write_text(name)
        time.sleep(0.05)
        (out / "text").write_text(name + "".join((p / "text").read_text() for p in needs.values()))
        with open(sys.argv[2], "a") as log: log.write(name)
        return {}
    return write
steps = [Step("s", str(i), {}, build(str(i)), needs=(f"s/{i-1}",) if i else ()) for i in range(8)]
execute(Path(sys.argv[1]), steps, name="x", seed=1)
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


def test_two_processes_do_not_work_in_one_folder(tmp_path):
    from medley.run import locked

    with locked(tmp_path), pytest.raises(OutputError, match="another process is working"):
        run(tmp_path, [])
