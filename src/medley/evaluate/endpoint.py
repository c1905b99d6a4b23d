"""A server of embeddings as an embedder: OpenAI's `POST <base>/embeddings`, which vLLM, TEI, Infinity and others speak.

In: texts with the prompt in front. Out: vectors, float32, in order. The server is named `URL#MODEL`; its key comes
from an environment variable and goes into a request's header and nowhere else. Only texts of the collections that are
asked for are sent, and only to that address.
"""

from __future__ import annotations

import asyncio
import json
import os
from dataclasses import dataclass

import numpy as np

from medley.errors import EndpointError
from medley.fingerprint import fingerprint
from medley.llm.transport import Answer, LostError, Transport
from medley.search.embedder import Embedder
from medley.template import Template

BATCH = 64
"""Texts of one request."""
CONCURRENCY = 8
"""Requests in flight."""
ATTEMPTS = 5
TIMEOUT_S = 120.0
PASSING = (408, 409, 425, 429, 500, 502, 503, 504)
"""Answers after which the same request may succeed."""


@dataclass(frozen=True)
class EmbeddingServer:
    """Where a model is served. `api_key_env` names the environment variable that holds the key, if there is one."""

    base_url: str
    model: str
    api_key_env: str = "OPENAI_API_KEY"
    backoff_s: float = 1.0


def is_server(name: str) -> bool:
    """Whether a model's name is `http(s)://...#MODEL`."""
    return name.startswith(("http://", "https://"))


def server_of(name: str, api_key_env: str = "OPENAI_API_KEY") -> EmbeddingServer:
    """The server that `URL#MODEL` names. Raises EndpointError without a model."""
    base_url, _, model = name.partition("#")
    if not model:
        raise EndpointError(f"{name}: names no model; write the server's address, #, and the model's name.")
    return EmbeddingServer(base_url.rstrip("/"), model, api_key_env)


def embedder_of_server(server: EmbeddingServer, template: Template, instruction: str = "") -> Embedder:
    """A served model. What stands behind a name cannot be fingerprinted: its identity is address and name."""

    def query_prompt(given: str | None) -> str:
        return template.query_prefix(instruction if given is None else given)

    def encode_queries(texts: list[str], given: str | None) -> np.ndarray:
        return request_vectors(server, [query_prompt(given) + text for text in texts])

    return Embedder(
        identity=lambda: fingerprint(["served", server.base_url, server.model]),
        similarity="cosine",
        query_prompt=query_prompt,
        document_prompt=template.document,
        encode_queries=encode_queries,
        encode_passages=lambda chunks: (
            request_vectors(server, [template.document + text for text in chunk]) for chunk in chunks
        ),
    )


def request_vectors(server: EmbeddingServer, texts: list[str]) -> np.ndarray:
    """Vectors of texts (N, H). Raises EndpointError when the server is down, refuses or answers something else."""
    return asyncio.run(_request_all(server, texts)) if texts else np.zeros((0, 0), dtype=np.float32)


async def _request_all(server: EmbeddingServer, texts: list[str]) -> np.ndarray:
    headers = {"Content-Type": "application/json", "Accept": "application/json"}
    key = os.environ.get(server.api_key_env, "").strip()
    if key:
        headers["Authorization"] = f"Bearer {key}"
    try:
        transport = Transport(server.base_url, TIMEOUT_S, headers)
    except LostError as problem:
        raise EndpointError(f"{server.base_url}: {problem}; check the address.") from problem
    room = asyncio.Semaphore(CONCURRENCY)

    async def one(batch: list[str]) -> np.ndarray:
        async with room:
            return await _request(server, transport, batch)

    try:
        batches = [texts[start : start + BATCH] for start in range(0, len(texts), BATCH)]
        return np.concatenate(await asyncio.gather(*map(one, batches)))
    finally:
        transport.close()


async def _request(server: EmbeddingServer, transport: Transport, batch: list[str]) -> np.ndarray:
    body = json.dumps({"model": server.model, "input": batch, "encoding_format": "float"}).encode()
    trouble = ""
    for attempt in range(ATTEMPTS):
        if attempt:
            await asyncio.sleep(server.backoff_s * 2 ** (attempt - 1))
        try:
            answer = await transport.post("/embeddings", body)
        except LostError as problem:
            trouble = f"cannot be reached ({problem})"
            continue
        if answer.status == 200:
            return _vectors(server, answer, len(batch))
        trouble = f"answers {answer.status}: {answer.body[:200].decode('utf-8', 'replace')}"
        if answer.status not in PASSING:
            break
    raise EndpointError(
        f"{server.base_url}: {trouble}; check address, model name and the key in ${server.api_key_env}."
    )


def _vectors(server: EmbeddingServer, answer: Answer, count: int) -> np.ndarray:
    try:
        rows = sorted(json.loads(answer.body)["data"], key=lambda row: row["index"])
        vectors = np.array([row["embedding"] for row in rows], dtype=np.float32)
    except (ValueError, KeyError, TypeError) as problem:
        raise EndpointError(
            f"{server.base_url}: the answer holds no embeddings ({problem}); is it an embedding server?"
        ) from problem
    if vectors.ndim != 2 or len(vectors) != count:
        raise EndpointError(
            f"{server.base_url}: {len(vectors)} vectors for {count} texts; is it an embedding server?"
        )
    return vectors
