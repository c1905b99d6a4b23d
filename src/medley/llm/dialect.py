"""The words of the chat completions API: a request's JSON, a reply out of the server's JSON.

Servers differ in what they take. A `Dialect` says what one server takes; `adapted` gives, after a refused
request, the next dialect to try.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from medley.llm.messages import Message, Reply, Request, Sampling, as_json, estimated_tokens


@dataclass(frozen=True)
class Dialect:
    """What a server takes. OpenAI's reasoning models want `max_completion_tokens` and no temperature; many
    servers know no `response_format`.
    """

    max_tokens: bool = True
    json_schema: bool = True
    temperature: bool = True
    seed: bool = True

    def without(self, first: Dialect) -> list[str]:
        """The names of what `first` sends and this does not, in the API's words."""
        words = {"json_schema": "response_format"}
        lost = [f.name for f in fields(self) if getattr(first, f.name) and not getattr(self, f.name)]
        return [words.get(name, name) for name in lost]

    def and_without(self, other: Dialect) -> Dialect:
        """What both send: requests under way at once may each have found out something."""
        names = [f.name for f in fields(self)]
        return Dialect(**{name: getattr(self, name) and getattr(other, name) for name in names})


def request_body(model: str, request: Request, dialect: Dialect) -> bytes:
    """The JSON of one request."""
    messages, sampling = request.messages, request.sampling
    body: dict[str, Any] = {"model": model, "messages": as_json(messages)}
    if dialect.temperature:
        body["temperature"] = sampling.temperature
    body["max_tokens" if dialect.max_tokens else "max_completion_tokens"] = sampling.max_tokens
    if sampling.seed is not None and dialect.seed:
        body["seed"] = sampling.seed
    if sampling.json_schema and dialect.json_schema:
        schema = {"name": "reply", "schema": json.loads(sampling.json_schema), "strict": True}
        body["response_format"] = {"type": "json_schema", "json_schema": schema}
    # lone surrogates are legal in Python's text and in JSON's escapes, but not in UTF-8
    return json.dumps(body).encode()


def adapted(dialect: Dialect, sampling: Sampling, complaint: str) -> Dialect | None:
    """The dialect to try after a 400 or 422 with this error text; None where nothing is left to change."""
    if dialect.max_tokens and "max_completion_tokens" in complaint:
        return replace(dialect, max_tokens=False)
    if dialect.temperature and "'temperature'" in complaint:
        return replace(dialect, temperature=False)
    if dialect.seed and "'seed'" in complaint:
        return replace(dialect, seed=False)
    if dialect.json_schema and sampling.json_schema:
        return replace(dialect, json_schema=False)
    return None


def reply_of(body: bytes, messages: Sequence[Message]) -> Reply:
    """The reply in a completion's JSON. Raises ValueError for anything that is no chat completion.

    A server that does not count tokens is billed by estimate. A refusal in a field of its own counts as filtered.
    """
    try:
        answer = json.loads(body)
        choice = answer["choices"][0]
        message = choice["message"]
        text = message.get("content") or ""
        refused = not text and message.get("refusal")
        reason = "content_filter" if refused else choice.get("finish_reason") or "stop"
        usage = answer.get("usage") or {}
        asked = usage.get("prompt_tokens")
        written = usage.get("completion_tokens")
        return Reply(
            str(text),
            str(reason),
            sum(estimated_tokens(m.content) for m in messages) if asked is None else int(asked),
            estimated_tokens(text) if written is None else int(written),
        )
    except (KeyError, IndexError, TypeError, AttributeError) as problem:
        raise ValueError("no chat completion") from problem


def complaint_of(body: bytes) -> str:
    """The error text in a server's answer, in one line."""
    try:
        answer = json.loads(body)
        error = answer.get("error", answer.get("detail", answer)) if isinstance(answer, dict) else answer
        text = error.get("message", error) if isinstance(error, dict) else error
    except ValueError:
        text = body.decode("utf-8", "replace")
    return " ".join(str(text).split())
