"""HTTP to one server: POST a JSON body, get status, headers and body, over connections that are kept.

HTTP/1.1 on asyncio's own streams: .05 ms of CPU a call, where http.client on threads takes .13, httpx 1.1 and the
openai package 1.9 (docs/results/llm-client.md). TLS with the system's certificates; proxies from the environment
(HTTP_PROXY, HTTPS_PROXY, NO_PROXY); redirects are not followed.
"""

from __future__ import annotations

import asyncio
import json
import ssl
from base64 import b64encode
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal
from urllib.parse import SplitResult, unquote, urlsplit

from medley.llm.addresses import is_loopback

CONNECT_S = 10.0
"""A server that takes longer to accept a connection is not there."""
LONGEST_ANSWER = 64 << 20
"""Bytes of an answer: 64 texts' embeddings with 16,384 dimensions take 25 MB. A longer one is not read to its end."""
Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@dataclass(frozen=True)
class Answer:
    """What the server sent; names of headers are in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> object:
        """The body as JSON. Raises ValueError for anything else, nesting deeper than Python reads included."""
        try:
            return json.loads(self.body)
        except (ValueError, RecursionError) as problem:
            raise ValueError("it is no JSON, or too deep") from problem


class LostError(Exception):
    """No answer came; `kind` says why, `detail` in the operating system's words."""

    def __init__(
        self, kind: Literal["unreachable", "proxy", "timeout", "broken", "certificate"], detail: str
    ) -> None:
        super().__init__(detail)
        self.kind = kind
        self.detail = detail


class Transport:
    """Connections to one server, for one event loop; each request under way has one to itself.

    `headers` go with every request. It is used in an `async with` block, which closes the connections. `via` names the
    proxy, for messages.
    """

    def __init__(self, base_url: str, timeout_s: float, headers: Mapping[str, str]) -> None:
        address = urlsplit(base_url)
        self._secure = address.scheme == "https"
        self._host = address.hostname or ""
        self._port = address.port or (443 if self._secure else 80)
        self._proxy = _proxy_for(self._host, address.scheme)
        self.via = f" (through the proxy {_name(self._proxy)})" if self._proxy else ""
        # a proxy for plain HTTP is told the whole address
        self._before = f"http://{address.netloc}" if self._proxy and not self._secure else ""
        self._before += address.path.rstrip("/")
        self._after = f"?{address.query}" if address.query else ""
        headers = {"Host": address.netloc, "Accept-Encoding": "identity", **headers}
        self._headers = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        self._timeout_s = timeout_s
        self._idle: list[Connection] = []

    async def post(self, path: str, body: bytes) -> Answer:
        """Send one request; `path` is relative to the base address. Raises LostError."""
        connection = await self._take()
        reader, writer = connection
        keep = False
        head = f"POST {self._before}{path}{self._after} HTTP/1.1\r\n{self._headers}Content-Length: {len(body)}\r\n\r\n"
        try:
            async with asyncio.timeout(self._timeout_s):
                writer.write(head.encode("latin-1") + body)
                answer, keep = await read_answer(reader)
        except TimeoutError as problem:
            raise LostError("timeout", "") from problem
        except (OSError, EOFError, ValueError) as problem:
            raise LostError("broken", f"{type(problem).__name__}: {problem}") from problem
        finally:
            if keep:
                self._idle.append(connection)
            else:
                writer.transport.abort()
        return answer

    async def __aenter__(self) -> Transport:
        return self

    async def __aexit__(self, *_: object) -> None:
        while self._idle:
            self._idle.pop()[1].transport.abort()

    async def _take(self) -> Connection:
        """An idle connection that the server has not closed meanwhile, or a new one."""
        while self._idle:
            reader, writer = self._idle.pop()
            for _ in range(
                2
            ):  # what has come by now is read before it is looked for: one turn to see it, one to take it
                await asyncio.sleep(0)
            if not (_has_bytes(reader) or reader.at_eof() or writer.is_closing()):
                return reader, writer
            writer.transport.abort()
        try:
            async with asyncio.timeout(min(CONNECT_S, self._timeout_s)):
                return await self._connect()
        except LostError:
            raise
        except ssl.SSLCertVerificationError as problem:
            raise LostError("certificate", problem.verify_message) from problem
        except TimeoutError as problem:
            raise LostError("unreachable", "it does not accept connections") from problem
        except (OSError, EOFError, ValueError) as problem:
            raise LostError("unreachable", str(problem) or type(problem).__name__) from problem

    async def _connect(self) -> Connection:
        secure = ssl.create_default_context() if self._secure else None
        if self._proxy is None:
            return await asyncio.open_connection(self._host, self._port, ssl=secure)
        try:
            reader, writer = await asyncio.open_connection(self._proxy.hostname, self._proxy.port or 80)
            if secure is not None:
                await self._tunnel(reader, writer, self._proxy)
        except (OSError, EOFError, ValueError) as problem:
            raise LostError(
                "proxy", f"{_name(self._proxy)}: {problem or type(problem).__name__}"
            ) from problem
        if secure is not None:
            await writer.start_tls(secure, server_hostname=self._host)
        return reader, writer

    async def _tunnel(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, proxy: SplitResult
    ) -> None:
        """Have the proxy pass bytes on, so that TLS can begin with the server behind it."""
        target = f"{self._host}:{self._port}"
        user = unquote(f"{proxy.username}:{proxy.password or ''}") if proxy.username else ""
        login = f"Proxy-Authorization: Basic {b64encode(user.encode()).decode()}\r\n" if user else ""
        writer.write(f"CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n{login}\r\n".encode("latin-1"))
        status, _ = await _read_head(reader)
        if status != 200:
            writer.transport.abort()
            raise OSError(f"it refuses with {status}")


