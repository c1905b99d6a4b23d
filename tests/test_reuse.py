"""Taking from other run folders what is the very same step, and nothing else."""

from __future__ import annotations

from dataclasses import replace

import pytest

from medley.artefact import read_artefact
from medley.errors import OutputError
from medley.files import link_tree
from medley.reuse import check_runs, found_elsewhere, take
from medley.run import execute, states, working_on
from small import medley, write_collection, write_recipe
from test_run import chain, run


def fresh(folder):
    with working_on(folder, "x"):
        return folder


def test_only_what_is_the_same_is_taken(tmp_path):
    run(fresh(tmp_path / "old"), [])
    new, calls = fresh(tmp_path / "new"), []
    steps = chain(calls, b=7)
    assert take(new, steps, [tmp_path / "old"]) == {
        "one/a": tmp_path / "old",
        "two/d": tmp_path / "old",
    }
    execute(new, steps)
    assert calls == ["b", "c"]
    assert (new / "stages/three/c/text").read_text() == "cba"
    assert read_artefact(new, "one/a").summary == {"name": "a"}


def test_what_is_stale_here_is_taken_too_and_what_is_done_is_left(tmp_path):
    run(fresh(tmp_path / "old"), [], b=7)
    run(fresh(tmp_path / "new"), [])
    own = (tmp_path / "new/stages/one/a/text").stat().st_ino
    calls: list[str] = []
    steps = chain(calls, b=7)
    assert set(take(tmp_path / "new", steps, [tmp_path / "old"])) == {"two/b", "three/c"}
    assert {state.state for state in states(tmp_path / "new", steps)} == {"done"}
    assert (tmp_path / "new/stages/one/a/text").stat().st_ino == own


def test_the_first_run_that_has_it_gives_it(tmp_path):
    run(fresh(tmp_path / "one"), [], stages=["one"])
    run(fresh(tmp_path / "two"), [])
    new = fresh(tmp_path / "new")
    found = found_elsewhere(states(new, chain([])), [tmp_path / "one", tmp_path / "two"])
    assert found["one/a"] == tmp_path / "one" and found["three/c"] == tmp_path / "two"
    assert not (new / "stages").exists(), "looking takes nothing"


def test_what_is_made_again_leaves_the_other_run_as_it_was(tmp_path):
    run(fresh(tmp_path / "old"), [])
    new = fresh(tmp_path / "new")
    take(new, chain([]), [tmp_path / "old"])
    assert (new / "stages/two/b/text").stat().st_ino == (tmp_path / "old/stages/two/b/text").stat().st_ino
    run(new, [], a=5, b=5)
    assert {s.state for s in states(tmp_path / "old", chain([]))} == {"done"}


def test_what_was_edited_there_or_made_from_something_else_is_not_taken(tmp_path):
    run(fresh(tmp_path / "old"), [])
    (tmp_path / "old/stages/two/d/text").write_text("edited")
    new = fresh(tmp_path / "new")

    def differently(out, needs):
        (out / "text").write_text("another draw")
        return {}

    execute(new, [replace(chain([])[0], build=differently)])
    assert take(new, chain([]), [tmp_path / "old"]) == {"three/c": tmp_path / "old"}, (
        "b may be made as it was there"
    )
    calls: list[str] = []
    run(new, calls)
    assert calls == ["b", "d", "c"]
    assert (new / "stages/three/c/text").read_text() == "cbanother draw"


def test_paid_replies_come_along_once(tmp_path):
    run(fresh(tmp_path / "old"), [])
    (tmp_path / "old" / "cache.jsonl").write_text("paid\n")
    new = fresh(tmp_path / "new")
    take(new, [], [tmp_path / "old"], files=["cache.jsonl"])
    assert (new / "cache.jsonl").read_text() == "paid\n"
    with (new / "cache.jsonl").open("a") as cache:
        cache.write("more\n")
    take(new, [], [tmp_path / "old"], files=["cache.jsonl"])
    assert (new / "cache.jsonl").read_text() == "paid\nmore\n"
    assert (tmp_path / "old" / "cache.jsonl").read_text() == "paid\n"


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(
        OutputError, match=r"--reuse .*nothing: holds no manifest.json, so it is no run folder"
    ):
        check_runs([tmp_path / "nothing"])


def test_files_are_copied_where_links_cannot_be_made(tmp_path, monkeypatch):
    def refuse(*_: object, **__: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    (tmp_path / "old/inner").mkdir(parents=True)
    (tmp_path / "old/inner/text").write_text("a")
    monkeypatch.setattr("os.link", refuse)
    link_tree(tmp_path / "old", tmp_path / "new")
    assert (tmp_path / "new/inner/text").read_text() == "a"


@pytest.mark.slow
def test_a_recipe_that_varies_one_stage_trains_nothing_again(tmp_path, tiny_model_folder):
    write_collection(tmp_path / "coll")
    recipe = write_recipe(tmp_path / "small.yaml", tiny_model_folder, tmp_path / "coll")
    first = medley("run", recipe, "--out", tmp_path / "first", "--until", "train")
    assert first.code == 0, first.err
    varied = (
        "--out",
        tmp_path / "second",
        "--reuse",
        tmp_path / "first",
        "--set",
        "merge.search.grid=[0, 1]",
    )
    plan = medley("run", recipe, "--plan", "--json", *varied).json()
    assert not (tmp_path / "second").exists()
    reused = {row["step"]: row["why"] for row in plan if row["state"] == "reused"}
    assert {"sources/a", "leaks/sources", "train/a", "train/all"} <= set(reused)
    assert set(reused.values()) == {f"from {tmp_path / 'first'}"}
    assert "merge/search" not in reused
    second = medley("run", recipe, *varied, "--until", "merge")
    assert second.code == 0, second.err
    made = [line.split()[1] for line in second.err.splitlines() if line.startswith("[")]
    assert made == [row["step"] for row in plan if row["step"].startswith("merge/")]
    wrong = medley("run", recipe, "--out", tmp_path / "third", "--reuse", tmp_path / "coll")
    assert wrong.code == 2 and "is no run folder" in wrong.err and not (tmp_path / "third").exists()
