"""A job that is killed again and again: nothing that arrived is paid for twice, no row is lost or doubled."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from llm_server import ServerProcess, server_process

ROWS, KILLS, CONCURRENCY = 5000, 20, 64


def start(server: ServerProcess, folder: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "medley", "synthesize", "negatives", "--pairs", folder.parent / "pairs.jsonl",
               "--out", folder / "out.jsonl", "--prompt", folder.parent / "prompt.txt",
               "--llm-url", server.url, "--llm-model", "m", "--concurrency", str(CONCURRENCY)]  # fmt: skip
    folder.mkdir(exist_ok=True)
    with (folder / "log").open("ab") as log:
        return subprocess.Popen(command, stdout=log, stderr=log)


def recorded(cache: Path) -> set[str]:
    """Hashes of the requests whose replies are on disk: the server's texts begin with them."""
    found = set()
    for line in cache.read_bytes().split(b"\n") if cache.is_file() else []:
        try:
            text = json.loads(line)["reply"]["text"]
        except ValueError:
            continue
        found.add("".join(word[1:3] for word in text.split()[:8]))
    return found


@pytest.mark.slow
def test_a_job_killed_at_twenty_moments_pays_nothing_twice(tmp_path: Path) -> None:
    (tmp_path / "prompt.txt").write_text("Write a passage that does not answer {query}, unlike {positive}")
    with (tmp_path / "pairs.jsonl").open("w") as stream:
        for row in range(ROWS):
            positive = (
                f"Passage {row} says that drug {row * 7919 % 10007} is given for illness {row} every day."
            )
            stream.write(
                json.dumps({"query": f"what helps against illness {row}", "positive": positive}) + "\n"
            )
    with server_process(latency_s=0.01) as server:
        assert start(server, tmp_path / "whole").wait(300) == 0, (tmp_path / "whole" / "log").read_text()
        assert set(server.stats()["answered"].values()) == {1}
    wanted = (tmp_path / "whole" / "out.jsonl").read_bytes()
    assert len(wanted.splitlines()) == ROWS
    size = (tmp_path / "whole" / "out.jsonl.llm-cache.jsonl").stat().st_size

    rng = random.Random(20)
    # at random moments of the work; the first may come before anything was asked, the last while rows are written
    moments = [0.0, *sorted(rng.uniform(0, 1) for _ in range(KILLS - 2)), 0.999]
    cache = tmp_path / "killed" / "out.jsonl.llm-cache.jsonl"
    lost_in_flight: Counter[str] = Counter()
    with server_process(latency_s=0.01) as server:
        for moment in moments:
            process = start(server, tmp_path / "killed")
            while not cache.is_file() or cache.stat().st_size < moment * size:
                assert process.poll() is None, (tmp_path / "killed" / "log").read_text()
                time.sleep(0.001)
            time.sleep(rng.uniform(0, 0.05))
            process.send_signal(signal.SIGKILL)
            assert process.wait() == -signal.SIGKILL
            time.sleep(0.1)  # answers that the server still had in hand find nobody
            on_disk = recorded(cache)
            answered = server.stats()["answered"]
            in_flight = {
                key for key, count in answered.items() if count > lost_in_flight[key] and key not in on_disk
            }
            assert len(in_flight) <= CONCURRENCY and on_disk <= set(answered)
            lost_in_flight.update(in_flight)
            out = tmp_path / "killed" / "out.jsonl"  # not there, or whole
            assert not out.exists() or out.read_bytes() == wanted
        assert start(server, tmp_path / "killed").wait(300) == 0
        answered = server.stats()["answered"]
    # each request was paid for once, and once more for each time that its answer was under way when the job died
    assert answered == {key: 1 + lost_in_flight[key] for key in answered} and len(answered) == ROWS
    assert (tmp_path / "killed" / "out.jsonl").read_bytes() == wanted
    again = sum(lost_in_flight.values())
    print(
        f"{KILLS} kills: {sum(answered.values())} answers for {ROWS} rows; {again} were under way at a kill"
    )
