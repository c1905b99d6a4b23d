"""What servers send in place of a text, and how they name what they do not take: real requests to a scripted server."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_calls import ASK, chat_with, numbered
from llm_server import Answer, ChatServer, completion, failure
from medley.errors import EndpointError, InputError
from medley.llm import LlmSettings, Message, Reply, Sampling, complete, complete_many
from medley.llm.answer import Answer as Received
from medley.llm.dialect import reply_of
from medley.llm.extra import extra_from_options
from medley.llm.messages import bare, without_thinking

pytestmark = pytest.mark.usefixtures("no_proxy_and_no_key")

THOUGHT = {"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}
HARMONY = "<|channel|>analysis<|message|>hm<|end|><|start|>assistant<|channel|>final<|message|>fine<|return|>"


def answering(content: object, reason: object = "stop", usage: object = None, **message: object) -> Answer:
    """A completion with any content, finish reason and usage."""
    body: dict[str, Any] = completion("")
    body["choices"][0] |= {"finish_reason": reason, "message": {"content": content, **message}}
    if usage is not None:
        body["usage"] = usage
    return Answer(json.dumps(body).encode())


@pytest.mark.parametrize(
    ("content", "thinks"),
    [
        ("fine", False),
        (["fi", "ne"], False),
        ([{"type": "text", "text": "fi"}, {"type": "output_text", "text": "ne"}], False),
        ([THOUGHT, {"type": "text", "text": "fine"}], True),
        ([{"type": "redacted_thinking", "data": "x"}, {"type": "text", "text": "fine"}], True),
        ("<think>hm</think>\n\nfine", True),
        ("hm</think>fine", True),
        ("[THINK]hm[/THINK]fine", True),
        ("◁think▷hm◁/think▷fine", True),
        ("<seed:think>hm</seed:think>fine", True),
        (HARMONY, True),
    ],
)
def test_a_reply_is_what_the_model_says_beside_its_thinking(
    server: ChatServer, tmp_path: Path, content: object, thinks: bool
) -> None:
    server.script = lambda number, body: answering(content)
    chat = chat_with(server, tmp_path / "replies.jsonl")
    assert complete(chat, ASK, sampling=Sampling()) == Reply("fine", "stop", 10, 5)
    assert chat.ledger.noted == ({"thinking": 1} if thinks else {})
    assert ("thinking left out of 1 replies" in chat.ledger.sentence()) == thinks
    assert complete(chat_with(server, tmp_path / "replies.jsonl"), ASK, sampling=Sampling()).text == "fine"


@pytest.mark.parametrize("field", ["reasoning_content", "reasoning", "thinking"])
@pytest.mark.parametrize("content", ["", None, [THOUGHT], "<think>hm", HARMONY.partition("<|start|>")[0]])
def test_thinking_without_a_text_is_a_failure_with_a_name(
    server: ChatServer, field: str, content: object
) -> None:
    server.script = lambda number, body: answering(content, "length", **{field: "let me think"})
    assert complete(chat_with(server), ASK, sampling=Sampling()).problem == "only_reasoning"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (7, "its content is a number"),
        (True, "its content is true or false"),
        ({"text": "fine"}, "its content is an object"),
        ([{"type": "image_url", "image_url": "x"}], "a part of its content is image_url"),
        ([{"type": "text", "text": ["fine"]}], "a part of its content is text"),
        ([["fine"]], "a part of its content is a list"),
        ([None], "a part of its content is null"),
    ],
)
def test_what_is_no_text_is_refused_and_never_spelled_out(
    server: ChatServer, tmp_path: Path, content: object, words: str
) -> None:
    server.script = lambda number, body: answering(content)
    with pytest.raises(EndpointError, match=words):
        complete(chat_with(server, tmp_path / "replies.jsonl", retries=0), ASK, sampling=Sampling())
    assert not (tmp_path / "replies.jsonl").exists()


def test_an_answer_without_choices_is_a_rejected_request(
    server: ChatServer, capfd: pytest.CaptureFixture[str]
) -> None:
    server.script = lambda number, body: Answer(b'{"choices": [], "usage": {"prompt_tokens": 5}}')
    chat = chat_with(server)
    assert {r.problem for r in complete_many(chat, numbered(3))} == {"rejected"}
    assert chat.ledger.failures == {"rejected": 3} and "`choices` is empty" in capfd.readouterr().err


DEEP = b'{"choices": ' + b"[" * 100_000


@pytest.mark.parametrize("body", [DEEP, DEEP + b"]" * 100_000, b"\xff{", b"", b"null", b"[]", b"7" * 10_000, b'{"choices": [7]}'])  # fmt: skip
@pytest.mark.parametrize("status", [200, 400, 500])
def test_no_answer_ends_in_a_traceback(server: ChatServer, body: bytes, status: int) -> None:
    server.script = lambda number, _: Answer(body, status)
    chat = chat_with(server, retries=0)
    if status == 400:
        assert complete(chat, ASK, sampling=Sampling()).problem == "rejected"
    else:
        with pytest.raises(EndpointError):
            complete(chat, ASK, sampling=Sampling())


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["text", "type", "content", "message"]), inner),
)  # fmt: skip


@given(
    content=JSON,
    reason=JSON,
    usage=JSON | st.fixed_dictionaries({"prompt_tokens": JSON, "completion_tokens": JSON}),
)
def test_any_json_is_a_text_or_refused(content: object, reason: object, usage: object) -> None:
    try:
        reply = reply_of(Received(200, {}, answering(content, reason, usage).body), ASK)
    except ValueError:
        return
    assert isinstance(reply.text, str) and isinstance(reply.finish_reason, str)
    assert 0 < reply.prompt_tokens < 1e8 and 0 <= reply.completion_tokens < 1e8


@pytest.mark.parametrize(
    "count", [-5, -(10**9), 10**30, "7", True, 1.5, None, [1], "Infinity", "-Infinity", "NaN"]
)
def test_a_count_that_cannot_be_is_estimated_and_told(server: ChatServer, count: object) -> None:
    usage = {"prompt_tokens": count, "completion_tokens": count}
    raw = answering("twelve bytes", usage=usage).body.replace(b'"Infinity"', b"Infinity")
    raw = raw.replace(b'"-Infinity"', b"-Infinity").replace(b'"NaN"', b"NaN")
    server.script = lambda number, body: Answer(raw)
    chat = chat_with(server, budget_tokens=2_000)
    replies = complete_many(chat, [*numbered(200, max_tokens=50)], concurrency=1)
    assert (chat.ledger.prompt_tokens, chat.ledger.completion_tokens) == (
        chat.ledger.calls,
        3 * chat.ledger.calls,
    )
    assert chat.ledger.noted == {"estimated": chat.ledger.calls}
    assert f"tokens of {chat.ledger.calls} replies estimated" in chat.ledger.sentence()
    assert replies[0].text == "twelve bytes"


def test_whole_numbers_may_be_written_as_floats(server: ChatServer) -> None:
    server.script = lambda number, body: answering(
        "fine", usage={"prompt_tokens": 7.0, "completion_tokens": 3.0}
    )
    assert complete(chat_with(server), ASK, sampling=Sampling()) == Reply("fine", "stop", 7, 3)


# Parameters --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["seed", "temperature"])
@pytest.mark.parametrize(
    ("status", "error"),
    [
        (400, {"error": {"message": "Unsupported parameter: 'NAME'"}}),
        (400, [{"error": {"code": 400, "message": 'Bad JSON payload. No field is called "NAME".'}}]),
        (400, {"error": {"message": "`NAME` cannot be set for this model."}}),
        (400, {"detail": "NAME is not supported"}),
        (400, {"error": {"message": "unsupported", "param": "NAME"}}),
        (422, {"detail": [{"type": "extra_forbidden", "loc": ["body", "NAME"], "msg": "No extra inputs"}]}),
        (422, {"message": {"detail": [{"loc": ["body", "NAME"], "msg": "No extra inputs", "input": 1}]}}),
        (400, {"errors": ["json: unknown field \"NAME\""]}),
        (400, "“NAME” is unknown"),
        (400, "unknown:\nNAME"),
    ],
)  # fmt: skip
def test_a_refused_parameter_is_left_out_however_it_is_named(
    server: ChatServer, capfd: pytest.CaptureFixture[str], name: str, status: int, error: object
) -> None:
    body = json.dumps(error).replace("NAME", name).encode()
    server.script = lambda number, asked: Answer(body, status) if name in asked else "fine"
    chat = chat_with(server)
    assert {r.text for r in complete_many(chat, numbered(3, seed=1), concurrency=1)} == {"fine"}
    assert len(server.bodies) == 4 and f"the server takes no {name}; asking without" in capfd.readouterr().err


def test_a_word_of_the_text_costs_an_attempt_and_changes_nothing(
    server: ChatServer, capfd: pytest.CaptureFixture[str]
) -> None:
    def script(number: int, body: dict[str, Any]) -> Any:
        return (
            failure(400, "too long: 'body temperature'") if body["messages"][0]["content"] == "0" else "fine"
        )

    server.script = script
    replies = complete_many(chat_with(server), numbered(3), concurrency=1)
    assert [r.problem for r in replies] == ["rejected", "", ""]
    assert "temperature" in server.bodies[-1] and "asking without" not in capfd.readouterr().err


def test_an_error_is_shown_as_a_message_and_not_as_json(
    server: ChatServer, capfd: pytest.CaptureFixture[str]
) -> None:
    detail = [{"loc": ["body", "enable_thinking"], "msg": "Field required", "type": "missing"}]
    server.script = lambda number, body: Answer(json.dumps({"detail": detail}).encode(), 422)
    complete(chat_with(server), ASK, sampling=Sampling())
    said = capfd.readouterr().err
    assert "(422): body.enable_thinking: Field required (give" in said and "--llm-extra" in said


def test_fields_of_the_users_own_are_sent_and_part_of_the_key(server: ChatServer, tmp_path: Path) -> None:
    own: dict[str, Any] = {"enable_thinking": False, "chat_template_kwargs": {"depth": [1, "two"]}}
    for extra in ({}, own, {}, own):
        complete(chat_with(server, tmp_path / "r.jsonl", extra_body=extra), ASK, sampling=Sampling())
    assert len(server.bodies) == 2 and server.bodies[1] == {**server.bodies[0], **own}


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        ({"temperature": 0}, "temperature is said by llm.temperature"),
        ({"stream": True}, "stream is Medley's own"),
        ({"x": {"api_key": "sk"}}, "seems to hold a key"),
    ],
)
def test_fields_that_are_said_elsewhere_and_keys_are_refused(extra: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        LlmSettings(base_url="http://h/v1", model="m", extra_body=extra)
    with pytest.raises(ValueError, match="belongs to an endpoint"):
        LlmSettings(local="tiny", extra_body={"x": 1})


def test_fields_are_read_from_options() -> None:
    given = ["a=false", "b=1.5", 'c={"d": [1]}', "e=plain text", "f="]
    found = {"a": False, "b": 1.5, "c": {"d": [1]}, "e": "plain text", "f": ""}
    assert extra_from_options(given, "--llm-extra") == found
    for wrong in ("a", "=1", ""):
        with pytest.raises(InputError, match="is not KEY=JSON"):
            extra_from_options([wrong], "--llm-extra")


# Thinking ----------------------------------------------------------------------------------------------------


@given(st.text())
def test_a_text_without_marks_is_left_as_it_is(text: str) -> None:
    assert without_thinking(text) == text or any(mark in text for mark in "<[◁")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a <think> b", "a <think> b"),
        ("a<think>b</think>c<think>d</think>e", "ace"),
        ("<think>a<think>b</think>c", "c"),
        ("<think>a</think><think>b", ""),
        ("<|channel|>final<|message|>a", "a"),
        ("<|channel|>commentary to=f <|constrain|>json<|message|>{}<|call|>", ""),
    ],
)
def test_thinking_is_cut_where_it_stands(text: str, said: str) -> None:
    assert without_thinking(text) == said


@pytest.mark.parametrize(
    "piece", ["<think>", "</think>", "<think>x</think>", "<|channel|>", "<|channel|>final<|message|>", "```"]
)
def test_no_reply_takes_long_to_read(piece: str) -> None:
    import time

    start = time.monotonic()
    for text in (piece * 100_000, piece + "a" * 200_000, piece + " " * 200_000):
        bare(text)
    assert time.monotonic() - start < 5


def test_estimates_count_every_message(server: ChatServer) -> None:
    body = {"choices": [{"message": {"content": "fine"}}], "usage": 7}
    server.script = lambda number, _: Answer(json.dumps(body).encode())
    asked = (Message("system", "x" * 40), Message("user", "x" * 41))
    assert complete(chat_with(server), asked, sampling=Sampling()).prompt_tokens == 21
