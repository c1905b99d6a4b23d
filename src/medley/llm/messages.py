"""What is asked and what comes back: messages, decoding values, requests, replies, and who answers them.

No I/O. `request_key` is the identity of a request in every cache of replies.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from medley.errors import EndpointError
from medley.fingerprint import fingerprint

if TYPE_CHECKING:
    from medley.llm.ledger import Ledger

BYTES_A_TOKEN = 4
"""UTF-8 bytes of text in a token, about: English has four letters a token, other scripts fewer letters but more
bytes a letter."""
_THINKING = re.compile(r"<(think|thinking|reasoning)>.*?</\1>\s*", re.DOTALL | re.IGNORECASE)
_OPEN_THINKING = re.compile(r"\s*<(think|thinking|reasoning)>", re.IGNORECASE)
_FENCED = re.compile(r"\s*```\w*\s*\n?(.*?)\n?```\s*", re.DOTALL)


@dataclass(frozen=True)
class Message:
    """One turn of a conversation; `role` is system, user or assistant."""

    role: str
    content: str


@dataclass(frozen=True)
class Sampling:
    """How a reply is decoded. `json_schema` is a JSON schema, as text, that the reply must fit; "" for none."""

    seed: int | None = None
    temperature: float = 0.7
    max_tokens: int = 700
    json_schema: str = ""


@dataclass(frozen=True)
class Request:
    """One completion to ask for."""

    messages: tuple[Message, ...]
    sampling: Sampling = Sampling()


@dataclass(frozen=True)
class Reply:
    """What came back. `finish_reason` is the endpoint's (stop, length, content_filter), or `rejected` for a
    request that the endpoint refused as such, or `budget` for one that was not sent.
    """

    text: str
    finish_reason: str = "stop"
    prompt_tokens: int = 0
    completion_tokens: int = 0

    @property
    def problem(self) -> str:
        """Why there is no whole reply: rejected, over_budget, refusal, truncated, empty; "" where there is one."""
        names = {
            "rejected": "rejected",
            "budget": "over_budget",
            "content_filter": "refusal",
            "length": "truncated",
        }
        return names.get(self.finish_reason, "" if re.search(r"\w", self.text) else "empty")


Ask = Callable[[Request], Awaitable[Reply]]
"""One request in, one reply out. Raises EndpointError when there is no way to get a reply."""


class ChatModel(Protocol):
    """Whatever completes conversations. `complete_stream` opens a session for its time and asks in it, many
    requests at once on one event loop; what a session needs (connections, a batch in the making) ends with it.
    """

    @property
    def name(self) -> str:
        """The model's name, for cache keys and provenance."""

    @property
    def ledger(self) -> Ledger:
        """What it has been asked so far and what that cost."""

    def session(self) -> AbstractAsyncContextManager[Ask]:
        """Open it for questions."""


class BudgetSpentError(EndpointError):
    """The next request could exceed the budget of tokens or money."""


def request_key(model: str, messages: Sequence[Message], sampling: Sampling) -> str:
    """The identity of a request: fingerprint of model, messages and sampling, 16 hexadecimal digits."""
    decoding: dict[str, object] = {
        "seed": sampling.seed,
        "temperature": sampling.temperature,
        "max_tokens": sampling.max_tokens,
    }
    if sampling.json_schema:
        decoding["json_schema"] = sampling.json_schema
    return fingerprint([model, as_json(messages), decoding])


def as_json(messages: Sequence[Message]) -> list[dict[str, str]]:
    """Messages as the chat API and the cache write them."""
    return [{"role": message.role, "content": message.content} for message in messages]


def estimated_tokens(text: str) -> int:
    """About how many tokens a text has, without a tokenizer (see BYTES_A_TOKEN)."""
    return -(-len(text.encode("utf-8", "surrogatepass")) // BYTES_A_TOKEN)


def bare(text: str) -> str:
    """A reply without thinking blocks and without a code fence round the whole; "" where thinking never ended."""
    text = _THINKING.sub("", text)
    if "</think>" in text:  # some templates put the opening tag into the prompt
        text = text.rpartition("</think>")[2]
    if _OPEN_THINKING.match(text):
        return ""
    fenced = _FENCED.fullmatch(text)
    return (fenced[1] if fenced else text).strip()
