"""A hub id that cannot be had is told within seconds, against a real server on loopback or none."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

CALL = """
import sys, time
from medley.encoder import open_retriever
from medley.errors import ModelError
begun = time.monotonic()
try:
    open_retriever(sys.argv[1])
except ModelError as problem:
    print(round(time.monotonic() - begun, 2), problem)
"""


class Hub(BaseHTTPRequestHandler):
    """Knows no model but a gated one."""

    def do_GET(self) -> None:
        gated = "gated" in self.path
        body = json.dumps({"error": "gated" if gated else "Repository not found"}).encode()
        self.send_response(403 if gated else 404)
        self.send_header("X-Error-Code", "GatedRepo" if gated else "RepoNotFound")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Be quiet."""


@pytest.fixture
def hub() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def ask(name: str, cache: Path, **environment: str) -> tuple[float, str]:
    """Seconds until the refusal, and what it says, in a process whose cache is empty."""
    env = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    done = subprocess.run(
        [sys.executable, "-c", CALL, name],
        capture_output=True, text=True, env={**env, "HF_HOME": str(cache), **environment}, check=True,
    )  # fmt: skip
    seconds, _, sentence = done.stdout.partition(" ")
    return float(seconds), sentence.strip()


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("someone/misspelt", "no public model on the hub has that name"),
        ("someone/gated", "accept their terms"),
    ],
)
def test_what_the_hub_refuses_is_told_at_once(hub: str, tmp_path: Path, name: str, says: str) -> None:
    seconds, sentence = ask(name, tmp_path, HF_ENDPOINT=hub)
    assert sentence.startswith(f"{name}: ") and says in sentence and "\n" not in sentence
    assert seconds < 10


def test_without_a_network_the_wait_is_short(tmp_path: Path) -> None:
    seconds, sentence = ask("someone/model", tmp_path, HF_ENDPOINT="http://127.0.0.1:9")
    assert "cannot be reached" in sentence
    assert seconds < 10


def test_offline_mode_is_named(tmp_path: Path) -> None:
    seconds, sentence = ask("someone/model", tmp_path, HF_HUB_OFFLINE="1")
    assert "HF_HUB_OFFLINE is set" in sentence
    assert seconds < 10
