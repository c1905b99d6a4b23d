"""The chat client against a real HTTP server on loopback that misbehaves by script."""

from __future__ import annotations

import contextlib
import json
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from medley.errors import EndpointError
from medley.llm import (
    Cached,
    Endpoint,
    LlmSettings,
    Message,
    Replay,
    Reply,
    Request,
    Sampling,
    append_reply,
    complete_many,
    open_chat,
    read_replies,
    request_key,
)

Script = Callable[[int, dict[str, Any]], Any]
ASK = (Message("user", "hello"),)


class ChatServer(ThreadingHTTPServer):
    """Answers /v1/chat/completions with what `script(number, body)` gives: a text, a status, or a special
    word.
    """

    daemon_threads = True
    script: Script = staticmethod(lambda number, body: "fine")  # type: ignore[assignment]

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.lock = threading.Lock()
        self.under_way = self.most_under_way = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def handle_error(self, *_: Any) -> None:
        pass


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: ChatServer

    def log_message(self, *_: Any) -> None:
        pass

    def do_POST(self) -> None:
        server = self.server
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with server.lock:
            number = len(server.bodies)
            server.bodies.append(body)
            server.headers.append({name.lower(): value for name, value in self.headers.items()})
            server.under_way += 1
            server.most_under_way = max(server.most_under_way, server.under_way)
        answer = server.script(number, body)
        with server.lock:
            server.under_way -= 1
        if answer == "<drop>":
            # a reset instead of an orderly end
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.close_connection = True
            self.connection.close()
        elif isinstance(answer, int):
            self.send(answer, {"error": {"message": f"no: {self.headers.get('Authorization')}"}})
        elif answer == "<html>":
            self.send_bytes(200, b"<html>welcome</html>", "text/html")
        else:
            text, reason = answer if isinstance(answer, tuple) else (answer, "stop")
            self.send(200, completion(text, reason))

    def send(self, status: int, value: Any) -> None:
        self.send_bytes(status, json.dumps(value).encode(), "application/json")

    def send_bytes(self, status: int, data: bytes, kind: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


def completion(text: str | None, reason: str) -> dict[str, Any]:
    return {
        "id": "1", "object": "chat.completion", "created": 0, "model": "m",
        "choices": [{"index": 0, "finish_reason": reason, "message": {"role": "assistant", "content": text}}],
        "usage": {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15},
    }  # fmt: skip


@contextlib.contextmanager
def serving() -> Iterator[ChatServer]:
    """A running server, stopped at the end."""
    with ChatServer() as running:
        threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True).start()
        yield running
        running.shutdown()


@pytest.fixture
def server() -> Iterator[ChatServer]:
    with serving() as running:
        yield running


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("medley.llm._backoff_s", lambda attempt: 0.01)
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)


def settings(server: ChatServer, **values: Any) -> LlmSettings:
    return LlmSettings(base_url=server.url, model="m", **values)


def test_a_reply_comes_with_its_counts_and_the_request_says_what_was_asked(server: ChatServer) -> None:
    reply = Endpoint(settings(server)).complete(ASK, sampling=Sampling(seed=3, temperature=0.5, max_tokens=9))
    assert reply == Reply("fine", "stop", 10, 5)
    assert server.bodies[0] == {
        "model": "m", "messages": [{"role": "user", "content": "hello"}], "temperature": 0.5,
        "max_tokens": 9, "seed": 3,
    }  # fmt: skip


@pytest.mark.parametrize("trouble", [429, 500, 503, 408, "<drop>"])
def test_what_may_pass_is_tried_again(server: ChatServer, trouble: Any) -> None:
    server.script = lambda number, body: trouble if number < 2 else "fine"
    assert Endpoint(settings(server)).complete(ASK, sampling=Sampling()).text == "fine"
    assert len(server.bodies) == 3


def test_a_slow_server_is_a_timeout_that_names_the_setting(server: ChatServer) -> None:
    server.script = lambda number, body: time.sleep(0.6) or "late"
    with pytest.raises(EndpointError, match="timeout_s"):
        Endpoint(settings(server, timeout_s=0.15, retries=1)).complete(ASK, sampling=Sampling())


@pytest.mark.parametrize(
    ("trouble", "words"),
    [
        (500, "failed"),
        (429, "429"),
        ("<drop>", "broke"),
        (404, "model 'm'"),
        (401, "MY_KEY"),
        ("<html>", "/v1"),
    ],
)
def test_lasting_trouble_is_one_sentence_with_the_address(
    server: ChatServer, trouble: Any, words: str
) -> None:
    server.script = lambda number, body: trouble
    with pytest.raises(EndpointError, match=words) as caught:
        Endpoint(settings(server, retries=1, api_key_env="MY_KEY")).complete(ASK, sampling=Sampling())
    assert server.url in str(caught.value) and "\n" not in str(caught.value)


