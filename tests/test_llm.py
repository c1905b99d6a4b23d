"""The chat client against a real HTTP server on loopback that misbehaves by script."""

from __future__ import annotations

import asyncio
import json
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_server import Answer, ChatServer, completion, failure, reply, server_process, serving
from medley.errors import EndpointError, RecipeError
from medley.llm import (
    ChatModel,
    LlmSettings,
    Message,
    Reply,
    Request,
    Sampling,
    complete,
    complete_many,
    complete_stream,
    open_chat,
)
from medley.llm.stream import AHEAD
from medley.llm.transport import Answer as Received
from medley.llm.transport import read_answer
from medley.llm.trouble import retry_after_s
from medley.recipe import parse_recipe
from medley.synthesize.replies import check_reply

ASK = (Message("user", "hello"),)


@pytest.fixture
def server() -> Iterator[ChatServer]:
    with serving() as running:
        yield running


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)


def chat_with(server: ChatServer, cache: Path | None = None, **values: Any) -> ChatModel:
    values = {"base_url": server.url, "model": "m", "backoff_s": 0.01} | values
    return open_chat(LlmSettings(**values), cache)


def numbered(count: int, **sampling: Any) -> list[Request]:
    return [Request((Message("user", str(i)),), Sampling(**sampling)) for i in range(count)]


def echo(number: int, body: dict[str, Any]) -> str:
    return "reply to " + body["messages"][0]["content"]


# One request -------------------------------------------------------------------------------------------------


def test_a_reply_comes_with_its_counts_and_the_request_says_what_was_asked(server: ChatServer) -> None:
    chat = chat_with(server)
    got = complete(chat, ASK, sampling=Sampling(seed=3, temperature=0.5, max_tokens=9))
    assert got == Reply("fine", "stop", 10, 5)
    assert server.bodies[0] == {
        "model": "m", "messages": [{"role": "user", "content": "hello"}], "temperature": 0.5,
        "max_tokens": 9, "seed": 3,
    }  # fmt: skip
    assert server.paths == ["/v1/chat/completions"]
    assert chat.ledger.as_json() == {
        "calls": 1, "from_cache": 0, "retries": 0, "prompt_tokens": 10, "completion_tokens": 5, "usd": None,
        "failures": {},
    }  # fmt: skip


@pytest.mark.parametrize(
    ("trouble", "name"),
    [
        (429, "limited"),
        (500, "server_error"),
        (503, "server_error"),
        (408, "server_error"),
        ("<drop>", "broken"),
        (Answer(json.dumps(completion("x")).encode(), fault="cut"), "broken"),
        (Answer(b'{"choices": [{"mess'), "invalid_answer"),
        (Answer(fault="hang"), "timeout"),
    ],
)
def test_what_may_pass_is_tried_again_and_counted_by_name(
    server: ChatServer, trouble: Any, name: str
) -> None:
    server.script = lambda number, body: trouble if number < 2 else "fine"
    chat = chat_with(server, timeout_s=0.2)
    assert complete(chat, ASK, sampling=Sampling()).text == "fine"
    assert len(server.bodies) == 3
    assert (chat.ledger.calls, chat.ledger.retries, chat.ledger.failures) == (1, 2, {name: 2})


def test_retry_after_is_honoured_by_every_request_under_way(server: ChatServer) -> None:
    asked: list[float] = []

    def script(number: int, body: dict[str, Any]) -> Any:
        asked.append(time.monotonic())
        return failure(429, "slow down", {"Retry-After": "0.5"}) if number == 0 else "fine"

    server.script = script
    list(complete_stream(chat_with(server), numbered(12), concurrency=2))
    first_wave = [at - asked[0] for at in asked[1:]]
    # the second request was already under way; the ten after it wait for the server's pause to pass
    assert sorted(at >= 0.49 for at in first_wave) == [False] + [True] * 11


@pytest.mark.parametrize(
    ("text", "wait_s"),
    [
        ("7", 7),
        ("0.5", 0.5),
        ("Thu, 01 Jan 1970 00:01:40 GMT", 90),
        ("Thu, 01 Jan 1970 00:00:01 GMT", 0),
        ("-3", 0),
        ("nan", 0),
        ("86400", 600),
        ("soon", 0),
        ("", 0),
    ],
)
def test_retry_after_is_read_in_seconds_and_as_a_date(text: str, wait_s: float) -> None:
    assert retry_after_s(Received(429, {"retry-after": text}, b""), now=10.0) == wait_s


