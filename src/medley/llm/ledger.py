"""What a language model was asked and what that cost: the ledger, the books it is taken from, and the budget.

The budget reserves before a request is sent what the request can cost at most and settles afterwards, so that it
is never exceeded, whatever number of requests are under way.
"""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from medley.llm.messages import BudgetSpentError, Reply
from medley.llm.settings import Prices

WAIT_S = 0.01
"""How often a request that the budget may yet cover looks again."""


@dataclass(frozen=True)
class Ledger:
    """Counts of one process's work: `calls` were answered and paid for, `from_cache` cost nothing.

    `retries` are attempts after a failed one; `failures` counts failed attempts by name (limited, server_error,
    timeout, broken, unreachable, invalid_answer, rejected). `noted` counts replies by what was left out or guessed:
    `thinking` is no part of a reply's text, `estimated` tokens were not counted by the server, or not credibly. What an
    endpoint charges for an attempt whose answer was lost is not known and not in here. `usd` is None without prices.
    """

    calls: int = 0
    from_cache: int = 0
    retries: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    usd: float | None = None
    failures: Mapping[str, int] = field(default_factory=dict)
    noted: Mapping[str, int] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """For manifests."""
        return asdict(self) | {"usd": self.usd and round(self.usd, 6)}

    def sentence(self) -> str:
        """For people: one line."""
        tokens = f"{self.prompt_tokens} + {self.completion_tokens} tokens"
        money = "" if self.usd is None else f", {self.usd:.4f} USD"
        failed = ", ".join(f"{count} {name}" for name, count in sorted(self.failures.items()))
        trouble = f"; {self.retries} retries ({failed})" if failed else ""
        words = {"thinking": "thinking left out of {} replies", "estimated": "tokens of {} replies estimated"}
        notes = "".join("; " + words[name].format(count) for name, count in sorted(self.noted.items()))
        return (
            f"{self.calls} calls ({tokens}{money}), {self.from_cache} replies from the cache{trouble}{notes}"
        )


class Books:
    """Counts kept by a chat model while it is used."""

    def __init__(self, prices: Prices | None) -> None:
        self._prices = prices
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()
        self._failures: Counter[str] = Counter()
        self._noted: Counter[str] = Counter()

    def paid(self, reply: Reply) -> None:
        """A reply came."""
        with self._lock:
            self._counts["calls"] += 1
            self._counts["prompt_tokens"] += reply.prompt_tokens
            self._counts["completion_tokens"] += reply.completion_tokens
            self._noted.update(reply.notes)

    def failed(self, name: str) -> None:
        """An attempt gave no reply."""
        with self._lock:
            self._failures[name] += 1

    def retried(self) -> None:
        """A request is sent again."""
        with self._lock:
            self._counts["retries"] += 1

    @property
    def ledger(self) -> Ledger:
        """The state now."""
        with self._lock:
            ledger = Ledger(**self._counts, failures=dict(self._failures), noted=dict(self._noted))
        if self._prices is None:
            return ledger
        return replace(ledger, usd=self._prices.usd(ledger.prompt_tokens, ledger.completion_tokens))


@dataclass(frozen=True)
class Tokens:
    """An amount of tokens."""

    prompt: int = 0
    completion: int = 0

    def __add__(self, other: Tokens) -> Tokens:
        return Tokens(self.prompt + other.prompt, self.completion + other.completion)

    def __sub__(self, other: Tokens) -> Tokens:
        return Tokens(self.prompt - other.prompt, self.completion - other.completion)


NOTHING = Tokens()


class Budget:
    """Tokens and money that may be spent; `earlier` is what was spent on the same work before."""

    def __init__(
        self, tokens: int | None, usd: float | None, prices: Prices | None, earlier: Tokens = NOTHING
    ) -> None:
        self._tokens, self._usd, self._prices = tokens, usd, prices
        self._spent, self._reserved = earlier, Tokens()
        self._closed = False
        self._lock = threading.Lock()

    @property
    def spent(self) -> Tokens:
        """Tokens of all replies, earlier work included."""
        return self._spent

    @asynccontextmanager
    async def reserved(self, most: Tokens) -> AsyncIterator[Callable[[Tokens], None]]:
        """Set `most` aside while a request is under way; call the value given with what the reply really took.

        Waits where other requests under way may turn out cheaper than what was set aside for them. Raises
        BudgetSpentError when the request does not fit even then, and from then on at once.
        """
        while not self._reserve(most):
            await asyncio.sleep(WAIT_S)
        used = Tokens()

        def settle(taken: Tokens) -> None:
            nonlocal used
            used = taken

        try:
            yield settle
        finally:
            with self._lock:
                self._reserved -= most
                self._spent += used

    def _reserve(self, most: Tokens) -> bool:
        with self._lock:
            self._closed = self._closed or not self._fits(self._spent + most)
            if self._closed:
                raise BudgetSpentError(self._message(most))
            if not self._fits(self._spent + self._reserved + most):
                return False
            self._reserved += most
            return True

    def _fits(self, amount: Tokens) -> bool:
        if self._tokens is not None and amount.prompt + amount.completion > self._tokens:
            return False
        return self._usd is None or self._price(amount) <= self._usd

    def _price(self, amount: Tokens) -> float:
        return self._prices.usd(amount.prompt, amount.completion) if self._prices else 0.0

    def _message(self, most: Tokens) -> str:
        spent, asked = self._spent.prompt + self._spent.completion, most.prompt + most.completion
        limits = []
        if self._tokens is not None:
            limits.append(f"{spent} of {self._tokens} tokens")
        if self._usd is not None:
            limits.append(f"{self._price(self._spent):.4f} of {self._usd:g} USD")
        return (
            f"the budget is spent ({' and '.join(limits)}; the next request may take {asked} tokens); raise "
            "budget_tokens or budget_usd and run again: replies that were paid for are kept."
        )