def test_a_server_that_is_down_is_told_at_once() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    down = LlmSettings(base_url=f"http://me:secret@127.0.0.1:{port}/v1", model="m")
    start = time.monotonic()
    with pytest.raises(EndpointError, match=rf"http://127.0.0.1:{port}/v1: no language model") as caught:
        complete_many(Endpoint(down), [Request(ASK)] * 20)
    assert time.monotonic() - start < 8 and "secret" not in str(caught.value)


def test_a_refused_request_is_a_rejected_reply_and_not_cached(server: ChatServer, tmp_path: Path) -> None:
    server.script = lambda number, body: 400 if number == 0 else "fine"
    chat = open_chat(settings(server), tmp_path / "replies.jsonl")
    assert chat.complete(ASK, sampling=Sampling()).finish_reason == "rejected"
    assert chat.complete(ASK, sampling=Sampling()).text == "fine"


def test_the_key_is_sent_and_written_nowhere(
    server: ChatServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MY_KEY", "sk-topsecret")
    server.script = lambda number, body: "fine" if number == 0 else 401
    chat = open_chat(settings(server, api_key_env="MY_KEY"), tmp_path / "replies.jsonl")
    chat.complete(ASK, sampling=Sampling())
    with pytest.raises(EndpointError) as caught:
        chat.complete((Message("user", "other"),), sampling=Sampling())
    assert server.headers[0]["authorization"] == "Bearer sk-topsecret"
    written = (tmp_path / "replies.jsonl").read_text() + str(caught.value) + "".join(capfd.readouterr())
    assert "topsecret" not in written


def test_order_is_kept_and_concurrency_is_used_but_not_exceeded(server: ChatServer) -> None:
    def script(number: int, body: dict[str, Any]) -> str:
        text = body["messages"][0]["content"]
        time.sleep(0.02 if int(text) % 3 else 0.06)
        return f"reply {text}"

    server.script = script
    requests = [Request((Message("user", str(i)),)) for i in range(24)]
    replies = complete_many(Endpoint(settings(server)), requests, concurrency=4)
    assert [reply.text for reply in replies] == [f"reply {i}" for i in range(24)]
    assert 2 <= server.most_under_way <= 4


def test_nothing_is_asked_twice_even_after_a_torn_line(server: ChatServer, tmp_path: Path) -> None:
    path = tmp_path / "cache" / "replies.jsonl"
    requests = [Request((Message("user", str(i)),)) for i in range(6)]
    server.script = lambda number, body: "reply to " + body["messages"][0]["content"]
    first = complete_many(open_chat(settings(server), path), requests)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:-1]) + lines[-1][:37])  # killed in the middle of the last line
    again = complete_many(open_chat(settings(server), path), requests)
    assert again == first
    assert len(server.bodies) == 7
    assert complete_many(open_chat(settings(server), path), requests) == first
    assert len(server.bodies) == 7


def test_other_sampling_or_model_is_another_request() -> None:
    keys = {
        request_key("m", ASK, Sampling()), request_key("n", ASK, Sampling()),
        request_key("m", ASK, Sampling(seed=1)),
        request_key("m", (Message("system", "hello"),), Sampling()),
    }  # fmt: skip
    assert len(keys) == 4


def test_replay_answers_what_was_recorded_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "recorded.jsonl"
    append_reply(path, request_key("m", ASK, Sampling()), "m", ASK, Reply("recorded"))
    replay = Replay(path, "m")
    assert replay.complete(ASK, sampling=Sampling()).text == "recorded"
    with pytest.raises(EndpointError, match="holds no reply of 'm' to 'unheard of'"):
        replay.complete((Message("user", "unheard of"),), sampling=Sampling())


def test_the_budget_is_never_exceeded_and_the_rest_is_marked(server: ChatServer) -> None:
    endpoint = Endpoint(settings(server, budget_tokens=100, concurrency=3))
    requests = [Request(ASK, Sampling(seed=i, max_tokens=10)) for i in range(20)]
    replies = complete_many(endpoint, requests, concurrency=3)
    done = [reply for reply in replies if reply.finish_reason == "stop"]
    assert endpoint.spent_tokens == 15 * len(done) <= 100 and len(done) >= 3
    assert {reply.finish_reason for reply in replies} == {"stop", "budget"}


def test_one_fatal_error_ends_the_work(server: ChatServer) -> None:
    server.script = lambda number, body: 403 if number == 2 else "fine"
    requests = [Request(ASK, Sampling(seed=i)) for i in range(200)]
    with pytest.raises(EndpointError, match="access denied"):
        complete_many(Endpoint(settings(server)), requests, concurrency=2)
    assert len(server.bodies) < 10


def test_cache_of_a_replay_reads_like_any_other(tmp_path: Path) -> None:
    source, copy = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    append_reply(source, request_key("m", ASK, Sampling()), "m", ASK, Reply("ÄÖ \u2028 x"))
    Cached(Replay(source, "m"), copy).complete(ASK, sampling=Sampling())
    assert read_replies(copy) == read_replies(source)