def test_a_rate_limit_is_waited_out_while_others_get_through(server: ChatServer) -> None:
    served_at = 0.0

    def script(number: int, body: dict[str, Any]) -> Any:
        nonlocal served_at
        if time.monotonic() - served_at < 0.01:  # a reply each 10 ms, for 16 that want one at once
            return 429
        served_at = time.monotonic()
        return "fine"

    server.script = script
    chat = chat_with(server, retries=3, backoff_s=0.005)
    assert {r.text for r in complete_stream(chat, numbered(40), concurrency=16)} == {"fine"}
    assert chat.ledger.failures["limited"] == chat.ledger.retries == len(server.bodies) - 40 > 40


def test_a_slow_server_is_a_timeout_that_names_the_setting(server: ChatServer) -> None:
    server.script = lambda number, body: reply("late", latency_s=0.6)
    with pytest.raises(EndpointError, match=r"no reply within 0\.15 s, tried 2 times; raise timeout_s"):
        complete(chat_with(server, timeout_s=0.15, retries=1), ASK, sampling=Sampling())


@pytest.mark.parametrize(
    ("trouble", "words"),
    [
        (500, "failed"),
        (429, "429"),
        (302, "points elsewhere"),
        ("<drop>", "broke"),
        (404, "model 'm'"),
        (401, "MY_KEY is not set"),
        ("<html>", "/v1"),
        (Answer(b'{"object": "list", "data": []}'), "no chat completion"),
    ],
)
def test_lasting_trouble_is_one_sentence_with_the_address(
    server: ChatServer, trouble: Any, words: str
) -> None:
    server.script = lambda number, body: trouble
    with pytest.raises(EndpointError, match=words) as caught:
        complete(chat_with(server, retries=1, api_key_env="MY_KEY"), ASK, sampling=Sampling())
    assert server.url in str(caught.value) and "\n" not in str(caught.value)


def test_a_server_that_is_down_is_told_at_once() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    down = open_chat(LlmSettings(base_url=f"http://127.0.0.1:{port}/v1", model="m"))
    start = time.monotonic()
    with pytest.raises(EndpointError, match=rf"http://127.0.0.1:{port}/v1: no language model"):
        complete_many(down, numbered(20))
    assert time.monotonic() - start < 3


