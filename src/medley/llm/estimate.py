"""What a stage would ask, without asking: a chat model that sends nothing and keeps the sizes of the prompts."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from medley.llm.ledger import Ledger
from medley.llm.messages import Ask, Reply, Request, estimated_tokens


class Estimator:
    """Every request comes back as if no budget covered it; `prompt_tokens` has its estimated size, by request."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.prompt_tokens: list[int] = []

    @property
    def ledger(self) -> Ledger:
        """Nothing was asked."""
        return Ledger()

    @asynccontextmanager
    async def session(self) -> AsyncIterator[Ask]:
        """Take requests."""

        async def keep(request: Request) -> Reply:
            self.prompt_tokens.append(sum(estimated_tokens(message.content) for message in request.messages))
            return Reply("", "budget")

        yield keep
