"""How a process ends when it is not left to finish: interrupted, terminated, or with nobody to read what it prints.

Exit codes are the shells': 128 and the signal's number, so 130 after Ctrl-C, 143 after SIGTERM, 141 for a closed
pipe. Whatever ends it, `finally` blocks run and take away what is half-written.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import TextIO

from medley.files import explained_write_errors
from medley.progress import say

INTERRUPTED = 128 + signal.SIGINT
TERMINATED = 128 + signal.SIGTERM
CLOSED_PIPE = 128 + signal.SIGPIPE


@contextlib.contextmanager
def tidy_ending() -> Iterator[None]:
    """Within, SIGTERM ends the process as Ctrl-C does, and a closed standard output quietly. Raises SystemExit.

    Raises OutputError where what is printed goes to a disk that is full.
    """
    _open_closed_streams()
    printed_to = sys.stdout
    before = None
    if threading.current_thread() is threading.main_thread():
        before = signal.signal(signal.SIGTERM, _terminate)
    try:
        yield
        sys.stdout.flush()
    except SystemExit as stop:
        if stop.code == TERMINATED:
            say("medley: terminated; run the same command again to continue.")
        if sys.stdout is printed_to:
            raise
        sys.stdout = printed_to  # click has put another one there and exits with 1: its sign of a closed pipe
        _forget(printed_to)
        sys.exit(CLOSED_PIPE)
    except BrokenPipeError:
        _forget(printed_to)
        sys.exit(CLOSED_PIPE)
    except OSError as problem:
        if problem.errno in (errno.ENOSPC, errno.EDQUOT):
            _forget(printed_to)
            with explained_write_errors(Path(problem.filename or "standard output or the temporary folder")):
                raise
        raise
    finally:
        if before is not None:
            signal.signal(signal.SIGTERM, before)


def _terminate(_number: int, _frame: FrameType | None) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a second one must not cut the clearing up short
    sys.exit(TERMINATED)


def _open_closed_streams() -> None:
    """Python has None for a stream that the caller closed, and the next file opened would get its number."""
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "r" if name == "stdin" else "w"))  # noqa: SIM115, PTH123


def _forget(stream: TextIO) -> None:
    """Send what is still buffered nowhere: Python would try to print it once more at exit."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
