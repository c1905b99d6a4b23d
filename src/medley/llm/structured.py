"""Replies as checked values: ask for JSON that fits a pydantic model, get instances of it or the reason why not.

The format is said in words in each request, and besides by `response_format` where the endpoint takes it
(dialect.py finds out). What comes back is validated in either case: a server may ignore what it was told.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

from pydantic import BaseModel, ValidationError

from medley.llm.messages import ChatModel, Message, Reply, Request, bare
from medley.llm.stream import complete_stream

Value = TypeVar("Value", bound=BaseModel)
WORDS = "\n\nReply with one JSON object and nothing else. It must fit this JSON schema:\n{schema}"


@dataclass(frozen=True)
class Structured(Generic[Value]):
    """A checked value, or None and what is wrong: `invalid`, or one of Reply.problem's names."""

    value: Value | None
    problem: str
    reply: Reply


def complete_structured(
    model: ChatModel,
    requests: Iterable[Request],
    kind: type[Value],
    *,
    concurrency: int = 8,
    label: str = "ask the language model",
    total: int | None = None,
) -> Iterator[Structured[Value]]:
    """Ask for values of `kind`, in the order of the requests; see complete_stream for how requests are read.

    A caller counts problems with `Counter(result.problem for result in ...)`; "" is a good one.
    """
    schema = schema_of(kind)
    asked = (with_schema(request, schema) for request in requests)
    for reply in complete_stream(model, asked, concurrency=concurrency, label=label, total=total):
        yield parsed(reply, kind)


def schema_of(kind: type[BaseModel]) -> str:
    """The JSON schema of a pydantic model as OpenAI's strict mode wants it: all keys required, no others."""
    return json.dumps(_strict(kind.model_json_schema()), ensure_ascii=False, separators=(",", ":"))


def _strict(node: Any) -> Any:
    if isinstance(node, list):
        return [_strict(item) for item in node]
    if not isinstance(node, dict):
        return node
    dropped = ("title", "default")  # a property of that name holds a schema, not a text
    kept = {key: _strict(item) for key, item in node.items() if key not in dropped or isinstance(item, dict)}
    if "properties" in kept:
        kept |= {"required": list(kept["properties"]), "additionalProperties": False}
    return kept


def with_schema(request: Request, schema: str) -> Request:
    """The request with the schema in its last message and in its sampling."""
    *before, last = request.messages
    told = Message(last.role, last.content + WORDS.replace("{schema}", schema))
    return Request((*before, told), replace(request.sampling, json_schema=schema))


def parsed(reply: Reply, kind: type[Value]) -> Structured[Value]:
    """The value in a reply: its first JSON object, checked by `kind`."""
    if reply.problem:
        return Structured(None, reply.problem, reply)
    text = bare(reply.text)
    start = text.find("{")
    try:
        found, _ = json.JSONDecoder().raw_decode(text, max(0, start))
        return Structured(kind.model_validate(found), "", reply)
    except (ValueError, ValidationError, RecursionError):
        return Structured(None, "invalid", reply)
