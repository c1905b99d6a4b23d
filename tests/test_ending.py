"""How a command ends when it is not left to finish: terminated, or with its output closed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from small import training_rows, write_collection, write_lines

MEDLEY = [sys.executable, "-m", "medley"]


def test_sigterm_clears_up_and_says_so(tmp_path: Path) -> None:
    pairs = write_lines(tmp_path / "pairs.jsonl", training_rows("train_a") * 50)
    command = [*MEDLEY, "train", "--base", "tiny", "--pairs", pairs, "--out", "expert", "--batch-size", "2"]
    with subprocess.Popen(
        [*command, "--epochs", "1000"],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        while not (tmp_path / "expert.checkpoints").exists():
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    assert out == "" and err.endswith("medley: terminated; run the same command again to continue.\n")
    assert "Traceback" not in err
    assert {path.name for path in tmp_path.iterdir()} <= {"pairs.jsonl", "expert.checkpoints"}


@pytest.mark.parametrize("arguments", [["--help"], ["evaluate", "bm25", "--task", "coll:test", "--json"]])
def test_a_closed_pipe_ends_it_quietly(arguments: list[str], tmp_path: Path) -> None:
    write_collection(tmp_path / "coll")
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [*MEDLEY, *arguments], cwd=tmp_path, stdout=writing, stderr=subprocess.PIPE, text=True
    )
    os.close(writing)
    assert done.returncode == 128 + signal.SIGPIPE
    assert "Traceback" not in done.stderr and "Broken pipe" not in done.stderr


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&-", ">&- 2>&- <&-"])
def test_closed_streams_are_no_trouble(closed: str, tmp_path: Path) -> None:
    write_collection(tmp_path / "coll")
    command = f"{sys.executable} -m medley evaluate bm25 --task coll:test --out r.json {closed}"
    done = subprocess.run(command, shell=True, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and "Traceback" not in done.stderr
    assert (tmp_path / "r.json").is_file()


def test_an_output_on_a_full_disk_is_one_sentence(tmp_path: Path) -> None:
    write_collection(tmp_path / "coll")
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [*MEDLEY, "evaluate", "bm25", "--task", "coll:test"],
            cwd=tmp_path,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
        )
    assert done.returncode == 2
    assert done.stderr.endswith(
        "medley: standard output or the temporary folder: the disk is full; free some space and run the same command again (nothing finished is lost).\n"
    )
    assert "Traceback" not in done.stderr
