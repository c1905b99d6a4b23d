"""An OpenAI-compatible server as a chat model: what may pass is tried again, what will not is explained.

From requests to replies, any number of them at once. The key comes from the environment variable that
the settings name and goes into a request's header and nowhere else.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

from medley.errors import EndpointError
from medley.llm.addresses import key_in, tell_plain, without
from medley.llm.answer import LostError
from medley.llm.dialect import Dialect, adapted, complaint_of, reply_of, request_body
from medley.llm.ledger import NOTHING, Books, Budget, Ledger, Tokens
from medley.llm.messages import Ask, Reply, Request
from medley.llm.settings import LlmSettings
from medley.llm.trouble import Trouble, invalid_answer, trouble_of_loss, trouble_of_status
from medley.progress import say

if TYPE_CHECKING:
    from medley.llm.transport import Transport

LONGEST_BACKOFF_S = 30.0
SHORTEST_SECRET = 8
"""A shorter key is a word such as `EMPTY`, which servers without a key are given and replies may well hold."""


class Endpoint:
    """The server that the settings name. `earlier` is what the same work has cost before, for the budget."""

    def __init__(self, settings: LlmSettings, earlier: Tokens = NOTHING) -> None:
        if settings.base_url is None or settings.model is None:
            raise EndpointError("the settings name no endpoint; give base_url and model.")
        self.settings = settings
        self.name = settings.model
        self.base_url = settings.base_url
        self.where = self.address = settings.base_url.partition("?")[0]
        self._key = key_in(settings.api_key_env)
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        self._headers = headers
        self._books = Books(settings.prices)
        self._budget = Budget(settings.budget_tokens, settings.budget_usd, settings.prices, earlier)
        self._dialect = Dialect()
        self._answered = 0
        self._not_before = 0.0
        self._complained = False

    @property
    def ledger(self) -> Ledger:
        """What was asked and paid so far."""
        return self._books.ledger

    @asynccontextmanager
    async def session(self) -> AsyncIterator[Ask]:
        """Open connections; asking raises BudgetSpentError for a request that was not sent."""
        from medley.llm.transport import Transport

        tell_plain(self.base_url, with_key=bool(self._key))
        try:
            transport = Transport(self.base_url, self.settings.timeout_s, self._headers)
        except LostError as problem:
            raise EndpointError(trouble_of_loss(problem, self.settings, self.where).sentence) from problem
        self.where = self.address + transport.via

        async def ask(request: Request) -> Reply:
            texts = (message.content.encode("utf-8", "surrogatepass") for message in request.messages)
            most = Tokens(sum(len(text) // 2 + 8 for text in texts), request.sampling.max_tokens)
            async with self._budget.reserved(most) as settle:
                reply = await self._ask_patiently(transport, request)
                settle(Tokens(reply.prompt_tokens, reply.completion_tokens))
            return reply

        async with transport:
            yield ask

    async def _ask_patiently(self, transport: Transport, request: Request) -> Reply:
        attempt = fruitless = 0
        answered_before = self._answered
        while True:
            await self._turn()
            outcome = await self._ask(transport, request)
            if isinstance(outcome, Reply):
                return outcome
            self._books.failed(outcome.name)
            if outcome.name == "limited" and self._answered > answered_before:
                fruitless = 0  # others get through: the limit is on the rate, and this one's turn will come
            answered_before = self._answered
            if not outcome.passing or fruitless >= self._retries(outcome):
                raise EndpointError(outcome.sentence)
            pause_s = max(outcome.wait_s, self._backoff_s(attempt))
            if outcome.wait_s:
                self._not_before = max(self._not_before, time.monotonic() + outcome.wait_s)
            await asyncio.sleep(pause_s)
            self._books.retried()
            attempt, fruitless = attempt + 1, fruitless + 1

    async def _ask(self, transport: Transport, request: Request) -> Reply | Trouble:
        """One attempt, in the first dialect that the server takes."""
        dialect: Dialect | None = self._dialect
        while dialect is not None:
            try:
                body = request_body(self.name, request, dialect, self.settings.extra_body)
                answer = await transport.post("/chat/completions", body)
            except LostError as problem:
                return trouble_of_loss(problem, self.settings, self.where)
            if answer.status == 200:
                try:
                    reply = reply_of(answer, request.messages)
                except ValueError as problem:
                    return invalid_answer(answer, problem, self.where)
                if len(self._key) >= SHORTEST_SECRET and self._key in reply.text:  # it would be kept for good
                    say(f"{self.where}: a reply repeats the key; it is kept without.")
                    reply = replace(reply, text=reply.text.replace(self._key, "***"))
                self._remember(dialect)
                self._books.paid(reply)
                self._answered += 1
                if reply.finish_reason == "rejected":
                    self._rejected("the answer holds no reply (`choices` is empty)")
                return reply
            if answer.status not in (400, 413, 422):
                return trouble_of_status(answer, self.settings, self.where, key_is_set=bool(self._key))
            dialect = adapted(dialect, request.sampling, answer)
        self._rejected(
            f"a request was refused as such ({answer.status}): {complaint_of(answer)[:300]} (give fields that it wants "
            "besides as llm.extra_body or --llm-extra)"
        )
        return Reply("", "rejected")

    def _remember(self, dialect: Dialect) -> None:
        """Ask in this dialect from now on; say once what the server does not take."""
        lost = dialect.without(self._dialect)
        self._dialect = self._dialect.and_without(dialect)
        if lost:
            say(f"{self.where}: the server takes no {' and no '.join(lost)}; asking without.")

    def _rejected(self, reason: str) -> None:
        """Count a request without a reply, and tell the user once why."""
        self._books.failed("rejected")
        if not self._complained:
            self._complained = True
            say(f"{self.where}: {without(self._key, reason)}")

    def _retries(self, trouble: Trouble) -> int:
        """A server that has never answered and cannot be reached is told of at once."""
        never_there = trouble.name == "unreachable" and not self._answered
        return min(1, self.settings.retries) if never_there else self.settings.retries

    def _backoff_s(self, attempt: int) -> float:
        """Doubled each time, with jitter so that requests do not return together."""
        longest = min(LONGEST_BACKOFF_S, self.settings.backoff_s * 2 ** min(attempt, 16))
        return longest * (0.5 + random.random() / 2)

    async def _turn(self) -> None:
        """A Retry-After holds every request back, not only the one that was told."""
        left_s = self._not_before - time.monotonic()
        if left_s > 0:
            await asyncio.sleep(left_s)
