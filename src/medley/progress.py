"""Progress of long work on standard error: a bar with an estimate on a terminal, an occasional line elsewhere.

Standard output stays free for results. What is printed goes through `printable`, since names, texts and the messages of
servers are written by others.
"""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

LINE_EVERY_S = 30.0
"""How often a log file (not a terminal) gets a line."""
_COMMANDS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""What a terminal or browser obeys instead of showing: control characters but tab and line feed (ANSI escapes begin
with one), and what overrides or embeds a direction of writing (Unicode annex 9); and lone surrogates, which cannot be
written."""


def printable(text: str) -> str:
    """A text that is shown as it is written: what a terminal or browser would obey is spelled out, as in `\\x1b`."""
    return _COMMANDS.sub(lambda found: ascii(found[0])[1:-1], text)


@contextmanager
def progress(label: str, total: int | None) -> Iterator[Callable[[int], None]]:
    """Show how much of `total` is done; the value given is called with the number of items just finished.

    Without a total (None), only how much is done.
    """
    label = printable(label)
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task(label, total=total)

            def advance_bar(count: int = 1) -> None:
                bar.advance(task, count)

            yield advance_bar
        return
    start = last = time.monotonic()
    done = 0

    def advance(count: int = 1) -> None:
        nonlocal done, last
        done += count
        now = time.monotonic()
        if now - last > LINE_EVERY_S and done > 0 and total is None:
            last = now
            print(f"{label}: {done} done", file=sys.stderr, flush=True)
        elif now - last > LINE_EVERY_S and total is not None and 0 < done < total:
            last = now
            left_s = (now - start) / done * (total - done)
            print(f"{label}: {done}/{total}, about {left_s:.0f} s left", file=sys.stderr, flush=True)

    yield advance


def say(message: str) -> None:
    """One line of news on standard error."""
    print(printable(message), file=sys.stderr, flush=True)
