"""A server of embeddings as an embedder: OpenAI's `POST <base>/embeddings`, which vLLM, TEI, Infinity and others speak.

In: texts with the prompt in front. Out: vectors, float32, in order. The server is named `URL#MODEL`; it gets a key only
where the user names an environment variable for it. Only texts of the collections that are asked for are sent, and only
to that address.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from pydantic import JsonValue

from medley.errors import EndpointError
from medley.evaluate.access import Access, check_server
from medley.fingerprint import fingerprint
from medley.llm.addresses import key_in, tell_plain, without
from medley.llm.answer import Answer, LostError
from medley.llm.dialect import complaint_of
from medley.llm.trouble import retry_after_s
from medley.progress import say
from medley.search.embedder import Embedder
from medley.template import Template

if TYPE_CHECKING:
    from medley.llm.transport import Transport

BATCH = 64
"""Texts of one request, until the server wants fewer."""
CONCURRENCY = 8
"""Requests in flight."""
ATTEMPTS = 5
TIMEOUT_S = 120.0
PASSING = (408, 409, 425, 429, 500, 502, 503, 504)
"""Answers after which the same request may succeed."""
_ABOUT_SIZE = re.compile(
    r"batch|too (?:many|large|long|big)|at most|maximum|\bmax|exceed|limit|fewer|number of", re.IGNORECASE
)
"""What a server says with 400 when a request holds too many texts; 413 and 422 say it by themselves."""


NOTHING_BESIDE = Access()


@dataclass(frozen=True)
class EmbeddingServer:
    """Where a model is served, and what it is asked with."""

    base_url: str
    model: str
    access: Access = NOTHING_BESIDE
    backoff_s: float = 1.0


class RefusedTextError(EndpointError):
    """The server takes every text but this one, or no request with a single text."""

    def __init__(self, message: str, text: str) -> None:
        super().__init__(message)
        self.text = text


def server_of(name: str, access: Access | None = None) -> EmbeddingServer:
    """The server that `URL#MODEL` names. Raises EndpointError for what names no server and no model, or a key."""
    try:
        check_server(name)
    except ValueError as problem:
        raise EndpointError(f"{problem}.") from problem
    base_url, _, model = name.partition("#")
    return EmbeddingServer(base_url.rstrip("/"), model, access or NOTHING_BESIDE)


def embedder_of_server(server: EmbeddingServer, template: Template, instruction: str = "") -> Embedder:
    """A served model. What stands behind a name cannot be fingerprinted: its identity is address, name and fields."""
    client = EmbeddingClient(server)
    access = server.access

    def query_prompt(given: str | None) -> str:
        return template.query_prefix(instruction if given is None else given)

    def encode_queries(texts: list[str], given: str | None) -> np.ndarray:
        return client.vectors([query_prompt(given) + text for text in texts], access.query_body)

    served: list[object] = ["served", server.base_url, server.model]
    return Embedder(
        identity=lambda: fingerprint([*served, access.decides] if access.decides else served),
        similarity="cosine",
        query_prompt=query_prompt,
        document_prompt=template.document,
        encode_queries=encode_queries,
        encode_passages=lambda chunks: (
            client.vectors([template.document + text for text in chunk], access.document_body)
            for chunk in chunks
        ),
    )


def request_vectors(server: EmbeddingServer, texts: list[str]) -> np.ndarray:
    """Vectors of texts (N, H). Raises EndpointError when the server is down, refuses or answers something else."""
    return EmbeddingClient(server).vectors(texts)


class EmbeddingClient:
    """Asks one server; remembers how many texts it takes in a request."""

    def __init__(self, server: EmbeddingServer) -> None:
        self._server = server
        self._most = BATCH
        self._key = key_in(server.access.api_key_env)
        self._where = server.base_url
        self._headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if self._key:
            self._headers["Authorization"] = f"Bearer {self._key}"

    def vectors(self, texts: list[str], extra: Mapping[str, JsonValue] | None = None) -> np.ndarray:
        """Vectors of texts (N, H); `extra` are fields of these requests. Raises EndpointError as request_vectors does,
        RefusedTextError where a text that stands alone in a request is refused.
        """
        return asyncio.run(self._all(texts, extra or {})) if texts else np.zeros((0, 0), dtype=np.float32)

    async def _all(self, texts: list[str], extra: Mapping[str, JsonValue]) -> np.ndarray:
        from medley.llm.transport import Transport

        tell_plain(self._server.base_url, with_key=bool(self._key))
        try:
            transport = Transport(self._server.base_url, TIMEOUT_S, self._headers)
        except LostError as problem:
            raise self._error(f"cannot be reached ({problem})") from problem
        self._where = self._server.base_url + transport.via
        room = asyncio.Semaphore(CONCURRENCY)

        async def embed(batch: list[str]) -> list[np.ndarray]:
            if len(batch) <= self._most:
                async with room:
                    # another request may have found a smaller limit meanwhile
                    found = await self._request(transport, batch, extra) if len(batch) <= self._most else None
                if found is not None:
                    return [found]
            most = self._most
            parts = (batch[start : start + most] for start in range(0, len(batch), most))
            return [rows for part in await asyncio.gather(*map(embed, parts)) for rows in part]

        async with transport:
            rows = await embed(texts)
        if len({part.shape[1] for part in rows}) > 1:
            raise self._error("the vectors differ in length; is one model behind the address?")
        return np.concatenate(rows)

    async def _request(
        self, transport: Transport, batch: list[str], extra: Mapping[str, JsonValue]
    ) -> np.ndarray | None:
        """The vectors of a batch; None where it is too large, after the limit has been lowered."""
        fields = {**self._server.access.extra_body, **extra}
        body = {"model": self._server.model, "input": batch, "encoding_format": "float", **fields}
        raw, trouble, wait_s = json.dumps(body).encode(), "", 0.0
        for attempt in range(ATTEMPTS):
            if attempt:
                await asyncio.sleep(max(wait_s, self._server.backoff_s * 2 ** (attempt - 1)))
            try:
                answer = await transport.post("/embeddings", raw)
            except LostError as problem:
                trouble = f"cannot be reached ({problem.detail or 'no answer in time'})"
                continue
            if answer.status == 200:
                return self._vectors(answer, len(batch))
            said = without(self._key, complaint_of(answer))[:300]
            trouble, wait_s = f"answers {answer.status}: {said}", retry_after_s(answer, time.time())
            if answer.status in (413, 422) or (answer.status == 400 and _ABOUT_SIZE.search(said)):
                if len(batch) > 1:
                    self._lower(len(batch) // 2)
                    return None
                raise RefusedTextError(
                    f"{self._where}: refuses a request of one text ({answer.status}): {said}", batch[0]
                )
            if answer.status not in PASSING:
                break
        raise self._error(trouble)

    def _lower(self, most: int) -> None:
        if most < self._most:
            self._most = most
            say(f"{self._where}: the server takes fewer texts a request; asking with at most {most}.")

    def _error(self, trouble: str) -> EndpointError:
        variable = self._server.access.api_key_env
        key = f"the key in ${variable}" if variable else "whether it wants a key (api_key_env, --api-key-env)"
        return EndpointError(
            f"{self._where}: {trouble}; check address, model name, its fields (extra_body) and {key}."
        )

    def _vectors(self, answer: Answer, count: int) -> np.ndarray:
        try:
            body = answer.json()
            rows = sorted(body["data"], key=lambda row: row["index"])  # type: ignore[index, call-overload]
            with np.errstate(over="ignore"):  # becomes infinite, and is refused below
                vectors = np.array([row["embedding"] for row in rows], dtype=np.float32)
            numbered = [row["index"] for row in rows] == list(range(len(rows)))
        except (ValueError, KeyError, TypeError, OverflowError) as problem:
            raise self._error(
                "the answer is no list of embeddings of one length, each of numbers and with an `index`"
            ) from problem
        if vectors.ndim != 2 or not vectors.shape[1] or len(vectors) != count or not numbered:
            raise self._error(
                f"the answer holds no {count} vectors of numbers, one a text (found: {len(rows)})"
            )
        if not np.isfinite(vectors).all():
            raise self._error("some numbers of its vectors are not finite")
        if not vectors.any(axis=1).all():
            raise self._error("it gives a text a vector of zeros, which has no direction to compare")
        return vectors
