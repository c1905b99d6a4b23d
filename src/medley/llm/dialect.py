"""The words of the chat completions API: a request's JSON, a reply out of the server's JSON.

Servers differ in what they take. A `Dialect` says what one server takes; `adapted` gives, after a refused
request, the next dialect to try.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from pydantic import JsonValue

from medley.llm.answer import Answer
from medley.llm.messages import Message, Reply, Request, Sampling, as_json, estimated_tokens, reply_from

TEXT_PARTS = ("text", "output_text", None)
"""Types of a content part that is text; a bare string has none."""
THINKING_PARTS = ("thinking", "reasoning", "redacted_thinking")
MOST_TOKENS = 10_000_000
"""No prompt or reply has more tokens; a server that counts more is not believed."""


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


def request_body(model: str, request: Request, dialect: Dialect, extra: Mapping[str, JsonValue]) -> bytes:
    """The JSON of one request; `extra` are fields of the user's own."""
    messages, sampling = request.messages, request.sampling
    body: dict[str, Any] = {"model": model, "messages": as_json(messages), **extra}
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


def adapted(dialect: Dialect, sampling: Sampling, answer: Answer) -> Dialect | None:
    """The dialect to try after a 400 or 422; None where nothing is left to change.

    Servers name a parameter in quotes of any kind, in lists of locations or plainly, so it is looked for as a word in
    all that they say. A word that was meant otherwise costs one attempt: a dialect that does not help is forgotten.
    """
    said = re.sub(
        r"\\(u[0-9a-fA-F]{4}|.)", " ", answer.body.decode("utf-8", "replace")
    )  # JSON's escapes are no letters

    def named(parameter: str) -> bool:
        return re.search(rf"(?<!\w){parameter}(?!\w)", said) is not None

    if dialect.max_tokens and named("max_completion_tokens"):
        return replace(dialect, max_tokens=False)
    if dialect.temperature and named("temperature"):
        return replace(dialect, temperature=False)
    if dialect.seed and named("seed"):
        return replace(dialect, seed=False)
    if dialect.json_schema and sampling.json_schema:
        return replace(dialect, json_schema=False)
    return None


def reply_of(answer: Answer, messages: Sequence[Message]) -> Reply:
    """The reply in a completion's JSON. Raises ValueError, saying what is wrong, for anything that is no text.

    Tokens that a server does not count, or counts as no server can, are billed by estimate. A refusal in a field of
    its own counts as filtered, an empty list of choices as a rejected request.
    """
    body = answer.json()
    choices = body.get("choices") if isinstance(body, dict) else None
    if not isinstance(body, dict) or not isinstance(choices, list):
        raise ValueError("it has no choices")
    choice = choices[0] if choices else {"message": {}, "finish_reason": "rejected"}
    message = choice.get("message") if isinstance(choice, dict) else None
    if not isinstance(message, dict):
        raise ValueError("it has no message")
    text, thought = _text_of(message.get("content"))
    thought = thought or any(message.get(name) for name in ("reasoning_content", "reasoning", "thinking"))
    reason = choice.get("finish_reason") or "stop"
    if not isinstance(reason, str):
        raise ValueError(f"its finish_reason is {_kind(reason)}, not text")
    usage = body.get("usage")
    counts = usage if isinstance(usage, dict) else {}
    asked = _count(counts.get("prompt_tokens"), least=1)
    written = _count(counts.get("completion_tokens"), least=bool(text))
    tokens = (
        sum(estimated_tokens(m.content) for m in messages) if asked is None else asked,
        estimated_tokens(text) if written is None else written,
    )
    if not text and message.get("refusal"):
        return Reply("", "content_filter", *tokens)
    return reply_from(text, reason, tokens, thought=thought, estimated=asked is None or written is None)


def _text_of(content: object) -> tuple[str, bool]:
    """The text of a message's content, and whether parts of it were thinking. Raises ValueError for what is no text."""
    if content is None or isinstance(content, str):
        return content or "", False
    if not isinstance(content, list):
        raise ValueError(f"its content is {_kind(content)}, not text")
    texts, thought = [], False
    for part in content:
        kind = part.get("type") if isinstance(part, dict) else None
        said = part.get("text") if isinstance(part, dict) else part
        if kind in THINKING_PARTS:
            thought = True
        elif isinstance(said, str) and kind in TEXT_PARTS:
            texts.append(said)
        else:
            raise ValueError(
                f"a part of its content is {kind if isinstance(kind, str) else _kind(part)}, not text"
            )
    return "".join(texts), thought


def _kind(value: object) -> str:
    """A JSON value's type, with an article."""
    kinds = {
        bool: "true or false",
        int: "a number",
        float: "a number",
        str: "text",
        list: "a list",
        dict: "an object",
    }
    return kinds.get(type(value), "null")


def _count(value: object, *, least: int) -> int | None:
    """A number of tokens; None for what cannot be one, since budgets and ledgers add it up."""
    if isinstance(value, float) and value.is_integer():  # some servers know no other numbers
        value = int(value)
    sound = isinstance(value, int) and not isinstance(value, bool) and least <= value <= MOST_TOKENS
    return value if sound and isinstance(value, int) else None


def complaint_of(answer: Answer) -> str:
    """The error text in a server's answer, in one line."""
    try:
        said = " ".join(_messages(answer.json()))
    except ValueError:
        said = ""
    return " ".join((said or answer.body[:2000].decode("utf-8", "replace")).split())


def _messages(value: object, depth: int = 8) -> Iterator[str]:
    """The messages in an error's JSON, however it wraps them; a location, as FastAPI gives it, before its message."""
    if not depth:
        return
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for item in value:
            yield from _messages(item, depth - 1)
    elif isinstance(value, dict):
        place = value.get("loc")
        if isinstance(place, list):
            yield ".".join(map(str, place)) + ":"
        for name in ("error", "errors", "detail", "message", "msg"):
            yield from _messages(value.get(name), depth - 1)