async def read_answer(reader: asyncio.StreamReader) -> tuple[Answer, bool]:
    """One answer from a stream, and whether the connection can be used again (RFC 9112, sections 6 and 9).

    Raises EOFError, OSError or ValueError where the stream ends early or is no HTTP.
    """
    status = 100
    headers: dict[str, str] = {}
    while 100 <= status < 200:
        status, headers = await _read_head(reader)
    keep = "close" not in headers.get("connection", "").lower() and headers["version"] == "HTTP/1.1"
    if "chunked" in headers.get("transfer-encoding", "").lower():
        body = await _read_chunks(reader)
    elif "content-length" in headers:
        body = await reader.readexactly(_bounded(int(headers["content-length"])))
    elif status in (204, 304):
        body = b""
    else:
        body, keep = await _read_to_end(reader), False
    # bytes after an answer would be taken for the answer to the next request
    return Answer(status, headers, body), keep and not _has_bytes(reader)


def _has_bytes(reader: asyncio.StreamReader) -> bool:
    return bool(reader._buffer)  # type: ignore[attr-defined]


def _bounded(size: int) -> int:
    if not 0 <= size <= LONGEST_ANSWER:
        raise ValueError(f"the answer is longer than {LONGEST_ANSWER >> 20} MiB")
    return size


async def _read_to_end(reader: asyncio.StreamReader) -> bytes:
    parts, size = [], 0
    while part := await reader.read(1 << 16):
        size = _bounded(size + len(part))
        parts.append(part)
    return b"".join(parts)


async def _read_head(reader: asyncio.StreamReader) -> tuple[int, dict[str, str]]:
    try:
        lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    except asyncio.LimitOverrunError as problem:
        raise ValueError("the headers never end") from problem
    version, _, status = lines[0].partition(" ")
    if not version.startswith("HTTP/1."):
        raise ValueError("the answer is no HTTP/1.1")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
    return int(status[:3]), headers | {"version": version}


async def _read_chunks(reader: asyncio.StreamReader) -> bytes:
    parts, whole = [], 0
    while size := int((await reader.readuntil(b"\r\n")).partition(b";")[0], 16):
        whole = _bounded(whole + _bounded(size))
        parts.append(await reader.readexactly(size))
        await reader.readexactly(2)
    while await reader.readuntil(b"\r\n") != b"\r\n":
        pass  # trailers
    return b"".join(parts)


def _proxy_for(host: str, scheme: str) -> SplitResult | None:
    """The proxy that the environment names for a server; this machine is reached without one."""
    from urllib.request import getproxies, proxy_bypass

    named = getproxies()
    address = named.get(scheme) or named.get("all")
    if not address or is_loopback(host) or proxy_bypass(host):
        return None
    proxy = urlsplit(address if "//" in address else f"//{address}")
    if proxy.scheme not in ("", "http") or not proxy.hostname:
        raise LostError("proxy", f"{_name(proxy)}: only http proxies are supported")
    return proxy


def _name(proxy: SplitResult) -> str:
    """A proxy as messages name it: without its password."""
    return proxy.netloc.rpartition("@")[2]
