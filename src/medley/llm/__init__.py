"""Chat completions: one method, with an OpenAI-compatible endpoint, a model in this process, a cache on disk and a
replay behind it.

From messages and sampling values to replies. `open_chat` gives what a stage should use: a model whose every reply
is on disk, keyed by model, messages and sampling, before anybody sees it; a run killed at any point pays for
nothing twice.
"""

from __future__ import annotations

from pathlib import Path

from medley.errors import EndpointError
from medley.llm.cache import Cached, Replay, ReplyFile
from medley.llm.endpoint import Endpoint
from medley.llm.ledger import Ledger, Tokens
from medley.llm.messages import (
    Ask,
    BudgetSpentError,
    ChatModel,
    Message,
    Reply,
    Request,
    Sampling,
    bare,
    estimated_tokens,
    request_key,
)
from medley.llm.settings import LlmSettings, Prices
from medley.llm.stream import complete, complete_many, complete_stream
from medley.llm.structured import Structured, complete_structured

__all__ = [
    "Ask",
    "BudgetSpentError",
    "Cached",
    "ChatModel",
    "Endpoint",
    "EndpointError",
    "Ledger",
    "LlmSettings",
    "Message",
    "Prices",
    "Replay",
    "Reply",
    "ReplyFile",
    "Request",
    "Sampling",
    "Structured",
    "Tokens",
    "bare",
    "complete",
    "complete_many",
    "complete_stream",
    "complete_structured",
    "estimated_tokens",
    "open_chat",
    "request_key",
]


def open_chat(settings: LlmSettings, cache: Path | None = None) -> ChatModel:
    """The model that the settings name, with its replies kept in the file `cache` (JSON Lines).

    Budgets cover what the replies in the file have cost, whoever asked for them. Raises ModelError where a local
    model cannot be loaded.
    """
    replies = None if cache is None else ReplyFile(cache)
    if settings.local is not None:
        from medley.llm.local import open_local

        model: ChatModel = open_local(settings)
    else:
        model = Endpoint(settings, Tokens() if replies is None else replies.spent)
    return model if replies is None else Cached(model, replies, settings.extra_body)
