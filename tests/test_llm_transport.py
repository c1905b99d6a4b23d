"""The client's HTTP against real servers, sound and unsound ones: connections kept, bounds, proxies, TLS."""

from __future__ import annotations

import itertools
import json
import random
import re
import shutil
import ssl
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from llm_calls import ASK, chat_with, numbered
from llm_server import Answer, ChatServer, completion, serving
from medley.errors import EndpointError
from medley.llm import (
    ChatModel,
    LlmSettings,
    Sampling,
    complete,
    complete_many,
    complete_stream,
    open_chat,
)
from medley.llm.transport import LONGEST_ANSWER
from raw_server import CLOSE, RawServer, serving_bytes, whole

pytestmark = pytest.mark.usefixtures("no_proxy_and_no_key")


@pytest.fixture
def raw() -> Iterator[RawServer]:
    with serving_bytes() as server:
        yield server


BODY = json.dumps(completion("fine")).encode()
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"".join(
    b"%x;x=y\r\n%s\r\n" % (len(part), part) for part in (BODY[:5], BODY[5:])
)
MESSAGES = {
    "length": b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(BODY), BODY),
    "informed": b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length:%d\r\n\r\n%s" % (len(BODY), BODY),
    "chunked": CHUNKED + b"0\r\nTrailer: x\r\n\r\n",
    "closing": b"HTTP/1.1 200 OK\r\nConnection: Close\r\nContent-Length: %d\r\n\r\n%s" % (len(BODY), BODY),
    "to the end": b"HTTP/1.1 200 OK\r\n\r\n" + BODY,
    "old": b"HTTP/1.0 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(BODY), BODY),
}  # fmt: skip
KEPT = {"length", "informed", "chunked"}


@pytest.mark.parametrize("kind", MESSAGES)
def test_an_answer_is_the_same_however_the_network_cuts_it(raw: RawServer, kind: str) -> None:
    data, chosen = MESSAGES[kind], random.Random(kind)

    def script(number: int) -> Iterator[bytes]:
        cuts = sorted({0, len(data), *chosen.choices(range(1, len(data)), k=number % 9)})
        for start, end in itertools.pairwise(cuts):
            yield data[start:end]
            time.sleep(0.001)
        if kind not in KEPT:
            yield CLOSE

    raw.script = script
    texts, chat = asked_of(raw.url, 30)
    assert texts == ["fine"] * 30 and chat.ledger.retries == 0
    assert raw.connections == (1 if kind in KEPT else 30)


@pytest.mark.parametrize("kind", sorted(set(MESSAGES) - {"to the end"}))
def test_an_answer_that_ends_early_is_never_taken_for_a_whole_one(raw: RawServer, kind: str) -> None:
    data = MESSAGES[kind]
    ends = [*range(0, len(data) - len(BODY), 7), *range(len(data) - len(BODY), len(data), 41), len(data) - 1]
    raw.script = lambda number: [data[: ends[number]] if number < len(ends) else data, CLOSE]
    texts, chat = asked_of(raw.url, retries=len(ends), backoff_s=0)
    assert texts == ["fine"] and chat.ledger.failures == {"broken": len(ends)}


def test_connections_are_kept_and_replaced_when_the_server_closed_them(server: ChatServer) -> None:
    chat = chat_with(server)
    complete_many(chat, numbered(30), concurrency=3)
    assert server.connections <= 3
    server.script = lambda number, body: Answer(
        json.dumps(completion("fine")).encode(), headers={"Connection": "close"}
    )
    before = server.connections
    assert len(complete_many(chat, numbered(5), concurrency=1)) == 5
    assert server.connections == before + 5 and chat.ledger.retries == 0


