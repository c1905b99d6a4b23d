"""A server on loopback that writes exactly the bytes it is told to: nonsense, two answers at once, an endless one."""

from __future__ import annotations

import contextlib
import json
import socketserver
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from llm_server import completion

CLOSE = b""
"""Written in place of bytes: the connection is closed."""


@dataclass
class RawServer:
    """`script(number)` gives the pieces written after the request of that number; between pieces the network flushes."""

    script: Callable[[int], Iterable[bytes]] = lambda number: [whole("fine"), CLOSE]
    requests: list[bytes] = field(default_factory=list)
    connections: int = 0
    written: int = 0
    port: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"


def whole(text: str, *, extra: bytes = b"", headers: str = "") -> bytes:
    """A chat completion as one answer, with bytes behind its end."""
    body = json.dumps(completion(text)).encode()
    head = (
        f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n{headers}\r\n"
    )
    return head.encode() + body + extra


@contextlib.contextmanager
def serving_bytes() -> Iterator[RawServer]:
    """A running server, stopped at the end."""
    server = RawServer()

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            server.connections += 1
            with contextlib.suppress(OSError):
                while request := self.read_request():
                    server.requests.append(request)
                    for piece in server.script(len(server.requests) - 1):
                        if piece == CLOSE:
                            return
                        self.wfile.write(piece)
                        self.wfile.flush()
                        server.written += len(piece)

        def read_request(self) -> bytes:
            lines = []
            while (line := self.rfile.readline()) not in (b"\r\n", b""):
                lines.append(line)
            length = next(
                (int(x.split(b":")[1]) for x in lines if x.lower().startswith(b"content-length")), 0
            )
            return b"".join(lines) + self.rfile.read(length)

    class Server(socketserver.ThreadingTCPServer):
        allow_reuse_address = daemon_threads = True

    with Server(("127.0.0.1", 0), Handler) as listening:
        server.port = listening.server_address[1]
        thread = threading.Thread(target=listening.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        try:
            yield server
        finally:
            listening.shutdown()
            thread.join()
