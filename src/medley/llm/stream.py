"""Many requests at once: replies in the order of the requests, memory independent of their number.

Chat models are coroutines on an event loop in a thread of its own; this is the one place where code that calls
meets code that awaits. Requests under way go on while the caller works with the replies it has.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterable, Iterator, Sequence

from medley.llm.messages import Ask, BudgetSpentError, ChatModel, Message, Reply, Request, Sampling
from medley.progress import progress

AHEAD = 8
"""Replies that may wait for a slower one before them, for each request under way."""
DRAIN_S = 5.0
"""After an error or an early end, requests under way get so long to come back and be recorded."""


def complete(model: ChatModel, messages: Sequence[Message], *, sampling: Sampling) -> Reply:
    """Complete one conversation. Raises EndpointError when there is no way to get a reply."""
    return complete_many(model, [Request(tuple(messages), sampling)])[0]


def complete_many(
    model: ChatModel,
    requests: Sequence[Request],
    *,
    concurrency: int = 8,
    label: str = "ask the language model",
) -> list[Reply]:
    """`complete_stream` for requests and replies that fit in memory."""
    return list(complete_stream(model, requests, concurrency=concurrency, label=label, total=len(requests)))


def complete_stream(
    model: ChatModel,
    requests: Iterable[Request],
    *,
    concurrency: int = 8,
    label: str = "ask the language model",
    total: int | None = None,
) -> Iterator[Reply]:
    """Complete requests, `concurrency` at once; replies come in the order of the requests.

    `requests` is read as there is room, from another thread. At most `concurrency` requests are under way, and at
    most `AHEAD * concurrency` replies wait for a slower one, so that memory does not grow with the number of
    requests. The first error (of the model or of `requests`) ends the work and is raised. Requests that the
    budget no longer covers come back with `finish_reason` "budget".
    """
    work = _Work(model, requests, max(1, concurrency))
    with progress(label, total) as advance:
        try:
            for replies in work.batches():
                advance(len(replies))
                yield from replies
        finally:
            work.stop()


class _Work:
    """Tasks that take requests from one iterator and leave replies by position.

    Everything below `_main` runs on the loop's thread; the lock guards what both threads touch.
    """

    def __init__(self, model: ChatModel, requests: Iterable[Request], concurrency: int) -> None:
        self._model = model
        self._requests = iter(requests)
        self._concurrency = concurrency
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="llm", daemon=True)
        self._lock = threading.Lock()
        self._ready = threading.Condition(self._lock)
        self._replies: dict[int, Reply] = {}
        self._taken = self._given = 0
        self._failure: BaseException | None = None
        self._ended = self._exhausted = self._stopped = False
        self._full = self._flushing = False
        self._room = asyncio.Event()
        self._quiet = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()

    # The caller's thread

    def batches(self) -> Iterator[list[Reply]]:
        """The replies in order, as many at a time as are there."""
        self._thread.start()
        while True:
            with self._lock:
                while self._given not in self._replies and self._failure is None and not self._ended:
                    self._ready.wait()
                if self._failure is not None:
                    raise self._failure
                batch: list[Reply] = []
                while self._given + len(batch) in self._replies:
                    batch.append(self._replies.pop(self._given + len(batch)))
                if not batch:
                    return
            yield batch
            with self._lock:  # only now is there room: until here the batch was in memory, too
                self._given += len(batch)
                if self._full and not self._loop.is_closed():
                    self._loop.call_soon_threadsafe(self._room.set)

    def stop(self) -> None:
        """Send nothing more; wait a little for what is under way, so that paid replies are recorded."""
        if self._thread.ident is None:
            self._loop.close()
            return
        with self._lock:
            self._stopped = True
            if not self._loop.is_closed():
                self._loop.call_soon_threadsafe(self._room.set)
                self._loop.call_soon_threadsafe(self._quiet.set)
        self._thread.join()

    # The loop's thread

    def _run(self) -> None:
        try:
            self._loop.run_until_complete(self._main())
        except BaseException as problem:
            self._fail(problem)
        finally:
            with self._lock:
                self._loop.close()
                self._ended = True
                self._ready.notify()

    async def _main(self) -> None:
        async with self._model.session() as ask:
            self._start_task(ask)
            await self._quiet.wait()  # no task is left, or the work is stopped
            if self._tasks:
                await asyncio.wait(self._tasks, timeout=DRAIN_S)
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    def _start_task(self, ask: Ask) -> None:
        task = self._loop.create_task(self._work(ask))
        self._tasks.add(task)
        task.add_done_callback(self._end_task)

    def _end_task(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not self._tasks:
            self._quiet.set()

    async def _work(self, ask: Ask) -> None:
        try:
            while (taken := await self._take(ask)) is not None:
                position, request = taken
                try:
                    reply = await ask(request)
                except BudgetSpentError:
                    reply = Reply("", "budget")
                self._replies[position] = reply
                if position == self._given and not self._flushing:
                    self._flushing = True
                    self._loop.call_soon(self._flush)  # with all that came in the same turn of the loop
        except asyncio.CancelledError:
            raise
        except BaseException as problem:
            self._fail(problem)

    async def _take(self, ask: Ask) -> tuple[int, Request] | None:
        """The next request and its position; None when there are none, or the work is stopped."""
        while self._taken - self._given >= AHEAD * self._concurrency and not self._stopped:
            self._room.clear()
            with self._lock:
                self._full = self._taken - self._given >= AHEAD * self._concurrency
            if self._full:
                await self._room.wait()
                self._full = False
        if self._stopped or self._exhausted:
            return None
        request = next(self._requests, None)
        if request is None:
            self._exhausted = True
            return None
        position = self._taken
        self._taken += 1
        if len(self._tasks) < self._concurrency:
            self._start_task(ask)
        return position, request

    def _flush(self) -> None:
        self._flushing = False
        with self._lock:
            self._ready.notify()

    def _fail(self, problem: BaseException) -> None:
        with self._lock:
            self._failure = self._failure or problem
            self._stopped = True
            self._ready.notify()
        if not self._loop.is_closed():
            self._room.set()
            self._quiet.set()