def test_a_proxy_is_told_the_whole_address(server: ChatServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", server.url.removesuffix("/v1"))
    chat = chat_with(server, base_url="http://model.example:8000/v1?version=2")
    assert complete(chat, ASK, sampling=Sampling()).text == "fine"
    assert server.paths == ["http://model.example:8000/v1/chat/completions?version=2"]
    assert server.headers[0]["host"] == "model.example:8000"
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    assert complete(chat_with(server), ASK, sampling=Sampling()).text == "fine"
    assert server.paths[-1] == "/v1/chat/completions"


def asked_of(url: str, count: int = 1, **values: object) -> tuple[list[str], ChatModel]:
    """Texts of replies to so many requests, one after the other, and the client."""
    chat = open_chat(LlmSettings(**{"base_url": url, "model": "m", "backoff_s": 0.01, **values}))  # type: ignore[arg-type]
    return [reply.text for reply in complete_many(chat, numbered(count), concurrency=1)], chat


@pytest.mark.parametrize("late", ["with the answer", "with its end", "while idle"])
@pytest.mark.parametrize("extra", [whole("stale"), b"garbage", b"\r\n"])
def test_bytes_after_a_reply_are_never_the_next_reply(raw: RawServer, late: str, extra: bytes) -> None:
    def script(number: int) -> Iterator[bytes]:
        asked = json.loads(b"{" + raw.requests[number].partition(b"\r\n{")[2])
        answer = whole(f"reply to {asked['messages'][0]['content']}")
        if late == "with the answer":
            yield answer + extra
        elif late == "with its end":
            yield answer[:-5]
            time.sleep(0.02)
            yield answer[-5:] + extra
        else:
            yield answer
            time.sleep(0.02)
            yield extra

    raw.script = script
    chat = open_chat(LlmSettings(base_url=raw.url, model="m", backoff_s=0.01))
    pauses = (request for request in numbered(4) if time.sleep(0.05) is None)
    texts = []
    try:
        texts += [reply.text for reply in complete_stream(chat, pauses, concurrency=1)]
    except EndpointError as problem:  # what ends in nonsense at once is refused
        assert (extra, late) == (b"garbage", "with the answer") and "\n" not in str(problem)
        return
    assert texts == [f"reply to {i}" for i in range(4)]


ENDLESS = b'{"choices": [{"message": {"content": "' + b"x" * (1 << 16)
HEAD = b"HTTP/1.1 200 OK\r\n"


@pytest.mark.parametrize(
    "head", [b"Transfer-Encoding: chunked\r\n\r\n", b"\r\n", b"Content-Length: 2000000000\r\n\r\n"]
)
def test_an_endless_reply_is_not_read_to_its_end(raw: RawServer, head: bytes) -> None:
    piece = b"%x\r\n%s\r\n" % (len(ENDLESS), ENDLESS) if b"chunked" in head else ENDLESS

    def script(number: int) -> Iterator[bytes]:
        yield HEAD + head
        for _ in range(2_000_000_000 // len(piece)):
            yield piece

    raw.script = script
    start = time.monotonic()
    with pytest.raises(EndpointError, match=r"longer than 64 MiB"):
        asked_of(raw.url, retries=0)
    assert time.monotonic() - start < 10 and raw.written < 2 * LONGEST_ANSWER


def test_a_reply_that_trickles_is_a_timeout(raw: RawServer) -> None:
    def script(number: int) -> Iterator[bytes]:
        yield HEAD + b"\r\n"
        for _ in range(100):
            time.sleep(0.05)
            yield b"x"

    raw.script = script
    with pytest.raises(EndpointError, match=r"no reply within 0\.3 s"):
        asked_of(raw.url, retries=0, timeout_s=0.3)


SHORT = whole("fine").replace(b"Content-Length: ", b"Content-Length: 1")


@pytest.mark.parametrize(
    "piece",
    [
        whole("fine")[:-9],  # closed early
        SHORT,  # promises more than it sends
        whole("fine").replace(b"Content-Length: ", b"Content-Length: -"),
        whole("fine").replace(b"Content-Length: ", b"Content-Length: x"),
        HEAD + b"Transfer-Encoding: chunked\r\n\r\nnonsense\r\n{}\r\n0\r\n\r\n",
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n-5\r\n{}\r\n0\r\n\r\n",
        HEAD + b"Transfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\n{}",
        HEAD + b"X: " + b"y" * 1_000_000 + b"\r\n\r\n{}",
        HEAD + b"X: y\r\n" * 100_000 + b"\r\n{}",
        HEAD + b"no header\r\n\r\n",
        b"SSH-2.0-OpenSSH_9\r\n\r\n",
        b"HTTP/1.1 999999999999 X\r\n\r\n",
        b"\x00" * 100,
        CLOSE,
    ],
)  # fmt: skip
def test_what_is_no_sound_http_is_one_sentence(raw: RawServer, piece: bytes) -> None:
    raw.script = lambda number: [piece, CLOSE]
    with pytest.raises(EndpointError, match=r"127\.0\.0\.1") as caught:
        asked_of(raw.url, retries=1)
    assert len(raw.requests) == 2 and "\n" not in str(caught.value)
    raw.script = lambda number: [piece, CLOSE] if number < 3 else [whole("fine"), CLOSE]
    assert asked_of(raw.url)[0] == ["fine"]  # it may pass


def test_a_length_that_is_too_short_cuts_one_reply_and_no_other(raw: RawServer) -> None:
    sound = whole("fine")
    cut = re.sub(rb"Content-Length: \d+", b"Content-Length: 40", sound)
    raw.script = lambda number: [cut if number == 0 else sound]
    texts, chat = asked_of(raw.url, 3)
    assert texts == ["fine"] * 3 and chat.ledger.failures == {"broken": 1}


def test_a_redirect_is_not_followed_and_takes_no_key_elsewhere(
    raw: RawServer, server: ChatServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_KEY", "sk-topsecret")
    for status in (301, 302, 303, 307, 308):
        moved = f"HTTP/1.1 {status} X\r\nLocation: {server.url}/chat/completions\r\nContent-Length: 0\r\n\r\n"
        raw.script = lambda number, moved=moved: [moved.encode()]
        with pytest.raises(EndpointError, match="points elsewhere"):
            asked_of(raw.url, api_key_env="MY_KEY")
    assert server.bodies == [] and b"sk-topsecret" in raw.requests[0]


def test_this_machine_is_reached_without_a_proxy(server: ChatServer, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert asked_of(server.url)[0] == ["fine"]
    assert asked_of(server.url.replace("127.0.0.1", "localhost"))[0] == ["fine"]


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_proxy_that_fails_is_named_without_its_password(
    raw: RawServer, monkeypatch: pytest.MonkeyPatch, scheme: str
) -> None:
    monkeypatch.setenv(f"{scheme}_proxy", "http://me:topsecret@127.0.0.1:9")
    with pytest.raises(
        EndpointError, match=r"model\.example.* through the proxy 127\.0\.0\.1:9.*NO_PROXY"
    ) as caught:
        asked_of(f"{scheme}://model.example/v1", retries=0)
    assert "topsecret" not in str(caught.value)
    raw.script = lambda number: [b"HTTP/1.1 407 X\r\nContent-Length: 0\r\n\r\n", CLOSE]
    monkeypatch.setenv(f"{scheme}_proxy", f"http://127.0.0.1:{raw.port}")
    with pytest.raises(EndpointError, match=rf"proxy 127\.0\.0\.1:{raw.port}.*407"):
        asked_of(f"{scheme}://model.example/v1", retries=0)
    monkeypatch.setenv(f"{scheme}_proxy", "socks5://127.0.0.1:9")
    with pytest.raises(EndpointError, match="only http"):
        asked_of(f"{scheme}://model.example/v1", retries=0)


@pytest.mark.skipif(shutil.which("openssl") is None, reason="makes a certificate with the openssl command")
def test_tls_is_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = ["-keyout", tmp_path / "key.pem", "-out", tmp_path / "cert.pem"]
    named = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", *files, *named],
        check=True, capture_output=True,
    )  # fmt: skip
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "cert.pem", tmp_path / "key.pem")
    with serving(context) as server:
        chat = chat_with(server, base_url=f"https://localhost:{server.port}/v1")
        with pytest.raises(EndpointError, match=r"certificate is not trusted .* SSL_CERT_FILE"):
            complete(chat, ASK, sampling=Sampling())
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "cert.pem"))
        assert {r.text for r in complete_many(chat, numbered(9), concurrency=3)} == {"fine"}
