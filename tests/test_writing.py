"""Writing: what a kill leaves is swept by its full name, no link is followed, modes and the disk are as they should be."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from medley.errors import OutputError
from medley.files import link_tree, sweep, write_text, writing

GONE = 2**22 + 1
"""The number of no process: the kernel's are smaller."""


def names(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}


def test_only_what_bears_a_temporary_name_in_full_is_swept(tmp_path: Path) -> None:
    for name in (f".x.writing-{GONE}", f"..x.writing-{GONE}.writing-{GONE}", f".z.process-{GONE}"):
        (tmp_path / name / "inner").mkdir(parents=True)
    kept = {
        ".git",
        ".bashrc",
        ".x.writing-",
        ".x.writing-1b",
        f"x.writing-{GONE}",
        ".writing-5",
        f".a.writing-{os.getppid()}",
    }
    for name in kept:
        (tmp_path / name).write_text("precious")
    sweep(tmp_path)
    assert names(tmp_path) == kept


def test_only_the_results_named_are_swept(tmp_path: Path) -> None:
    for name in (f".x.writing-{GONE}", f"..x.writing-{GONE}.writing-{GONE}", f".xy.writing-{GONE}"):
        (tmp_path / name).write_text("")
    sweep(tmp_path, "x")
    assert names(tmp_path) == {f".xy.writing-{GONE}"}


def test_a_link_is_swept_and_what_it_leads_to_stays(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk" / "thesis.txt").write_text("precious")
    (tmp_path / f".x.writing-{GONE}").symlink_to("disk")
    sweep(tmp_path)
    assert names(tmp_path) == {"disk", "disk/thesis.txt"}


def test_a_result_on_its_way_out_comes_back_where_nothing_took_its_place(tmp_path: Path) -> None:
    for name in ("x", "y"):
        (tmp_path / f".{name}.outgoing-{GONE}").mkdir()
        (tmp_path / f".{name}.outgoing-{GONE}" / "old").write_text("")
    (tmp_path / "y").mkdir()
    sweep(tmp_path)
    assert names(tmp_path) == {"x", "x/old", "y"}


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o027, 0o640), (0o077, 0o600)])
def test_all_that_is_written_has_the_umasks_mode(umask: int, mode: int, tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    before = os.umask(umask)
    try:
        with writing(tmp_path / "model") as temporary:
            temporary.mkdir()
            save_file({"a": np.zeros(3)}, temporary / "model.safetensors")
            (temporary / "tool").touch(mode=0o700)
        with writing(tmp_path / "one.safetensors") as temporary:
            save_file({"a": np.zeros(3)}, temporary)
    finally:
        assert os.umask(before) == umask
    for path in ("model/model.safetensors", "model/.medley-files", "one.safetensors"):
        assert stat.S_IMODE((tmp_path / path).stat().st_mode) == mode
    assert (tmp_path / "model" / "tool").stat().st_mode & 0o100, "a program stays one"


def test_all_is_flushed_before_the_rename_and_the_folder_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    sync, rename = os.fsync, Path.replace

    def path_of(file: int) -> str:
        return (
            str(Path(f"/proc/self/fd/{file}").readlink())
            .replace(f"{tmp_path}", "")
            .replace(f"writing-{os.getpid()}", "PID")
        )

    monkeypatch.setattr("medley.durable.os.fsync", lambda file: (done.append(path_of(file)), sync(file))[1])
    monkeypatch.setattr(Path, "replace", lambda self, to: (done.append("rename"), rename(self, to))[1])
    write_text(tmp_path / "a", "x")
    assert done == ["/.a.PID", "rename", ""]
    done.clear()
    with writing(tmp_path / "m") as temporary:
        (temporary / "in").mkdir(parents=True)
        write_text(temporary / "in" / "b", "x")
    assert done.pop(0) == "rename", "what is part of an unfinished folder is flushed with it"
    assert sorted(done) == sorted(
        ["/.m.PID/.medley-files", "/.m.PID/in/b", "/.m.PID", "/.m.PID/in", "rename", ""]
    )
    assert done[-2:] == ["rename", ""]


def test_second_names_are_not_written_through(tmp_path: Path) -> None:
    with writing(tmp_path / "a", own=True) as temporary:
        temporary.mkdir()
        (temporary / "f").write_text("1")
    with writing(tmp_path / "b", own=True) as temporary:
        link_tree(tmp_path / "a", temporary)
    assert (tmp_path / "a" / "f").samefile(tmp_path / "b" / "f")


SMALL = """
import resource, signal, sys
import numpy as np
from pathlib import Path
from medley.files import writing
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
from medley.errors import OutputError
try:
    with writing(Path(sys.argv[1])) as temporary, temporary.open("wb") as stream:
        np.save(stream, np.zeros(100_000))
except OutputError as problem:
    print(problem)
"""


def test_vectors_that_find_no_room_are_one_sentence(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SMALL, tmp_path / "v.npy"], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith(f"{tmp_path}/v.npy: ") and done.stdout.count("\n") == 1
    assert names(tmp_path) == set()


def test_a_full_disk_under_numpy_is_known_by_what_numpy_says(tmp_path: Path) -> None:
    with (
        pytest.raises(OutputError, match="the disk is full"),
        writing(tmp_path / "v.npy"),
        Path("/dev/full").open("wb") as full,
    ):
        np.zeros(100_000).tofile(full)
