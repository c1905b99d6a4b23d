"""The client's HTTP, against answers cut anywhere and real servers: connections kept, proxies, TLS."""

from __future__ import annotations

import asyncio
import json
import shutil
import ssl
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_calls import ASK, chat_with, numbered
from llm_server import Answer, ChatServer, completion, serving
from medley.errors import EndpointError
from medley.llm import (
    Sampling,
    complete,
    complete_many,
)
from medley.llm.transport import Answer as Received
from medley.llm.transport import read_answer

pytestmark = pytest.mark.usefixtures("no_proxy_and_no_key")


BODY = b'{"a": "\xc3\xa4 and \r\n\r\n more"}'
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"".join(
    b"%x;x=y\r\n%s\r\n" % (len(part), part) for part in (BODY[:5], BODY[5:])
)
MESSAGES = {
    "length": (b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(BODY), BODY), True),
    "informed": (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length:%d\r\n\r\n%s" % (len(BODY), BODY), True),
    "chunked": (CHUNKED + b"0\r\nTrailer: x\r\n\r\n", True),
    "closing": (b"HTTP/1.1 200 OK\r\nConnection: Close\r\nContent-Length: %d\r\n\r\n%s" % (len(BODY), BODY), False),
    "to the end": (b"HTTP/1.1 200 OK\r\n\r\n" + BODY, False),
    "old": (b"HTTP/1.0 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(BODY), BODY), False),
}  # fmt: skip


def read_in_pieces(data: bytes, cuts: list[int]) -> tuple[Received, bool]:
    async def read() -> tuple[Received, bool]:
        reader = asyncio.StreamReader()

        async def feed() -> None:
            start = 0
            for cut in [*sorted(cuts), len(data)]:
                reader.feed_data(data[start:cut])
                start = max(start, cut)
                await asyncio.sleep(0)
            reader.feed_eof()

        feeding = asyncio.ensure_future(feed())
        try:
            return await asyncio.wait_for(read_answer(reader), 5)
        finally:
            await feeding

    return asyncio.run(read())


@pytest.mark.parametrize("kind", MESSAGES)
@settings(deadline=None)
@given(cuts=st.lists(st.integers(0, 120), max_size=8))
def test_an_answer_is_the_same_however_the_network_cuts_it(kind: str, cuts: list[int]) -> None:
    data, keep = MESSAGES[kind]
    answer, kept = read_in_pieces(data, [min(cut, len(data)) for cut in cuts])
    assert (answer.status, answer.body, kept) == (200, BODY, keep)


@pytest.mark.parametrize("kind", sorted(set(MESSAGES) - {"to the end"}))
def test_an_answer_that_ends_early_is_never_taken_for_a_whole_one(kind: str) -> None:
    data, _ = MESSAGES[kind]
    for end in range(len(data)):
        with pytest.raises((EOFError, ValueError)):
            read_in_pieces(data[:end], [])


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
