"""Replies on disk, one JSON line each, written before anybody sees them; and the two models made of such a file.

`Cached` asks another model only for what the file does not hold. `Replay` asks nobody. A line goes to the
operating system in a single write before the reply is used, so that a process killed at any moment has every
reply it ever used; a line torn by the kill is passed over. A power cut takes no more than the replies of the last
second. In memory there are only keys and offsets.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import threading
import time
import weakref
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

from pydantic import JsonValue

from medley.errors import EndpointError, OutputError
from medley.files import explained_write_errors
from medley.llm.index import OffsetIndex
from medley.llm.ledger import Ledger, Tokens
from medley.llm.messages import Ask, ChatModel, Message, Reply, Request, as_json, request_key
from medley.progress import say

FLUSH_EVERY_S = 1.0
"""How often replies are flushed to disk while they come in."""
_CHUNK = 1 << 14
_HEAD = re.compile(rb'\{"key": "([0-9a-f]{16})", "tokens": \[(\d{1,15}), (\d{1,15})\], ')
"""How a line begins: enough to index it without parsing the texts."""
_TAIL = b', "format": 1}'
"""How a whole line ends, and no torn one: inside a text the quotes would be escaped."""


class ReplyFile:
    """A file of recorded replies by request key; lines that are cut or damaged are counted and told. Safe to use from
    several threads. Raises OutputError for what cannot be read as a file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.spent = Tokens()
        self._index = OffsetIndex()
        self._lock = threading.Lock()
        self._file: int | None = None
        self._flushed = 0.0
        try:
            damaged = self._read_index()
        except FileNotFoundError:
            return
        except OSError as problem:
            raise OutputError(
                f"{path}: cannot be read as a file of recorded replies ({problem.strerror}); move it away, or make it "
                "readable."
            ) from problem
        if damaged:
            say(f"{path}: {damaged} lines are cut or damaged and passed over; what they held is asked again.")

    def _read_index(self) -> int:
        """Index the file; the number of lines that hold no reply."""
        offset = damaged = 0
        with self.path.open("rb") as stream:
            for raw in stream:
                head = _HEAD.match(raw)
                if head and raw.removesuffix(b"\n").endswith(_TAIL):
                    self._index.put(int(head[1], 16) or 1, offset)
                    self.spent += Tokens(int(head[2]), int(head[3]))
                else:
                    damaged += 1
                offset += len(raw)
        return damaged

    def __len__(self) -> int:
        return len(self._index)

    def get(self, key: str) -> Reply | None:
        """The reply recorded under a key, if there is one."""
        with self._lock:
            offset = self._index.get(int(key, 16) or 1)
            if offset is None:
                return None
            file = self._open()
        parts: list[bytes] = []
        while not parts or (parts[-1] and b"\n" not in parts[-1]):
            parts.append(os.pread(file, _CHUNK, offset + sum(len(part) for part in parts)))
        line = b"".join(parts).partition(b"\n")[0]
        try:
            row = json.loads(line)
            if row["key"] != key:
                return None
            said, (asked, written) = row["reply"], map(int, row["tokens"])
            text, reason = said["text"], said["finish_reason"]
            return (
                Reply(text, reason, asked, written)
                if isinstance(text, str) and isinstance(reason, str)
                else None
            )
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
            return None  # torn, or edited by hand: ask again

    def add(self, key: str, model: str, messages: Sequence[Message], reply: Reply) -> None:
        """Record a reply. Raises OutputError where the file cannot be written."""
        row = {
            "key": key,
            "tokens": [reply.prompt_tokens, reply.completion_tokens],
            "model": model,
            "messages": as_json(messages),
            "reply": {"text": reply.text, "finish_reason": reply.finish_reason},
            "format": 1,
        }
        line = json.dumps(row, ensure_ascii=False).encode("utf-8", "surrogatepass") + b"\n"
        with self._lock, explained_write_errors(self.path):
            file = self._open()
            written = os.write(file, line)
            start = os.lseek(file, 0, os.SEEK_CUR) - written
            while written < len(line):  # a disk that is nearly full takes a part; the next write says so
                written += os.write(file, line[written:])
            if (
                time.monotonic() - self._flushed >= FLUSH_EVERY_S
            ):  # each would cost more than a fast server's reply
                os.fsync(file)
                self._flushed = time.monotonic()
            self._index.put(int(key, 16) or 1, start)
            self.spent += Tokens(reply.prompt_tokens, reply.completion_tokens)

    def _open(self) -> int:
        """The descriptor of the file, opened for appending; a torn last line is ended first."""
        if self._file is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
            size = os.fstat(file).st_size
            if size and os.pread(file, 1, size - 1) != b"\n":
                os.write(file, b"\n")
            self._file = file
            weakref.finalize(self, _close, file)
        return self._file


def _close(file: int) -> None:
    with contextlib.suppress(OSError):  # a full disk was told when the reply was written
        os.fsync(file)
    os.close(file)


class Cached:
    """A chat model whose replies are on disk before they are used. Refusals of the server are asked again
    next time; the same request made twice at once is sent once. `extra` are the fields that the model adds to each
    request.
    """

    def __init__(
        self, model: ChatModel, replies: ReplyFile, extra: Mapping[str, JsonValue] | None = None
    ) -> None:
        self._model = model
        self._extra = extra
        self._replies = replies
        self._hits = 0

    @property
    def name(self) -> str:
        """The model's name."""
        return self._model.name

    @property
    def ledger(self) -> Ledger:
        """The model's ledger, with what the file answered."""
        return replace(self._model.ledger, from_cache=self._hits)

    @asynccontextmanager
    async def session(self) -> AsyncIterator[Ask]:
        """Give the recorded replies, and new ones recorded."""
        under_way: dict[str, asyncio.Event] = {}
        async with self._model.session() as ask:

            async def ask_once(request: Request) -> Reply:
                key = request_key(self.name, request.messages, request.sampling, self._extra)
                while key in under_way:
                    await under_way[key].wait()
                known = self._replies.get(key)
                if known is not None:
                    self._hits += 1
                    return known
                under_way[key] = asyncio.Event()
                try:
                    reply = await ask(request)
                    if reply.finish_reason != "rejected":
                        self._replies.add(key, self.name, request.messages, reply)
                    return reply
                finally:
                    under_way.pop(key).set()

            yield ask_once


class Replay:
    """A chat model that answers from a recorded file only, so that a test never meets a network."""

    def __init__(self, path: Path, name: str) -> None:
        self.name = name
        self._replies = ReplyFile(path)
        self._hits = 0

    @property
    def ledger(self) -> Ledger:
        """How often it answered."""
        return Ledger(from_cache=self._hits)

    @asynccontextmanager
    async def session(self) -> AsyncIterator[Ask]:
        """Give the recorded replies; asking raises EndpointError for a request that was never recorded."""

        async def recall(request: Request) -> Reply:
            reply = self._replies.get(request_key(self.name, request.messages, request.sampling))
            if reply is None:
                start = " ".join(request.messages[-1].content.split())[:80] if request.messages else ""
                raise EndpointError(
                    f"{self._replies.path}: holds no reply of {self.name!r} to {start!r}; record it first."
                )
            self._hits += 1
            return reply

        yield recall
