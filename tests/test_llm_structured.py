"""Replies as checked values, from servers that know JSON schemas, refuse them, or ignore them."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any, Literal

import pytest
from pydantic import BaseModel, Field

from llm_server import ChatServer, failure, reply
from medley.llm import LlmSettings, Message, Reply, Request, complete_many, complete_structured, open_chat
from medley.llm.structured import parsed, schema_of, with_schema


class Reason(BaseModel):
    """A part of a verdict."""

    title: str
    weight: float = 1.0


class Verdict(BaseModel):
    """What a judge says."""

    grade: int = Field(ge=0, le=3)
    verdict: Literal["yes", "no"]
    reasons: list[Reason]


GOOD = {"grade": 2, "verdict": "yes", "reasons": [{"title": "x", "weight": 0.5}]}


def ask(server: ChatServer, count: int = 6, concurrency: int = 1) -> list[Any]:
    chat = open_chat(LlmSettings(base_url=server.url, model="m", backoff_s=0.01))
    requests = (Request((Message("user", f"judge {i}"),)) for i in range(count))
    return list(complete_structured(chat, requests, Verdict, concurrency=concurrency))


def test_the_schema_is_asked_for_in_the_format_and_in_words(server: ChatServer) -> None:
    server.script = lambda number, body: json.dumps(GOOD)
    results = ask(server)
    assert [result.value for result in results] == [Verdict(**GOOD)] * 6
    assert {result.problem for result in results} == {""}
    sent = server.bodies[0]["response_format"]
    assert sent["type"] == "json_schema" and sent["json_schema"]["strict"] is True
    schema = sent["json_schema"]["schema"]
    assert schema["required"] == ["grade", "verdict", "reasons"] and schema["additionalProperties"] is False
    # a property may be called title; a default is not for the model to know
    assert schema["$defs"]["Reason"]["required"] == ["title", "weight"]
    assert schema["$defs"]["Reason"]["properties"]["weight"] == {"type": "number"}
    assert json.dumps(schema, separators=(",", ":")) in server.bodies[0]["messages"][0]["content"]
    assert schema == json.loads(schema_of(Verdict))


def test_a_server_that_refuses_schemas_is_remembered_and_asked_in_words(
    server: ChatServer, capfd: pytest.CaptureFixture[str]
) -> None:
    def script(number: int, body: dict[str, Any]) -> Any:
        return failure(400, "extra fields not permitted") if "response_format" in body else json.dumps(GOOD)

    server.script = script
    assert {result.problem for result in ask(server)} == {""}
    assert ["response_format" in body for body in server.bodies] == [True] + 6 * [False]
    assert "takes no response_format" in capfd.readouterr().err


def test_a_request_that_is_refused_for_another_reason_says_nothing_about_schemas(server: ChatServer) -> None:
    def script(number: int, body: dict[str, Any]) -> Any:
        return 400 if "judge 0" in body["messages"][0]["content"] else json.dumps(GOOD)

    server.script = script
    assert [result.problem for result in ask(server, 3)] == ["rejected", "", ""]
    assert ["response_format" in body for body in server.bodies] == [True, False, True, True]


def test_what_was_found_out_is_not_forgotten_when_other_requests_succeed(
    server: ChatServer, capfd: pytest.CaptureFixture[str]
) -> None:
    def script(number: int, body: dict[str, Any]) -> Any:
        if "response_format" in body:
            return failure(400, "extra fields not permitted")
        # a request of another kind, sent before anything was known, is answered after all was
        return reply(json.dumps(GOOD), latency_s=0.2 if "plain" in body["messages"][0]["content"] else 0.0)

    server.script = script
    chat = open_chat(LlmSettings(base_url=server.url, model="m"))
    words = ["plain", *(f"judge {i}" for i in range(20))]
    schema = schema_of(Verdict)
    asked = [Request((Message("user", w),)) if w == "plain" else with_schema(Request((Message("user", w),)), schema)
             for w in words]  # fmt: skip
    complete_many(chat, asked, concurrency=2)
    complete_many(chat, asked[1:])
    assert sum("response_format" in body for body in server.bodies) == 1
    assert capfd.readouterr().err.count("takes no response_format") == 1


def test_bad_replies_are_named(server: ChatServer) -> None:
    answers: dict[str, Any] = {
        "0": json.dumps(GOOD | {"grade": 7}),
        "1": "I think the answer is yes.",
        "2": json.dumps(GOOD)[:-5],
        "3": ("", "stop"),
        "4": (json.dumps(GOOD), "length"),
        "5": "[1, 2]",
        "6": json.dumps({"grade": 2, "verdict": "yes"}),
        "7": ("", "content_filter"),
        "8": json.dumps(GOOD),
    }
    server.script = lambda number, body: answers[body["messages"][0]["content"].split()[1]]
    results = ask(server, 9, concurrency=4)
    names = ["invalid", "invalid", "invalid", "empty", "truncated", "invalid", "invalid", "refusal", ""]
    assert [result.problem for result in results] == names
    assert [result.value is None for result in results] == [True] * 8 + [False]
    assert Counter(result.problem for result in results)["invalid"] == 5


@pytest.mark.parametrize(
    "wrapped",
    [
        "```json\n{}\n```",
        "<think>grade {3}?</think>\n{}",
        "Here is the JSON: {} I hope this helps.",
        "{}\n\n{{}}",
    ],
)
def test_what_is_wrapped_round_the_json_does_not_matter(wrapped: str) -> None:
    text = wrapped.replace("{}", json.dumps(GOOD), 1)
    assert parsed(Reply(text), Verdict).value == Verdict(**GOOD)
