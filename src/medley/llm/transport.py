"""HTTP to one server: POST a JSON body, get status, headers and body, over connections that are kept.

aiohttp does it, with the system's certificates and proxies from the environment (HTTP_PROXY, HTTPS_PROXY, NO_PROXY;
this machine is reached without one). Here stands what a client of language models needs beside: redirects are not
followed, since a key must not go elsewhere; an answer has a longest length; and every request gets its own answer.
Figures: docs/results/llm-client.md. Importing aiohttp takes a quarter of a second, so import this where it is used.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Mapping
from urllib.parse import SplitResult, urlsplit

import aiohttp
from aiohttp.client import ClientTimeout
from aiohttp.client_reqrep import ClientRequest
from aiohttp.connector import Connection
from aiohttp.tracing import Trace

from medley.llm.addresses import is_loopback
from medley.llm.answer import Answer, LostError

CONNECT_S = 10.0
"""A server that takes longer to accept a connection is not there."""
LONGEST_ANSWER = 64 << 20
"""Bytes of an answer: 64 texts' embeddings with 16,384 dimensions take 25 MB. A longer one is not read to its end."""


class Transport:
    """Connections to one server, for one event loop; each request under way has one to itself.

    `headers` go with every request. It is used in an `async with` block, which closes the connections. `via` names the
    proxy, for messages. Raises LostError for a proxy that cannot be used.
    """

    def __init__(self, base_url: str, timeout_s: float, headers: Mapping[str, str]) -> None:
        address = urlsplit(base_url)
        self._proxy = _proxy_for(address.hostname or "", address.scheme)
        self.via = f" (through the proxy {_name(self._proxy)})" if self._proxy else ""
        self._before = f"{address.scheme}://{address.netloc}{address.path.rstrip('/')}"
        self._after = f"?{address.query}" if address.query else ""
        self._session = aiohttp.ClientSession(
            # a context of its own: aiohttp's is made when it is imported, before SSL_CERT_FILE may be set
            connector=_OneAnswerEach(limit=0, ssl=ssl.create_default_context()),
            headers={"Accept-Encoding": "identity", **headers},
            timeout=ClientTimeout(
                total=timeout_s, connect=min(CONNECT_S, timeout_s), ceil_threshold=float("inf")
            ),
            cookie_jar=aiohttp.DummyCookieJar(),
        )

    async def __aenter__(self) -> Transport:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()

    async def post(self, path: str, body: bytes) -> Answer:
        """Send one request; `path` is relative to the base address. Raises LostError."""
        proxy = self._proxy.geturl() if self._proxy else None
        url = f"{self._before}{path}{self._after}"
        try:
            async with self._session.post(url, data=body, proxy=proxy, allow_redirects=False) as response:
                headers = {name.lower(): value for name, value in response.headers.items()}
                return Answer(response.status, headers, await _read(response))
        except aiohttp.ConnectionTimeoutError as problem:
            raise LostError("unreachable", "it does not accept connections") from problem
        except TimeoutError as problem:
            raise LostError("timeout", "") from problem
        except aiohttp.ClientConnectorCertificateError as problem:
            wrong = problem.certificate_error
            raise LostError("certificate", getattr(wrong, "verify_message", str(wrong))) from problem
        except aiohttp.ClientProxyConnectionError as problem:
            raise LostError("proxy", f"{_name(self._proxy)}: {problem.os_error}") from problem
        except aiohttp.ClientHttpProxyError as problem:
            raise LostError("proxy", f"{_name(self._proxy)}: it refuses with {problem.status}") from problem
        except aiohttp.ClientConnectorError as problem:
            raise LostError("unreachable", str(problem.os_error)) from problem
        except (aiohttp.ClientError, OSError, ValueError) as problem:
            raise LostError("broken", _first_line(problem)) from problem


class _OneAnswerEach(aiohttp.TCPConnector):
    """Kept connections are used again only where nothing came since the last answer: aiohttp would take that for the
    answer to the next request.
    """

    async def connect(self, req: ClientRequest, traces: list[Trace], timeout: ClientTimeout) -> Connection:
        while True:
            connection = await super().connect(req, traces, timeout)
            for _ in range(
                2
            ):  # what has come by now is read first: one turn of the loop to see it, one to take it
                await asyncio.sleep(0)
            if connection.protocol is not None and not connection.protocol.should_close:
                return connection
            connection.close()


async def _read(response: aiohttp.ClientResponse) -> bytes:
    """The whole body. Raises ValueError where it is longer than any answer."""
    parts, size = [], response.content_length or 0
    if size <= LONGEST_ANSWER:
        size = 0
        async for part in response.content.iter_any():
            size += len(part)
            if size > LONGEST_ANSWER:
                break
            parts.append(part)
    if size > LONGEST_ANSWER:
        response.close()
        raise ValueError(f"the answer is longer than {LONGEST_ANSWER >> 20} MiB")
    return b"".join(parts)


def _first_line(problem: Exception) -> str:
    """What went wrong; aiohttp's further lines show the server's bytes."""
    said = problem.message if isinstance(problem, aiohttp.ClientResponseError) else str(problem)
    return f"{type(problem).__name__}: {said.strip().partition(chr(10))[0][:200].rstrip(':')}"


def _proxy_for(host: str, scheme: str) -> SplitResult | None:
    """The proxy that the environment names for a server; this machine is reached without one.

    aiohttp's own way (`trust_env`) would also send the logins of ~/.netrc.
    """
    from urllib.request import getproxies, proxy_bypass

    named = getproxies()
    address = named.get(scheme) or named.get("all")
    if not address or is_loopback(host) or proxy_bypass(host):
        return None
    proxy = urlsplit(address if "//" in address else f"http://{address}")
    if proxy.scheme not in ("http", "https") or not proxy.hostname:
        raise LostError("proxy", f"{_name(proxy)}: only http proxies are supported")
    return proxy


def _name(proxy: SplitResult | None) -> str:
    """A proxy as messages name it: without its password."""
    return proxy.netloc.rpartition("@")[2] if proxy else ""
