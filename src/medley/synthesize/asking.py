"""Asking a language model row by row: rows in, rows with their replies out, memory independent of their number.

Rows are read as requests are sent; at most those under way, and the replies that wait for a slower one, are in memory.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from typing import TypeVar

from medley.errors import EndpointError
from medley.llm import ChatModel, Reply, Request, complete_stream
from medley.progress import say

Row = TypeVar("Row")
ENOUGH = 100
"""So many replies tell whether a model is fit for the work: a share of bad ones above the limit ends it here."""

ADVICE = {
    "truncated": "raise max_tokens, or try another model",
    "only_reasoning": "the model only thinks: switch that off (llm.extra_body or --llm-extra, such as "
    "enable_thinking=false), or raise max_tokens",
    "rejected": "the server refuses the requests as they are, for the reason above",
}
"""How to mend what is wrong with most replies."""


def ask_each(
    chat: ChatModel,
    asked: Iterable[tuple[Row, Sequence[Request]]],
    *,
    concurrency: int,
    label: str,
    total: int | None = None,
) -> Iterator[tuple[Row, list[Reply]]]:
    """Send every row's requests, and give each row back with its replies, in order.

    `asked` is read from other threads, as there is room. A row without requests comes back without replies.
    """
    waiting: deque[tuple[Row, int]] = deque()

    def requests() -> Iterator[Request]:
        for row, own in asked:
            waiting.append((row, len(own)))
            yield from own

    replies: list[Reply] = []
    for reply in complete_stream(chat, requests(), concurrency=concurrency, label=label, total=total):
        while not waiting[0][1]:
            yield waiting.popleft()[0], []
        replies.append(reply)
        if len(replies) == waiting[0][1]:
            yield waiting.popleft()[0], replies
            replies = []
    yield from ((row, []) for row, _ in waiting)


class Usefulness:
    """How many replies were of use; raises EndpointError where more than a share of them, `max_bad`, were not.

    Replies that the budget did not cover (`over_budget`) are no fault of the model's and are left out of the share.
    """

    def __init__(self, max_bad: float) -> None:
        self._max_bad = max_bad
        self._outcomes: Counter[str] = Counter()

    def count(self, outcome: str) -> str:
        """Count one reply, `made` or what is wrong with it; gives the same name back."""
        self._outcomes[outcome] += 1
        if self._received >= ENOUGH:
            self._check()
        return outcome

    def finish(self) -> None:
        """Check the whole; say so where the budget ended the work. Raises EndpointError where it covered nothing."""
        self._check()
        unsent = self._outcomes["over_budget"]
        if unsent and not self._received:
            raise EndpointError("the budget does not cover a single request; raise it.")
        if unsent:
            say(
                f"the budget is spent: {unsent} of {self._outcomes.total()} requests were not sent; raise it to go on."
            )

    @property
    def _received(self) -> int:
        return self._outcomes.total() - self._outcomes["over_budget"]

    def _check(self) -> None:
        received = self._received
        bad = received - self._outcomes["made"]
        if bad <= self._max_bad * received:
            return
        reasons = {name: n for name, n in self._outcomes.items() if name not in ("made", "over_budget") and n}
        listed = ", ".join(f"{n} {name}" for name, n in sorted(reasons.items(), key=lambda item: -item[1]))
        raise EndpointError(
            f"{bad} of {received} replies are unusable ({listed}), more than {self._max_bad:.0%}; "
            f"{ADVICE.get(max(reasons, key=reasons.__getitem__), 'try another model or prompt')}."
        )
