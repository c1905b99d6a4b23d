"""Chat completions: one method, with an OpenAI-compatible endpoint, a cache on disk and a replay behind it.

From messages and sampling values to replies. `open_chat` gives what a stage should use: an endpoint whose
every reply is on disk, keyed by model, messages and sampling, before anybody sees it; a run killed at any
point pays for nothing twice. The key comes from the environment variable that the settings name and is
written nowhere.
"""

from __future__ import annotations

import json
import os
import random
import re
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from pydantic import BaseModel, ConfigDict, Field

from medley.errors import EndpointError
from medley.files import explained_write_errors
from medley.fingerprint import fingerprint
from medley.progress import progress

if TYPE_CHECKING:
    import openai


class LlmSettings(BaseModel):
    """An OpenAI-compatible endpoint and how it is used (the recipe's `llm:`)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    base_url: str = Field(description="where the endpoint is, for most servers ending in /v1")
    model: str = Field(description="the model's name as the endpoint knows it")
    api_key_env: str = Field(
        "OPENAI_API_KEY", description="the environment variable that holds the key, if any"
    )
    concurrency: int = Field(8, ge=1, description="requests under way at once")
    timeout_s: float = Field(120.0, gt=0, description="seconds until a request counts as lost")
    max_tokens: int = Field(700, ge=1, description="longest reply in tokens")
    temperature: float = Field(0.7, ge=0, le=2, description="0 is greedy")
    retries: int = Field(
        5, ge=0, description="further attempts after 429, 5xx, a timeout or a dropped connection"
    )
    budget_tokens: int | None = Field(
        None, ge=1, description="tokens, prompts included, that may be spent at most"
    )

    def sampling(self, seed: int | None = None) -> Sampling:
        """The decoding values of one request."""
        return Sampling(seed, self.temperature, self.max_tokens)


@dataclass(frozen=True)
class Message:
    """One turn of a conversation; `role` is system, user or assistant."""

    role: str
    content: str


@dataclass(frozen=True)
class Sampling:
    """How a reply is decoded."""

    seed: int | None = None
    temperature: float = 0.7
    max_tokens: int = 700


@dataclass(frozen=True)
class Request:
    """One completion to ask for."""

    messages: tuple[Message, ...]
    sampling: Sampling = Sampling()


@dataclass(frozen=True)
class Reply:
    """What came back. `finish_reason` is the endpoint's (stop, length, content_filter), or `rejected` for a
    request that the endpoint refused as such, or `budget` for one that was not sent.
    """

    text: str
    finish_reason: str = "stop"
    prompt_tokens: int = 0
    completion_tokens: int = 0


class ChatModel(Protocol):
    """Whatever completes a conversation; it must be safe to call from several threads."""

    @property
    def name(self) -> str:
        """The model's name, for cache keys and provenance."""

    def complete(self, messages: Sequence[Message], *, sampling: Sampling) -> Reply:
        """Complete a conversation. Raises EndpointError when there is no way to get a reply."""


class BudgetSpentError(EndpointError):
    """The next request could exceed the budget of tokens."""


def open_chat(settings: LlmSettings, cache: Path | None = None) -> ChatModel:
    """The endpoint that the settings name, with its replies kept in the file `cache` (JSON Lines)."""
    endpoint = Endpoint(settings)
    return endpoint if cache is None else Cached(endpoint, cache)


def request_key(model: str, messages: Sequence[Message], sampling: Sampling) -> str:
    """The identity of a request: fingerprint of model, messages and sampling."""
    return fingerprint([model, [asdict(message) for message in messages], asdict(sampling)])


