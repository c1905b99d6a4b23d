"""Why an attempt gave no reply: its name in the ledger, whether it may pass, and the sentence for the user."""

from __future__ import annotations

import time
from dataclasses import dataclass

from medley.llm.answer import Answer, LostError
from medley.llm.settings import LlmSettings

PASSING = (408, 409, 425, 429)
LONGEST_WAIT_S = 600.0
"""A server that asks for a longer pause gets this one."""


@dataclass(frozen=True)
class Trouble:
    """A failed attempt. `passing` troubles are worth another attempt, after at least `wait_s` seconds."""

    name: str
    sentence: str
    passing: bool
    wait_s: float = 0.0


def trouble_of_loss(problem: LostError, settings: LlmSettings, where: str) -> Trouble:
    """What a lost answer means."""
    attempts = settings.retries + 1
    if problem.kind == "unreachable":
        return Trouble(
            "unreachable",
            f"{where}: no language model answers there ({problem.detail}); start the server, correct base_url "
            "(--llm-url), or leave the endpoint out and let Medley perturb.",
            passing=True,
        )
    if problem.kind == "proxy":
        return Trouble(
            "unreachable",
            f"{where}: cannot be reached through the proxy {problem.detail}; correct HTTPS_PROXY or HTTP_PROXY, "
            "or name the server's host in NO_PROXY.",
            passing=True,
        )
    if problem.kind == "certificate":
        return Trouble(
            "unreachable",
            f"{where}: the server's certificate is not trusted ({problem.detail}); let SSL_CERT_FILE name the "
            "certificates of your organisation.",
            passing=False,
        )
    if problem.kind == "timeout":
        return Trouble(
            "timeout",
            f"{where}: no reply within {settings.timeout_s:g} s, tried {attempts} times; raise timeout_s or "
            "lower concurrency.",
            passing=True,
        )
    return Trouble(
        "broken",
        f"{where}: the connection broke {attempts} times ({problem.detail}); look at the server's log, then run "
        "again: replies received so far are kept.",
        passing=True,
    )


def trouble_of_status(answer: Answer, settings: LlmSettings, where: str, *, key_is_set: bool) -> Trouble:
    """What an error status means."""
    code = answer.status
    if code in (401, 403):
        state = "is set but was not accepted" if key_is_set else "is not set"
        return Trouble(
            "denied",
            f"{where}: access denied ({code}); the key variable {settings.api_key_env} {state}.",
            passing=False,
        )
    if code == 404:
        return Trouble(
            "not_found",
            f"{where}: nothing there serves model {settings.model!r} (404); check the model's name, and that "
            "base_url ends as the server wants it (mostly /v1).",
            passing=False,
        )
    if code == 429:
        return Trouble(
            "limited",
            f"{where}: too many requests (429); lower concurrency or wait, then run again.",
            passing=True,
            wait_s=retry_after_s(answer, time.time()),
        )
    if 300 <= code < 400:
        return Trouble(
            "moved",
            f"{where}: the server points elsewhere ({code}); correct base_url, mind http or https.",
            passing=False,
        )
    passing = code in PASSING or code >= 500
    attempts = f" {settings.retries + 1} times" if passing else ""
    return Trouble(
        "server_error",
        f"{where}: the server failed ({code}){attempts}; look at its log, then run again.",
        passing,
        retry_after_s(answer, time.time()),
    )


def invalid_answer(answer: Answer, problem: ValueError, where: str) -> Trouble:
    """An answer with status 200 that is no completion: a web page at once, perhaps only this time broken JSON."""
    return Trouble(
        "invalid_answer",
        f"{where}: the answer is no chat completion ({problem}); base_url must be the OpenAI-compatible "
        "address, which for most servers ends in /v1.",
        passing=answer.body.lstrip()[:1] in (b"{", b""),
    )


def retry_after_s(answer: Answer, now: float) -> float:
    """The pause that a Retry-After header asks for, seconds or a date; 0 without one."""
    from email.utils import parsedate_to_datetime

    text = answer.headers.get("retry-after", "")
    try:
        wait_s = float(text)
    except ValueError:
        try:
            wait_s = parsedate_to_datetime(text).timestamp() - now
        except (ValueError, TypeError):
            return 0.0
    return min(LONGEST_WAIT_S, max(0.0, wait_s)) if wait_s == wait_s else 0.0
