"""Calls of the chat client on the test suite's own server, short enough to read in a test."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llm_server import ChatServer
from medley.llm import (
    ChatModel,
    LlmSettings,
    Message,
    Request,
    Sampling,
    open_chat,
)

ASK = (Message("user", "hello"),)


def chat_with(server: ChatServer, cache: Path | None = None, **values: Any) -> ChatModel:
    """The client for a server, quick to try again."""
    values = {"base_url": server.url, "model": "m", "backoff_s": 0.01} | values
    return open_chat(LlmSettings(**values), cache)


def numbered(count: int, **sampling: Any) -> list[Request]:
    """Requests that say 0, 1, 2, ..."""
    return [Request((Message("user", str(i)),), Sampling(**sampling)) for i in range(count)]


def echo(number: int, body: dict[str, Any]) -> str:
    """A script for the server: it says what it heard."""
    return "reply to " + body["messages"][0]["content"]
