"""Replies on disk: nothing is paid for twice, nothing that was whole is lost, whatever happened to the file."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_calls import ASK, chat_with, echo, numbered
from llm_server import ChatServer, reply
from medley.errors import EndpointError, OutputError
from medley.llm import (
    Cached,
    Message,
    Replay,
    Reply,
    ReplyFile,
    Request,
    Sampling,
    Tokens,
    complete,
    complete_many,
    complete_stream,
    request_key,
)
from medley.llm.index import OffsetIndex


@pytest.fixture
def server(server: ChatServer) -> ChatServer:
    """The server, saying what it heard."""
    server.script = echo
    return server


def test_nothing_is_asked_twice_even_after_a_torn_line(server: ChatServer, tmp_path: Path) -> None:
    path = tmp_path / "cache" / "replies.jsonl"
    first = complete_many(chat_with(server, path), numbered(6))
    assert [r.text for r in first] == [f"reply to {i}" for i in range(6)]
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:-1]) + lines[-1][:37])  # killed in the middle of the last line
    again = chat_with(server, path)
    assert complete_many(again, numbered(6)) == first
    assert len(server.bodies) == 7 and (again.ledger.calls, again.ledger.from_cache) == (1, 5)
    assert complete_many(chat_with(server, path), numbered(6)) == first
    assert len(server.bodies) == 7


def test_lines_that_are_cut_or_no_replies_are_counted_and_told(
    server: ChatServer, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "replies.jsonl"
    first = complete_many(chat_with(server, path), numbered(3))
    lines = path.read_bytes().splitlines(keepends=True)
    deep = lines[1][:21] + b'ffff", "tokens": [1, 1], "x": ' + b"[" * 100_000 + b', "format": 1}\n'
    absurd = lines[1].replace(b'"tokens": [10', b'"tokens": [' + b"9" * 5000)
    no_text = lines[2].replace(b'"text": "reply to', b'"text": 7, "x": "')
    path.write_bytes(lines[0] + b"\x00\xff\n" + lines[1][:50] + b"\n" + absurd + no_text + deep)
    chat = chat_with(server, path)
    assert "3 lines are cut or damaged" in capfd.readouterr().err
    assert complete_many(chat, numbered(3)) == first and chat.ledger.from_cache == 1
    assert ReplyFile(path).get(lines[1][9:21].decode() + "ffff") is None


def test_a_cache_that_cannot_be_read_is_told_before_anything_is_paid(
    server: ChatServer, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("x")
    for path in (tmp_path, tmp_path / "file" / "replies.jsonl"):
        with pytest.raises(OutputError, match=r"cannot be read as a file of recorded replies"):
            chat_with(server, path)
    assert server.bodies == []


@pytest.mark.parametrize("end", range(0, 700, 23))
def test_a_cache_cut_at_any_byte_is_asked_for_the_rest(server: ChatServer, tmp_path: Path, end: int) -> None:
    path = tmp_path / "replies.jsonl"
    first = complete_many(chat_with(server, path), numbered(3))
    path.write_bytes(path.read_bytes()[:end])
    assert complete_many(chat_with(server, path), numbered(3)) == first
    again = chat_with(server, path)
    assert complete_many(again, numbered(3)) == first and again.ledger.from_cache == 3


def test_the_same_request_made_at_once_is_sent_once(server: ChatServer, tmp_path: Path) -> None:
    server.script = lambda number, body: reply(f"reply {number}", latency_s=0.05)
    chat = chat_with(server, tmp_path / "replies.jsonl")
    assert {r.text for r in complete_many(chat, [Request(ASK)] * 20, concurrency=10)} == {"reply 0"}
    assert len(server.bodies) == 1 and chat.ledger.from_cache == 19


def test_a_failed_request_does_not_hold_up_those_that_wait_for_it(server: ChatServer, tmp_path: Path) -> None:
    server.script = lambda number, body: 400 if number == 0 else "fine"
    chat = chat_with(server, tmp_path / "replies.jsonl")
    replies = complete_many(chat, [Request(ASK)] * 6, concurrency=6)
    assert sorted(r.finish_reason for r in replies) == ["rejected"] + 5 * ["stop"]
    assert len(server.bodies) == 2


def test_a_reply_is_on_disk_before_it_is_used(server: ChatServer, tmp_path: Path) -> None:
    path = tmp_path / "replies.jsonl"
    requests = numbered(30)
    for request, got in zip(requests, complete_stream(chat_with(server, path), requests), strict=True):
        assert ReplyFile(path).get(request_key("m", request.messages, request.sampling)) == got


def test_other_sampling_or_model_is_another_request() -> None:
    keys = {
        request_key("m", ASK, Sampling()), request_key("n", ASK, Sampling()),
        request_key("m", ASK, Sampling(seed=1)), request_key("m", ASK, Sampling(temperature=0.6)),
        request_key("m", ASK, Sampling(max_tokens=9)), request_key("m", ASK, Sampling(json_schema="{}")),
        request_key("m", (Message("system", "hello"),), Sampling()),
        request_key("m", (*ASK, Message("user", "")), Sampling()),
    }  # fmt: skip
    assert len(keys) == 8


def test_replay_answers_what_was_recorded_and_nothing_else(server: ChatServer, tmp_path: Path) -> None:
    path = tmp_path / "recorded.jsonl"
    complete(chat_with(server, path), ASK, sampling=Sampling())
    replay = Replay(path, "m")
    assert complete(replay, ASK, sampling=Sampling()).text == "reply to hello"
    with pytest.raises(EndpointError, match="holds no reply of 'm' to 'unheard of'"):
        complete(replay, (Message("user", "unheard of"),), sampling=Sampling())
    copy = tmp_path / "copy.jsonl"
    complete(Cached(replay, ReplyFile(copy)), ASK, sampling=Sampling())
    assert copy.read_bytes() == path.read_bytes()


def test_a_file_that_cannot_be_written_is_one_sentence(server: ChatServer, tmp_path: Path) -> None:
    chat = chat_with(server, tmp_path / "file" / "replies.jsonl")
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="a file stands where a folder is needed"):
        complete(chat, ASK, sampling=Sampling())


texts = (
    st.text(st.characters(exclude_categories=()))
    | st.text('x\n\r\u2028\x00"\\}', max_size=40)
    | st.just("x" * 20_000)
)
replies = st.builds(Reply, texts, st.sampled_from(["stop", "length"]), st.integers(0, 9), st.integers(0, 9))
keys = (st.integers(1, 2**64 - 1) | st.integers(1, 3)).map(lambda number: f"{number:016x}")


@settings(deadline=None)
@given(rows=st.lists(st.tuples(keys, replies), max_size=12), keep=st.floats(0, 1))
def test_every_line_that_was_whole_is_found_after_any_accident(
    rows: list[tuple[str, Reply]], keep: float
) -> None:
    """Cut the file anywhere and let another writer go on: what came before the cut is there, and what came after
    it, and nothing else.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "replies.jsonl"
        file, ends = ReplyFile(path), []
        for key, reply_ in rows:
            file.add(key, "m", (Message("user", reply_.text),), reply_)
            ends.append(path.stat().st_size)
            assert file.get(key) == reply_
        data = path.read_bytes() if rows else b""
        cut = int(keep * len(data))
        path.write_bytes(data[:cut])
        whole = dict(row for row, end in zip(rows, ends, strict=True) if end - 1 <= cut)
        again = ReplyFile(path)
        assert {key: again.get(key) for key, _ in rows} == {key: whole.get(key) for key, _ in rows}
        again.add("00000000000000aa", "m", ASK, Reply("after", "stop", 3, 4))
        last = ReplyFile(path)
        found = {key: last.get(key) for key, _ in rows} | {"00000000000000aa": last.get("00000000000000aa")}
        assert found == {key: whole.get(key) for key, _ in rows} | {
            "00000000000000aa": Reply("after", "stop", 3, 4)
        }
        spent = [r for (_, r), end in zip(rows, ends, strict=True) if end - 1 <= cut] + [Reply("", "", 3, 4)]
        assert last.spent == Tokens(
            sum(r.prompt_tokens for r in spent), sum(r.completion_tokens for r in spent)
        )


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(1, 2**64 - 1) | st.integers(1, 50), st.integers(0, 2**40))))
def test_the_index_is_a_dict(entries: list[tuple[int, int]]) -> None:
    index, known = OffsetIndex(), dict[int, int]()
    for key, offset in entries:
        assert index.get(key) == known.get(key)
        index.put(key, offset)
        known[key] = offset
    assert {key: index.get(key) for key in known} == known and len(index) == len(known)


def test_the_index_grows_and_stays_small() -> None:
    index, step = OffsetIndex(), 0x9E3779B97F4A7C15  # scattered keys, as hashes are
    keys = [(i * step) % 2**64 for i in range(1, 100_001)]
    for offset, key in enumerate(keys):
        index.put(key, offset)
    assert all(index.get(key) == offset for offset, key in enumerate(keys)) and index.get(12345) is None
    assert index.nbytes <= 48 * len(index)
