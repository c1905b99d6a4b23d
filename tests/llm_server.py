"""An OpenAI-compatible chat server that misbehaves as told: slow, 429, 500, hanging, cut, broken JSON, refusing.

One implementation, two ways to run it. In a thread of the test, `serving()` gives a `ChatServer` whose
`script(number, body)` decides every answer. In a process of its own, `server_process(...)` starts this file as a
command; there the answer is a function of the request alone, so that it is the same in every attempt, and faults
are drawn by their shares. It speaks HTTP/1.1 over a bare asyncio protocol, so that it can answer thousands of
requests a second on one core.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import hashlib
import json
import random
import ssl
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any
from urllib.request import urlopen


@dataclass(frozen=True)
class Answer:
    """What the server does with one request.

    `fault`: "" answers; "drop" resets the connection; "cut" closes it in the middle of the body; "hang" never
    answers.
    """

    body: bytes = b""
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    latency_s: float = 0.0
    fault: str = ""


def completion(text: str | None, reason: str = "stop", tokens: tuple[int, int] = (10, 5)) -> dict[str, Any]:
    """A chat completion as OpenAI's API gives it."""
    return {
        "id": "1", "object": "chat.completion", "created": 0, "model": "m",
        "choices": [{"index": 0, "finish_reason": reason, "message": {"role": "assistant", "content": text}}],
        "usage": {"prompt_tokens": tokens[0], "completion_tokens": tokens[1], "total_tokens": sum(tokens)},
    }  # fmt: skip


def reply(text: str | None, reason: str = "stop", latency_s: float = 0.0) -> Answer:
    """A normal answer."""
    return Answer(json.dumps(completion(text, reason)).encode(), latency_s=latency_s)


def failure(status: int, message: str = "no", headers: Mapping[str, str] | None = None) -> Answer:
    """An error as OpenAI's API gives it."""
    return Answer(json.dumps({"error": {"message": message}}).encode(), status, headers or {})


