"""The chat client against a real HTTP server on loopback that misbehaves by script."""

from __future__ import annotations

import json
import socket
import time
from pathlib import Path
from typing import Any

import pytest

from llm_calls import ASK, chat_with, numbered
from llm_server import Answer, ChatServer, completion, failure, reply
from medley.errors import EndpointError, RecipeError
from medley.llm import (
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
from medley.llm.answer import Answer as Received
from medley.llm.trouble import retry_after_s
from medley.recipe import parse_recipe

pytestmark = pytest.mark.usefixtures("no_proxy_and_no_key")


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
        "failures": {}, "noted": {},
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


def test_a_reply_that_repeats_the_key_is_kept_without(
    server: ChatServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.script = lambda number, body: "your key is sk-topsecret, and the place is EMPTY"
    for key, kept in (("sk-topsecret", "***"), ("EMPTY", "sk-topsecret")):
        monkeypatch.setenv("MY_KEY", key)
        cache = tmp_path / f"{key}.jsonl"
        reply = complete(chat_with(server, cache, api_key_env="MY_KEY"), ASK, sampling=Sampling())
        assert reply.text == f"your key is {kept}, and the place is EMPTY"
        assert f"key is {kept}" in cache.read_text()


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