class Endpoint:
    """An OpenAI-compatible server. Retries what may pass, explains what will not, never spends above the
    budget.
    """

    def __init__(self, settings: LlmSettings) -> None:
        self.settings = settings
        self._client: openai.OpenAI | None = None
        self._key = os.environ.get(settings.api_key_env, "")
        self._lock = threading.Lock()
        self._spent = 0

    @property
    def name(self) -> str:
        """The model's name."""
        return self.settings.model

    @property
    def spent_tokens(self) -> int:
        """Tokens used so far, and those reserved for requests under way."""
        return self._spent

    def complete(self, messages: Sequence[Message], *, sampling: Sampling) -> Reply:
        """Ask the server; see ChatModel."""
        reserved = self._reserve(messages, sampling)
        used = 0
        try:
            reply = self._ask_patiently(messages, sampling)
            used = reply.prompt_tokens + reply.completion_tokens
            return reply
        finally:
            with self._lock:
                self._spent += used - reserved

    def _reserve(self, messages: Sequence[Message], sampling: Sampling) -> int:
        """Set aside what the request can cost at most: a token for each two characters, and the longest
        reply.
        """
        most = sum(len(message.content) // 2 + 8 for message in messages) + sampling.max_tokens
        budget = self.settings.budget_tokens
        with self._lock:
            if budget is not None and self._spent + most > budget:
                raise BudgetSpentError(
                    f"the budget of {budget} tokens is spent (the next request may take {most}); "
                    "raise budget_tokens and run again: replies that were paid for are kept."
                )
            self._spent += most
        return most

    def _ask_patiently(self, messages: Sequence[Message], sampling: Sampling) -> Reply:
        import openai

        attempt = 0
        while True:
            try:
                return self._ask(messages, sampling)
            except openai.APIConnectionError as problem:
                refused = type(problem.__cause__).__name__ in ("ConnectError", "ConnectTimeout")
                if attempt >= (min(1, self.settings.retries) if refused else self.settings.retries):
                    raise EndpointError(self._unreachable(problem, refused)) from None
                wait_s = _backoff_s(attempt)
            except openai.APIStatusError as problem:
                if problem.status_code in (400, 413, 422):
                    return Reply("", "rejected")
                passing = problem.status_code in (408, 409, 425, 429) or problem.status_code >= 500
                if not passing or attempt >= self.settings.retries:
                    raise EndpointError(self._refusal(problem)) from None
                wait_s = max(_backoff_s(attempt), _retry_after_s(problem))
            time.sleep(wait_s)
            attempt += 1

    def _ask(self, messages: Sequence[Message], sampling: Sampling) -> Reply:
        extra: dict[str, Any] = {} if sampling.seed is None else {"seed": sampling.seed}
        response = self._open().chat.completions.create(
            model=self.settings.model,
            messages=[{"role": m.role, "content": m.content} for m in messages],  # type: ignore[misc]
            temperature=sampling.temperature,
            max_tokens=sampling.max_tokens,
            **extra,
        )
        choices = getattr(response, "choices", None)
        if not choices:
            raise EndpointError(
                f"{self.where}: the answer is no chat completion; base_url must be the OpenAI-compatible "
                "address, which for most servers ends in /v1."
            )
        usage = response.usage
        return Reply(
            choices[0].message.content or "",
            choices[0].finish_reason or "stop",
            usage.prompt_tokens if usage else 0,
            usage.completion_tokens if usage else 0,
        )

    def _open(self) -> openai.OpenAI:
        with self._lock:
            if self._client is None:
                import openai

                self._client = openai.OpenAI(
                    base_url=self.settings.base_url,
                    api_key=self._key or "none",  # a local server needs none, the SDK insists on one
                    timeout=openai.Timeout(
                        self.settings.timeout_s, connect=min(10.0, self.settings.timeout_s)
                    ),
                    max_retries=0,
                )
            return self._client

    @property
    def where(self) -> str:
        """The endpoint's address without user name, password or query, for messages."""
        return re.sub(r"//[^/@]*@", "//", self.settings.base_url).partition("?")[0]

    def _unreachable(self, problem: Exception, refused: bool) -> str:
        if refused:
            return (
                f"{self.where}: no language model answers there; start the server, correct base_url "
                "(--llm-url), or leave the endpoint out and let Medley perturb."
            )
        attempts = self.settings.retries + 1
        if "Timeout" in type(problem).__name__:
            return (
                f"{self.where}: no reply within {self.settings.timeout_s:g} s, tried {attempts} times; "
                " raise timeout_s or lower concurrency."
            )
        return (
            f"{self.where}: the connection broke {attempts} times; look at the server's log, "
            "then run again: replies received so far are kept."
        )

    def _refusal(self, problem: openai.APIStatusError) -> str:
        code = problem.status_code
        if code in (401, 403):
            state = "is set but was not accepted" if self._key else "is not set"
            return (
                f"{self.where}: access denied ({code}); the key variable {self.settings.api_key_env} {state}."
            )
        if code == 404:
            return (
                f"{self.where}: nothing there serves model {self.settings.model!r} (404); "
                "check the model's name, and that base_url ends as the server wants it (mostly /v1)."
            )
        if code == 429:
            return f"{self.where}: too many requests (429); lower concurrency or wait, then run again."
        attempts = self.settings.retries + 1
        return f"{self.where}: the server failed ({code}) {attempts} times; look at its log, then run again."


def _backoff_s(attempt: int) -> float:
    """Half a second, doubled each time up to 30 s, with jitter so that threads do not return together."""
    return float(min(30.0, 0.5 * 2**attempt) * (0.5 + random.random() / 2))


def _retry_after_s(problem: openai.APIStatusError) -> float:
    try:
        return min(60.0, float(problem.response.headers.get("retry-after", "0")))
    except ValueError:
        return 0.0


class Cached:
    """A chat model whose replies are on disk before they are used. Refusals of the server are asked again
    next time.
    """

    def __init__(self, model: ChatModel, path: Path) -> None:
        self._model = model
        self._path = path
        self._replies = read_replies(path)
        self._lock = threading.Lock()

    @property
    def name(self) -> str:
        """The model's name."""
        return self._model.name

    def complete(self, messages: Sequence[Message], *, sampling: Sampling) -> Reply:
        """The recorded reply, or a new one, recorded."""
        key = request_key(self.name, messages, sampling)
        known = self._replies.get(key)
        if known is not None:
            return known
        reply = self._model.complete(messages, sampling=sampling)
        if reply.finish_reason != "rejected":
            with self._lock:
                append_reply(self._path, key, self.name, messages, reply)
                self._replies[key] = reply
        return reply


class Replay:
    """A chat model that answers from a recorded file only, so that a test never meets a network."""

    def __init__(self, path: Path, name: str) -> None:
        self.name = name
        self._path = path
        self._replies = read_replies(path)

    def complete(self, messages: Sequence[Message], *, sampling: Sampling) -> Reply:
        """The recorded reply. Raises EndpointError for a request that was never recorded."""
        reply = self._replies.get(request_key(self.name, messages, sampling))
        if reply is None:
            start = " ".join(messages[-1].content.split())[:80] if messages else ""
            raise EndpointError(
                f"{self._path}: holds no reply of {self.name!r} to {start!r}; record it first."
            )
        return reply


def read_replies(path: Path) -> dict[str, Reply]:
    """The replies of a recorded file by request key; a line torn by a killed writer is passed over."""
    replies: dict[str, Reply] = {}
    if path.is_file():
        with path.open("rb") as stream:
            for raw in stream:
                try:
                    row = json.loads(raw)
                    replies[row["key"]] = Reply(**row["reply"])
                except (ValueError, KeyError, TypeError):
                    continue
    return replies


def append_reply(path: Path, key: str, model: str, messages: Sequence[Message], reply: Reply) -> None:
    """Add one reply to a recorded file in a single write; a torn last line is ended first."""
    row = {"key": key, "model": model, "messages": [asdict(m) for m in messages], "reply": asdict(reply)}
    line = json.dumps(row, ensure_ascii=False).encode("utf-8", "surrogatepass") + b"\n"
    with explained_write_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab+", buffering=0) as stream:
            if stream.seek(0, os.SEEK_END):
                stream.seek(-1, os.SEEK_END)
                line = line if stream.read(1) == b"\n" else b"\n" + line
            stream.write(line)


def complete_many(
    model: ChatModel,
    requests: Sequence[Request],
    *,
    concurrency: int = 8,
    label: str = "ask the language model",
) -> list[Reply]:
    """Complete many requests, `concurrency` at once; replies are in the order of the requests.

    The first EndpointError ends the work and is raised. Requests that the budget no longer covers come back
    with `finish_reason` "budget".
    """
    replies: list[Reply | None] = [None] * len(requests)
    waiting = iter(range(len(requests)))
    lock, stop = threading.Lock(), threading.Event()

    with progress(label, len(requests)) as advance:

        def work() -> None:
            while not stop.is_set():
                with lock:
                    index = next(waiting, None)
                if index is None:
                    return
                request = requests[index]
                try:
                    replies[index] = model.complete(request.messages, sampling=request.sampling)
                except BudgetSpentError:
                    replies[index] = Reply("", "budget")
                except BaseException:
                    stop.set()
                    raise
                with lock:
                    advance(1)

        with ThreadPoolExecutor(max_workers=max(1, min(concurrency, len(requests)))) as pool:
            workers = [pool.submit(work) for _ in range(min(concurrency, len(requests)))]
            try:
                for worker in workers:
                    worker.result()
            finally:
                stop.set()
    return [reply for reply in replies if reply is not None]