def test_a_refused_request_is_a_rejected_reply_not_cached_and_told_once(
    server: ChatServer, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    server.script = lambda number, body: failure(400, "too long a prompt") if number < 3 else "fine"
    chat = chat_with(server, tmp_path / "replies.jsonl")
    replies = complete_many(chat, numbered(3), concurrency=1)
    assert {r.finish_reason for r in replies} == {"rejected"} and chat.ledger.failures == {"rejected": 3}
    assert capfd.readouterr().err.count("too long a prompt") == 1
    assert {r.text for r in complete_many(chat, numbered(3))} == {"fine"}


def test_a_server_with_other_words_is_asked_in_them(
    server: ChatServer, capfd: pytest.CaptureFixture[str]
) -> None:
    def script(number: int, body: dict[str, Any]) -> Any:
        if "max_tokens" in body:
            return failure(400, "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead.")
        if "temperature" in body:
            return failure(400, "Unsupported value: 'temperature' does not support 0.7 with this model.")
        return "fine"

    server.script = script
    replies = complete_many(chat_with(server), numbered(5, max_tokens=9), concurrency=1)
    assert {r.text for r in replies} == {"fine"} and len(server.bodies) == 7
    assert server.bodies[-1]["max_completion_tokens"] == 9
    assert "takes no max_tokens and no temperature" in capfd.readouterr().err


def test_a_refusal_in_a_field_of_its_own_is_a_filtered_reply(server: ChatServer) -> None:
    message = {"role": "assistant", "content": None, "refusal": "I can't help with that."}
    body = completion("") | {"choices": [{"index": 0, "finish_reason": "stop", "message": message}]}
    server.script = lambda number, _: Answer(json.dumps(body).encode())
    assert complete(chat_with(server), ASK, sampling=Sampling()).problem == "refusal"


def test_a_server_that_does_not_count_tokens_is_billed_by_estimate(server: ChatServer) -> None:
    body = {key: value for key, value in completion("twelve bytes").items() if key != "usage"}
    server.script = lambda number, _: Answer(json.dumps(body).encode())
    got = complete(chat_with(server), (Message("user", "x" * 41),), sampling=Sampling())
    assert (got.prompt_tokens, got.completion_tokens) == (11, 3)


# The key -----------------------------------------------------------------------------------------------------


def test_the_key_is_sent_and_written_nowhere(
    server: ChatServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MY_KEY", "sk-topsecret\n")
    said: list[str] = []
    # the server repeats the key in its errors
    for place, trouble in enumerate((400, 401, 404, 429, 500, "<drop>", "<html>")):
        server.script = lambda number, body, trouble=trouble: "fine" if number % 2 == 0 else trouble
        server.bodies.clear()
        chat = chat_with(server, tmp_path / "replies.jsonl", api_key_env="MY_KEY", retries=0)
        try:
            complete_many(chat, [Request(ASK, Sampling(seed=2 * place + i)) for i in range(2)], concurrency=1)
        except EndpointError as problem:
            said += [str(problem), repr(problem.__cause__), repr(problem.__context__)]
        said += [repr(chat.ledger), chat.ledger.sentence(), json.dumps(chat.ledger.as_json())]
    assert server.headers[0]["authorization"] == "Bearer sk-topsecret"
    written = [path.read_text() for path in tmp_path.rglob("*") if path.is_file()]
    output = "".join(capfd.readouterr())
    assert "***" in output and len(said) > 20 and len(written) == 1
    assert "topsecret" not in "".join([*written, *said, output])


@pytest.mark.parametrize("address", ["http://me:topsecret@host/v1", "https://host/v1?api-key=topsecret"])
def test_a_key_in_the_address_is_refused_without_being_repeated(address: str) -> None:
    with pytest.raises(RecipeError, match="api_key_env") as caught:
        parse_recipe({"name": "x", "base": "tiny", "llm": {"base_url": address, "model": "m"}})
    assert "topsecret" not in str(caught.value)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({}, "either `base_url` and `model`, or `local`"),
        ({"base_url": "http://h/v1", "model": "m", "local": "tiny"}, "either"),
        ({"base_url": "http://h/v1"}, "`model` is missing"),
        ({"base_url": "h/v1", "model": "m"}, "must be an address"),
        ({"local": "tiny", "model": "m"}, "belongs to an endpoint"),
        ({"base_url": "http://h/v1", "model": "m", "budget_usd": 1}, "needs `prices`"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(values: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        LlmSettings(**values)


# HTTP --------------------------------------------------------------------------------------------------------

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


# Many requests -----------------------------------------------------------------------------------------------


def test_order_is_kept_and_concurrency_is_used_but_not_exceeded(server: ChatServer) -> None:
    server.script = lambda number, body: reply(
        echo(number, body), latency_s=0.02 if int(body["messages"][0]["content"]) % 3 else 0.06
    )
    replies = complete_many(chat_with(server), numbered(24), concurrency=4)
    assert [r.text for r in replies] == [f"reply to {i}" for i in range(24)]
    assert server.most_under_way == 4


def test_requests_are_read_as_there_is_room(server: ChatServer) -> None:
    server.script = echo
    read = 0

    def endless() -> Iterator[Request]:
        nonlocal read
        while True:
            read += 1
            yield Request((Message("user", str(read)),))

    stream = complete_stream(chat_with(server), endless(), concurrency=3)
    for given_out in range(1, 200):
        assert next(stream).text == f"reply to {given_out}"
        assert read <= given_out + 3 * AHEAD + 3
    time.sleep(0.1)
    assert read <= 199 + 3 * AHEAD + 3
    stream.close()
    asked = len(server.bodies)
    time.sleep(0.05)
    assert len(server.bodies) == asked


def test_the_end_of_a_stream_waits_for_what_is_under_way_and_records_it(
    server: ChatServer, tmp_path: Path
) -> None:
    server.script = lambda number, body: reply(echo(number, body), latency_s=0 if number == 0 else 0.3)
    chat = chat_with(server, tmp_path / "replies.jsonl")
    stream = complete_stream(chat, numbered(50), concurrency=8)
    assert next(stream).text == "reply to 0"
    stream.close()
    asked = len(server.bodies)
    assert 8 <= asked <= 9 and chat.ledger.calls == asked
    list(complete_stream(chat, numbered(asked), concurrency=8))
    assert len(server.bodies) == asked and chat.ledger.from_cache == asked


def test_one_fatal_error_ends_the_work(server: ChatServer) -> None:
    server.script = lambda number, body: 403 if number == 2 else "fine"
    with pytest.raises(EndpointError, match="access denied"):
        complete_many(chat_with(server), numbered(200), concurrency=2)
    assert len(server.bodies) < 10


def test_an_error_of_the_requests_is_the_callers(server: ChatServer) -> None:
    def broken() -> Iterator[Request]:
        yield Request(ASK)
        raise KeyError("no such column")

    with pytest.raises(KeyError, match="no such column"):
        list(complete_stream(chat_with(server), broken()))
    assert list(complete_stream(chat_with(server), iter(()))) == []


def test_every_fault_of_a_bad_server_is_counted_and_every_row_is_answered(tmp_path: Path) -> None:
    shares = {"limited": 0.06, "failed": 0.06, "drop": 0.06, "cut": 0.06, "invalid": 0.06, "hang": 0.01,
              "refusal": 0.06, "empty": 0.06}  # fmt: skip
    with server_process(latency_s=0.005, seed=3, **shares) as bad:
        settings = LlmSettings(base_url=bad.url, model="m", backoff_s=0.01, timeout_s=1)
        chat = open_chat(settings, tmp_path / "replies.jsonl")
        replies = complete_many(chat, numbered(600), concurrency=64)
        stats = bad.stats()
    told = stats["faults"]
    assert set(told) == set(shares) and stats["most"] > 32
    assert chat.ledger.failures == {
        "limited": told["limited"], "server_error": told["failed"], "broken": told["drop"] + told["cut"],
        "invalid_answer": told["invalid"], "timeout": told["hang"],
    }  # fmt: skip
    assert chat.ledger.calls == 600 and chat.ledger.retries == sum(chat.ledger.failures.values())
    problems = Counter(check_reply(r, [], least_words=1).problem for r in replies)
    assert problems == {
        "refusal": told["refusal"],
        "empty": told["empty"],
        "": sum(stats["answered"].values()),
    }
    assert set(stats["answered"].values()) == {1}


# Budget ------------------------------------------------------------------------------------------------------


def test_the_budget_is_never_exceeded_and_the_rest_is_marked(server: ChatServer) -> None:
    chat = chat_with(server, budget_tokens=100)
    replies = complete_many(chat, numbered(20, max_tokens=10), concurrency=3)
    # 15 tokens each; before the last the most it could take, 8 + 10, must fit
    assert [r.finish_reason for r in replies].count("stop") == 6 == len(server.bodies)
    assert {r.problem for r in replies} == {"", "over_budget"}
    assert chat.ledger.prompt_tokens + chat.ledger.completion_tokens == 90


@pytest.mark.parametrize("concurrency", [1, 16])
def test_the_budget_is_used_up_whatever_the_concurrency(server: ChatServer, concurrency: int) -> None:
    server.script = lambda number, body: reply("fine", latency_s=0.01)
    chat = chat_with(server, budget_tokens=600)
    replies = complete_many(chat, numbered(60, max_tokens=200), concurrency=concurrency)
    assert [r.finish_reason for r in replies].count("stop") == (600 - 208) // 15 + 1


def test_a_budget_of_money_counts_prompts_and_replies_at_their_prices(
    server: ChatServer, tmp_path: Path
) -> None:
    prices = {"prompt": 1.0, "completion": 10.0}  # a call of 10 + 5 tokens: 60 millionths
    cache = tmp_path / "replies.jsonl"
    chat = chat_with(server, cache, prices=prices, budget_usd=500e-6)
    replies = complete_many(chat, numbered(20, max_tokens=10), concurrency=4)
    done = [r.finish_reason for r in replies].count("stop")
    assert done == 7  # after 7 calls 420 are spent, and 8 + 100 more would not fit
    assert chat.ledger.usd == pytest.approx(7 * 60e-6)
    # run again: earlier calls count, nothing more is sent, what was paid for is still there
    again = chat_with(server, cache, prices=prices, budget_usd=500e-6)
    assert complete_many(again, numbered(20, max_tokens=10), concurrency=1)[:7] == replies[:7]
    assert len(server.bodies) == 7 and again.ledger.from_cache == 7 and again.ledger.usd == 0


def test_an_error_does_not_wait_for_a_server_that_hangs(
    server: ChatServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("medley.llm.stream.DRAIN_S", 0.2)
    server.script = lambda number, body: 403 if number == 3 else Answer(fault="hang")
    start = time.monotonic()
    with pytest.raises(EndpointError, match="access denied"):
        complete_many(chat_with(server), numbered(20), concurrency=4)
    assert 0.2 <= time.monotonic() - start < 2


def test_an_interrupt_records_what_is_under_way_and_ends(server: ChatServer, tmp_path: Path) -> None:
    server.script = lambda number, body: reply(echo(number, body), latency_s=0.5)
    code = (
        "from pathlib import Path\n"
        "from medley.llm import *\n"
        f"chat = open_chat(LlmSettings(base_url={server.url!r}, model='m'), Path({str(tmp_path / 'r.jsonl')!r}))\n"
        "requests = (Request((Message('user', str(i)),)) for i in range(10**9))\n"
        "for reply in complete_stream(chat, requests, concurrency=8): print(reply.text, flush=True)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "reply to 0\n"
    time.sleep(0.2)
    asked_at, asked = time.monotonic(), len(server.bodies)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=20)
    assert "KeyboardInterrupt" in errors and time.monotonic() - asked_at < 6
    assert len(server.bodies) == asked == len((tmp_path / "r.jsonl").read_text().splitlines())
