"""Many requests at once: order, concurrency, faults, budgets and interrupts."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from llm_calls import ASK, chat_with, echo, numbered
from llm_server import Answer, ChatServer, reply, server_process
from medley.errors import EndpointError
from medley.llm import (
    LlmSettings,
    Message,
    Request,
    complete_many,
    complete_stream,
    open_chat,
)
from medley.llm.stream import AHEAD
from medley.synthesize.replies import check_reply

pytestmark = pytest.mark.usefixtures("no_proxy_and_no_key")


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
        settings = LlmSettings(base_url=bad.url, model="m", backoff_s=0.01, timeout_s=1, retries=12)
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
