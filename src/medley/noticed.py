"""What is noticed of texts while they are encoded: cut to the model's length, or given a vector of zeros.

Where a model runs, nobody knows for which step or collection; who does opens `noticing()`, and what is encoded inside
is counted there, by kind (queries, passages). A scope inside another counts for itself; what the outer one is to know
of it is handed on under a name with `count_as`, which counts once however often the same texts are encoded.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from medley.progress import say

if TYPE_CHECKING:
    import numpy as np

CUT, ZERO, LENGTH_UNKNOWN = 1, 2, 4
"""Flags of a text, as bits: it was longer than the model reads; its vector is zero; nobody saw its tokens."""


@dataclass(frozen=True)
class Count:
    """How many texts were seen, and of these cut, and of all encoded the ones with a vector of zeros."""

    texts: int
    cut: int
    zero: int = 0

    def as_json(self) -> dict[str, float]:
        """For results and manifests; `zero_vectors` only where there are any."""
        share = round(self.cut / self.texts, 4) if self.texts else 0.0
        found: dict[str, float] = {"texts": self.texts, "cut": self.cut, "share": share}
        return found | ({"zero_vectors": self.zero} if self.zero else {})


@dataclass
class Noticed:
    """What one scope has noticed."""

    max_tokens: set[int] = field(default_factory=set)
    _flags: dict[str, list[np.ndarray]] = field(default_factory=dict)
    _named: dict[str, Count] = field(default_factory=dict)

    def flags(self, kind: str) -> np.ndarray:
        """The flags (N,) uint8 of the texts of a kind, in the order in which they came."""
        import numpy as np

        return np.concatenate([np.zeros(0, np.uint8), *self._flags.get(kind, ())])

    def counts(self) -> dict[str, Count]:
        """By kind or name; kinds of which nothing is known are left out."""
        found = dict(self._named)
        for kind in self._flags:
            flags = self.flags(kind)
            known = flags[(flags & LENGTH_UNKNOWN) == 0]
            found[kind] = Count(len(known), int((known & CUT > 0).sum()), int((flags & ZERO > 0).sum()))
        return {kind: count for kind, count in found.items() if count.texts or count.zero}

    def as_json(self) -> dict[str, dict[str, float]]:
        """`counts` for results and manifests."""
        return {kind: count.as_json() for kind, count in self.counts().items()}

    def tell(self, label: str) -> None:
        """Say once what the user should know: what was cut, what has no vector, and what to do."""
        counts = self.counts()
        cut = [
            f"{count.cut:,} of {count.texts:,} {kind} ({100 * count.cut / count.texts:.3g} %)"
            for kind, count in counts.items()
            if count.cut
        ]
        start = f"{label}: " if label else ""
        if cut:
            length = f"{min(self.max_tokens)} tokens" if len(self.max_tokens) == 1 else "the model's length"
            say(f"{start}cut to {length}, so that the rest is not read: {', '.join(cut)}; raise max_length, or split "
                "long documents.")  # fmt: skip
        zero = sum(count.zero for count in counts.values())
        if zero:
            say(
                f"{start}{zero:,} texts have a vector of zeros, which is like no other; look for empty texts."
            )


_SCOPE: ContextVar[Noticed | None] = ContextVar("noticed", default=None)


@contextmanager
def noticing() -> Iterator[Noticed]:
    """Count what is encoded inside."""
    noticed = Noticed()
    before = _SCOPE.set(noticed)
    try:
        yield noticed
    finally:
        _SCOPE.reset(before)


@contextmanager
def telling() -> Iterator[None]:
    """Count what is encoded inside, and tell it at the end; also a decorator, for what a user calls."""
    with noticing() as noticed:
        yield
    if os.environ.get("RANK", "0") == "0":  # of a launcher's processes one speaks for all
        noticed.tell("")


def notice(kind: str, flags: np.ndarray, *, max_tokens: int | None) -> None:
    """Count texts of a kind by their flags (N,), where a scope is open; `max_tokens` is what the model reads."""
    scope = _SCOPE.get()
    if scope is not None:
        scope._flags.setdefault(kind, []).append(flags)
        _limit(scope, max_tokens)


def count_as(name: str, count: Count, *, max_tokens: int | None = None) -> None:
    """Let the open scope know of texts under a name; a second time under the same name takes the first's place."""
    scope = _SCOPE.get()
    if scope is not None:
        scope._named[name] = count
        _limit(scope, max_tokens)


def _limit(scope: Noticed, max_tokens: int | None) -> None:
    if max_tokens is not None:
        scope.max_tokens.add(max_tokens)


def hand_on(noticed: Noticed, of: str) -> None:
    """Let the open scope know what an inner one noticed, each kind named with whose texts they are."""
    scope = _SCOPE.get()
    if scope is not None:
        scope._named |= {f"{kind} of {of}": count for kind, count in noticed.counts().items()}
        scope.max_tokens |= noticed.max_tokens
