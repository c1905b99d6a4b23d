"""A chat model whose replies a test writes: no server and no clock."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from medley.llm import Ledger, LlmSettings, Reply, Request, Sampling
from medley.llm.messages import Ask

LLM = LlmSettings(base_url="http://127.0.0.1:9/v1", model="m", concurrency=4)
"""How the scripted model is asked; nothing is ever sent to the address."""


class Scripted:
    """Replies with what `script(prompt, sampling)` gives; keeps the prompts in the order of the calls."""

    name = "m"
    ledger = Ledger()

    def __init__(self, script: Callable[[str, Sampling], str | Reply]) -> None:
        self.script = script
        self.prompts: list[str] = []

    @asynccontextmanager
    async def session(self) -> AsyncIterator[Ask]:
        async def ask(request: Request) -> Reply:
            await asyncio.sleep(0)
            prompt = request.messages[-1].content
            self.prompts.append(prompt)
            said = self.script(prompt, request.sampling)
            return said if isinstance(said, Reply) else Reply(said, "stop", 10, 5)

        yield ask