class _Connection(asyncio.Protocol):
    """One client: cuts the stream into requests and writes what `answer` decides."""

    def __init__(
        self, answer: Callable[[str, bytes, dict[str, str]], tuple[Answer, Callable[[], None]]]
    ) -> None:
        self.answer = answer
        self.buffer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        while True:
            head, found, rest = self.buffer.partition(b"\r\n\r\n")
            if not found:
                return
            lines = head.decode("latin-1").split("\r\n")
            headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines[1:])}
            length = int(headers.get("content-length", "0"))
            if len(rest) < length:
                return
            self.buffer = rest[length:]
            answer, done = self.answer(lines[0].split(" ")[1], rest[:length], headers)
            if answer.latency_s:
                asyncio.get_running_loop().call_later(answer.latency_s, self.send, answer, done)
            else:
                self.send(answer, done)

    def send(self, answer: Answer, done: Callable[[], None]) -> None:
        if answer.fault == "hang":
            return
        done()
        if answer.fault == "drop":
            self.transport.abort()
            return
        extra = "".join(f"{name}: {value}\r\n" for name, value in answer.headers.items())
        head = f"HTTP/1.1 {answer.status} X\r\nContent-Type: application/json\r\nContent-Length: {len(answer.body)}\r\n{extra}\r\n"
        data = head.encode("latin-1") + answer.body
        if answer.fault == "cut":
            self.transport.write(data[: len(head) + len(answer.body) // 2])
            self.transport.close()
        else:
            self.transport.write(data)


# In a thread of the test -------------------------------------------------------------------------------------


class ChatServer:
    """Answers with what `script(number, body)` gives: an Answer, a text, (text, finish reason), a status,
    "<drop>" or "<html>".
    """

    def __init__(self) -> None:
        self.script: Callable[[int, dict[str, Any]], Any] = lambda number, body: "fine"
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.paths: list[str] = []
        self.under_way = self.most_under_way = self.connections = 0
        self.port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def decide(self, path: str, raw: bytes, headers: dict[str, str]) -> tuple[Answer, Callable[[], None]]:
        body = json.loads(raw)
        number = len(self.bodies)
        self.bodies.append(body)
        self.headers.append(headers)
        self.paths.append(path)
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        return self.as_answer(self.script(number, body), headers), self.finished

    def finished(self) -> None:
        self.under_way -= 1

    @staticmethod
    def as_answer(value: Any, headers: dict[str, str]) -> Answer:
        if isinstance(value, Answer):
            return value
        if value == "<drop>":
            return Answer(fault="drop")
        if value == "<html>":
            return Answer(b"<html>welcome</html>")
        if isinstance(value, int):  # like some real servers, it repeats the key it was given
            return failure(value, f"no: {headers.get('authorization')}")
        return reply(*value) if isinstance(value, tuple) else reply(value)


@contextlib.contextmanager
def serving(tls: ssl.SSLContext | None = None) -> Iterator[ChatServer]:
    """A running server on loopback, stopped at the end."""
    server, loop = ChatServer(), asyncio.new_event_loop()

    async def start() -> asyncio.Server:
        return await loop.create_server(connect, "127.0.0.1", 0, ssl=tls)

    def connect() -> _Connection:
        server.connections += 1
        return _Connection(server.decide)

    listening = loop.run_until_complete(start())
    server.port = listening.sockets[0].getsockname()[1]
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


# In a process of its own -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ServerProcess:
    """A running server process."""

    url: str

    def stats(self) -> dict[str, Any]:
        """What it has counted: `answered` (request hash -> times fully answered), `received`, `most`, `faults`."""
        with urlopen(self.url.removesuffix("/v1") + "/stats") as response:
            stats: dict[str, Any] = json.load(response)
            return stats


@contextlib.contextmanager
def server_process(latency_s: float = 0.0, seed: int = 0, **shares: float) -> Iterator[ServerProcess]:
    """Run this file as a process; `shares` maps faults (see FAULTS) to how often they happen."""
    command = [sys.executable, __file__, "--latency", str(latency_s), "--seed", str(seed)]
    for name, share in shares.items():
        command += ["--fault", f"{name}={share}"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield ServerProcess(process.stdout.readline().strip())
    finally:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


FAULTS = ("limited", "failed", "hang", "drop", "cut", "invalid", "refusal", "empty")


def made_up_text(raw: bytes) -> str:
    """A text of 24 invented words that depends on the request alone."""
    digest = hashlib.sha256(raw).hexdigest()
    return " ".join(f"w{digest[i : i + 5]}" for i in range(0, 48, 2)) + "."


class _Process:
    """The answers of a server process, and its counts."""

    def __init__(self, latency_s: float, seed: int, shares: Mapping[str, float]) -> None:
        self.latency_s, self.shares, self.random = latency_s, shares, random.Random(seed)
        self.answered: Counter[str] = Counter()
        self.faults: Counter[str] = Counter()
        self.received = self.under_way = self.most = 0
        self.fixed = json.dumps(completion("%s")).encode()

    def decide(self, path: str, raw: bytes, headers: dict[str, str]) -> tuple[Answer, Callable[[], None]]:
        if path == "/stats":
            names = ("received", "most", "answered", "faults")
            return Answer(json.dumps({name: getattr(self, name) for name in names}).encode()), lambda: None
        self.received += 1
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        key = hashlib.sha256(raw).hexdigest()[:16]
        draw = self.random.random()
        for name, share in self.shares.items():
            draw -= share
            if draw < 0:
                self.faults[name] += 1
                return self.faulty(name), partial(self.finished, "")
        body = self.fixed.replace(b"%s", made_up_text(raw).encode())
        return Answer(body, latency_s=self.latency_s), partial(self.finished, key)

    def finished(self, key: str) -> None:
        self.under_way -= 1
        if key:
            self.answered[key] += 1

    def faulty(self, name: str) -> Answer:
        if name in ("hang", "drop", "cut"):
            return Answer(self.fixed, latency_s=self.latency_s, fault=name)
        return {
            "limited": failure(429, "slow down", {"Retry-After": "0.05"}),
            "failed": failure(500, "out of order"),
            "invalid": Answer(b'{"choices": [{"mess'),
            "refusal": reply("I'm sorry, but I can't help with that request."),
            "empty": reply(""),
        }[name]


async def _serve(process: _Process) -> None:
    server = await asyncio.get_running_loop().create_server(
        lambda: _Connection(process.decide), "127.0.0.1", 0, backlog=1024
    )
    print(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1", flush=True)
    await server.serve_forever()


def main() -> None:
    parser = argparse.ArgumentParser(description=Path(__file__).name)
    parser.add_argument("--latency", type=float, default=0.0, help="seconds until an answer")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--fault", action="append", default=[], help=f"NAME=SHARE; names: {', '.join(FAULTS)}"
    )
    args = parser.parse_args()
    shares = {name: float(share) for name, _, share in (fault.partition("=") for fault in args.fault)}
    unknown = set(shares) - set(FAULTS)
    if unknown:
        parser.error(f"no such fault: {', '.join(unknown)}")
    asyncio.run(_serve(_Process(args.latency, args.seed, shares)))


if __name__ == "__main__":
    main()
