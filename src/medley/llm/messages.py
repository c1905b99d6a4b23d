"""What is asked and what comes back: messages, decoding values, requests, replies, and who answers them.

No I/O. `request_key` is the identity of a request in every cache of replies.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from pydantic import JsonValue

from medley.errors import EndpointError
from medley.fingerprint import fingerprint

if TYPE_CHECKING:
    from medley.llm.ledger import Ledger

BYTES_A_TOKEN = 4
"""UTF-8 bytes of text in a token, about: English has four letters a token, other scripts fewer letters but more
bytes a letter."""
_THINKING = re.compile(r"[<\[◁](/?)(?:think|thinking|thought|reasoning|seed:think)[>\]▷]", re.IGNORECASE)
"""`<think>` and `</think>`, and their variations: `[THINK]` (Mistral), `◁think▷` (Kimi), `<seed:think>` (Seed)."""
_CHANNEL = re.compile(r"<\|channel\|>\s{0,9}(\w{1,40}).{0,200}?<\|message\|>", re.DOTALL)
_END_OF_MESSAGE = re.compile(r"<\|(?:end|return|call|start|channel)\|>")
"""A message in harmony's format is `<|channel|>final<|message|>...<|end|>`; other channels hold thinking and tools."""
_FENCED = re.compile(r"\s*```\w{0,20}[ \t]{0,9}\n?(.*?)\n?```\s*", re.DOTALL)


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
    request that the endpoint refused as such, or `budget` for one that was not sent, or `reasoning` where the model
    has thought and written nothing. `notes` are what was left out or guessed: `thinking`, `estimated` (tokens).
    """

    text: str
    finish_reason: str = "stop"
    prompt_tokens: int = 0
    completion_tokens: int = 0
    notes: tuple[str, ...] = field(default=(), compare=False)

    @property
    def problem(self) -> str:
        """Why there is no whole reply: rejected, over_budget, only_reasoning, refusal, truncated, empty; "" where there
        is one.
        """
        names = {
            "rejected": "rejected",
            "budget": "over_budget",
            "reasoning": "only_reasoning",
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


def request_key(
    model: str, messages: Sequence[Message], sampling: Sampling, extra: Mapping[str, JsonValue] | None = None
) -> str:
    """The identity of a request: fingerprint of model, messages, sampling and further fields, 16 hexadecimal digits."""
    decoding: dict[str, object] = {
        "seed": sampling.seed,
        "temperature": sampling.temperature,
        "max_tokens": sampling.max_tokens,
    }
    if sampling.json_schema:
        decoding["json_schema"] = sampling.json_schema
    if extra:
        decoding["extra_body"] = extra
    return fingerprint([model, as_json(messages), decoding])


def as_json(messages: Sequence[Message]) -> list[dict[str, str]]:
    """Messages as the chat API and the cache write them."""
    return [{"role": message.role, "content": message.content} for message in messages]


def estimated_tokens(text: str) -> int:
    """About how many tokens a text has, without a tokenizer (see BYTES_A_TOKEN)."""
    return -(-len(text.encode("utf-8", "surrogatepass")) // BYTES_A_TOKEN)


def without_thinking(text: str) -> str:
    """What a model says beside its thinking: without thinking blocks, and of harmony's channels only the final one;
    "" where thinking never ended.
    """
    channels = list(_CHANNEL.finditer(text))
    if channels:
        final = (head.end() for head in channels if head[1] == "final")
        ends = ((start, _END_OF_MESSAGE.search(text, start)) for start in final)
        return "".join(text[start : end.start() if end else None] for start, end in ends)
    said: list[str] = []
    start, opened = 0, None
    for tag in _THINKING.finditer(text):
        if not tag[1]:
            opened = tag.start() if opened is None else opened
            continue
        if opened is not None:
            said.append(text[start:opened])
        else:  # some templates put the opening tag into the prompt: all before was thinking
            said.clear()
        start, opened = tag.end(), None
    if opened is not None and not "".join([*said, text[start:opened]]).strip():
        return ""
    return "".join([*said, text[start:]]).lstrip() if start else text


def reply_from(
    text: str, finish_reason: str, tokens: tuple[int, int], *, thought: bool = False, estimated: bool = False
) -> Reply:
    """The reply in what a model wrote. Thinking is left out and noted, whether it stands in the text or came beside it
    (`thought`). `tokens` are the prompt's and the reply's, thinking included.
    """
    said = without_thinking(text)
    thought = thought or said != text
    if thought and not said.strip():
        finish_reason = "reasoning"
    notes = [name for name, noted in (("thinking", thought), ("estimated", estimated)) if noted]
    return Reply(said, finish_reason, *tokens, notes=tuple(notes))


def bare(text: str) -> str:
    """A reply without thinking and without a code fence round the whole; "" where thinking never ended."""
    text = without_thinking(text)
    fenced = _FENCED.fullmatch(text)
    return (fenced[1] if fenced else text).strip()
