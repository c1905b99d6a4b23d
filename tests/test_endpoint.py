"""Embedding servers that take few texts, want fields, refuse a text or answer nonsense: real ones on loopback."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from medley.cli import app
from medley.collections import load_collection
from medley.errors import EndpointError, MedleyError
from medley.evaluate.access import Access
from medley.evaluate.endpoint import (
    BATCH,
    EmbeddingClient,
    EmbeddingServer,
    RefusedTextError,
    request_vectors,
    server_of,
)
from medley.llm.addresses import tell_plain

pytestmark = pytest.mark.usefixtures("no_proxy_and_no_key")
TEXTS = [f"text {i}" for i in range(150)]


def vector_of(text: str) -> list[float]:
    return [byte / 255 - 0.5 for byte in hashlib.sha256(text.encode()).digest()[:16]]


def embeddings(texts: list[str]) -> dict[str, Any]:
    return {"data": [{"index": i, "embedding": vector_of(text)} for i, text in enumerate(texts)]}


class Server:
    """Answers a request's body with what `script(body)` gives: status and JSON, or bytes."""

    def __init__(self) -> None:
        self.script: Callable[[dict[str, Any]], tuple[int, Any]] = lambda body: (
            200,
            embeddings(body["input"]),
        )
        self.bodies: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.port = 0

    @property
    def name(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1#m"

    def at_most(self, most: int, status: int, message: str) -> None:
        """Refuse more texts than `most`."""

        def script(body: dict[str, Any]) -> tuple[int, Any]:
            many = len(body["input"]) > most
            return (status, {"error": {"message": message}}) if many else (200, embeddings(body["input"]))

        self.script = script


@pytest.fixture
def embedder() -> Iterator[Server]:
    server = Server()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            server.bodies.append(body)
            server.keys.append(self.headers["Authorization"])
            status, answer = server.script(body)
            raw = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(raw)))
            self.end_headers()
            self.wfile.write(raw)

        def log_message(self, *_: object) -> None:
            pass

    listening = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.port = listening.server_port
    thread = threading.Thread(target=listening.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield server
    listening.shutdown()
    listening.server_close()


@pytest.mark.parametrize("most", [32, 10, 1])
@pytest.mark.parametrize(
    ("status", "message"),
    [
        (413, "no"),
        (422, "64 texts, fewer are allowed"),
        (400, "batch size exceeds the limit"),
        (400, "input must have at most 10 items"),
        (400, "Too many inputs"),
    ],
)
def test_batches_shrink_to_what_the_server_takes_and_stay_so(
    embedder: Server, capfd: pytest.CaptureFixture[str], most: int, status: int, message: str
) -> None:
    wanted = request_vectors(server_of(embedder.name), TEXTS)
    assert max(len(body["input"]) for body in embedder.bodies) == BATCH
    embedder.at_most(most, status, message)
    client = EmbeddingClient(server_of(embedder.name))
    np.testing.assert_array_equal(client.vectors(TEXTS), wanted)
    told = capfd.readouterr().err
    assert "asking with at most" in told
    embedder.bodies.clear()
    np.testing.assert_array_equal(client.vectors(TEXTS), wanted)
    assert all(len(body["input"]) <= most for body in embedder.bodies)  # nothing is refused a second time
    assert capfd.readouterr().err == ""


def results(server: Server, *options: str) -> dict[str, Any]:
    done = CliRunner().invoke(
        app,
        ["evaluate", server.name, "--task", "demo/medicine:dev", "--json", *options],
        catch_exceptions=True,
    )
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_a_table_is_the_same_whatever_batch_the_server_takes(embedder: Server) -> None:
    whole = results(embedder)
    for most in (32, 10, 1):
        embedder.at_most(most, 422, "fewer")
        assert results(embedder) == whole


def test_a_text_that_is_refused_is_named(embedder: Server) -> None:
    passage = load_collection("demo/medicine:dev").corpus[7]

    def script(body: dict[str, Any]) -> tuple[int, Any]:
        if passage.full_text in body["input"]:
            return 400, {"error": {"message": "input is longer than the maximum context of 512 tokens"}}
        return 200, embeddings(body["input"])

    embedder.script = script
    with pytest.raises(
        EndpointError, match=rf"longer than the maximum.*it is passage '{passage.id}' of medicine"
    ):
        results(embedder)
    with pytest.raises(RefusedTextError) as caught:
        request_vectors(server_of(embedder.name), ["a", passage.full_text, "b"])
    assert caught.value.text == passage.full_text


def test_fields_that_a_server_wants_are_sent(embedder: Server, tmp_path: Path) -> None:
    def script(body: dict[str, Any]) -> tuple[int, Any]:
        if "input_type" not in body:
            return 400, {"error": "this model needs 'input_type'"}
        return 200, embeddings([body["input_type"] + text for text in body["input"]])

    embedder.script = script
    with pytest.raises(EndpointError, match=r"needs 'input_type'.*extra_body"):
        results(embedder)
    embedder.bodies.clear()
    sides = ("--server-extra", "query:input_type=query", "--server-extra", "passage:input_type=passage")
    one = results(embedder, *sides, "--server-extra", "truncate=true", "--store", str(tmp_path))
    assert {body.get("input_type") for body in embedder.bodies if "truncate" in body} == {"query", "passage"}
    # a request of the call before, which was refused, may come in late
    assert all(body["truncate"] is True for body in embedder.bodies if "input_type" in body)
    asked = len(embedder.bodies)
    assert results(embedder, *sides, "--server-extra", "truncate=true", "--store", str(tmp_path)) == one
    assert len(embedder.bodies) == asked
    other = results(embedder, "--server-extra", "input_type=query", "--store", str(tmp_path))
    assert len(embedder.bodies) > asked and other["model"] != one["model"]


def test_a_key_goes_only_where_it_is_named(
    embedder: Server, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-topsecret-of-openai")
    monkeypatch.setenv("THEIR_KEY", "sk-topsecret-of-theirs")
    results(embedder)
    assert set(embedder.keys) == {None}
    results(embedder, "--api-key-env", "THEIR_KEY")
    assert embedder.keys[-1] == "Bearer sk-topsecret-of-theirs"
    with pytest.raises(MedleyError, match="several are named"):
        results(embedder, "--baseline", "http://other/v1#m", "--api-key-env", "THEIR_KEY")
    embedder.script = lambda body: (401, {"error": {"message": "no such key: sk-topsecret*****of-theirs"}})
    with pytest.raises(EndpointError, match="answers 401: no such key: ") as caught:
        results(embedder, "--api-key-env", "THEIR_KEY")
    assert "topsecret" not in str(caught.value) + "".join(capfd.readouterr())


@pytest.mark.parametrize(
    "answer",
    [
        b"", b"null", b"[]", b"{}", b'{"data": 7}', b'{"data": [7]}', b"[" * 100_000, b'{"data": [{"index": 0}]}',
        b'{"data": [{"index": 0, "embedding": [NaN, 1]}]}', b'{"data": [{"index": 0, "embedding": [Infinity, 1]}]}',
        b'{"data": [{"index": 0, "embedding": [1e300, 1]}]}', b'{"data": [{"index": 5, "embedding": [1, 1]}]}',
        b'{"data": [{"index": 0, "embedding": "AAAA"}]}', b'{"data": [{"index": 0, "embedding": []}]}',
        b'{"data": [{"index": 0, "embedding": [[1]]}]}', b'{"data": [{"index": "a", "embedding": [1]}]}',
        b'{"data": []}', b"\xff", b'{"data": [{"index": 0, "embedding": [0, 0]}]}',
    ],
)  # fmt: skip
def test_what_are_no_vectors_is_one_sentence(embedder: Server, answer: bytes) -> None:
    embedder.script = lambda body: (200, answer)
    with pytest.raises(EndpointError, match=r"^http://127\.0\.0\.1") as caught:
        request_vectors(server_of(embedder.name), ["a"])
    assert "\n" not in str(caught.value)


def test_vectors_of_two_lengths_are_refused(embedder: Server) -> None:
    def script(body: dict[str, Any]) -> tuple[int, Any]:
        size = 3 if TEXTS[0] in body["input"] else 2
        return 200, {"data": [{"index": i, "embedding": [1.0] * size} for i in range(len(body["input"]))]}

    embedder.script = script
    with pytest.raises(EndpointError, match="differ in length"):
        request_vectors(server_of(embedder.name), TEXTS)


def test_other_machines_are_told_of_when_asked_in_the_clear(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    tell_plain.cache_clear()
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    with pytest.raises(EndpointError, match=r"through the proxy 127\.0\.0\.1:9"):
        request_vectors(EmbeddingServer("http://model.example/v1", "m", Access(), backoff_s=0.001), ["a"])
    assert "http://model.example: the texts go there unencrypted" in capfd.readouterr().err
