"""The options by which commands name a language model, in one place, and the model opened from them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from medley.errors import InputError

if TYPE_CHECKING:
    from medley.llm import ChatModel, LlmSettings

LlmUrl = Annotated[
    str | None,
    typer.Option("--llm-url", help="An OpenAI-compatible endpoint, such as http://localhost:8000/v1."),
]
LlmModel = Annotated[str | None, typer.Option("--llm-model", help="The model's name at the endpoint.")]
LlmLocal = Annotated[
    str | None,
    typer.Option(
        "--llm-local", help="Instead of an endpoint: a model folder or hub id, run in this process."
    ),
]
LlmExtra = Annotated[
    list[str] | None,
    typer.Option(
        "--llm-extra",
        metavar="KEY=JSON",
        help="A further field of each request, as the endpoint wants it, such as enable_thinking=false; repeatable.",
    ),
]
Concurrency = Annotated[int, typer.Option("--concurrency", help="Requests under way at once.")]
BudgetTokens = Annotated[
    int | None,
    typer.Option(
        "--budget-tokens", help="Stop before more tokens than this are used; what was made is kept."
    ),
]


def llm_settings(
    url: str | None,
    model: str | None,
    local: str | None,
    extra: Sequence[str] | None,
    concurrency: int,
    budget_tokens: int | None,
) -> LlmSettings | None:
    """The language model that the options name; None where they name none.

    Raises InputError where they name half of one, or two.
    """
    from medley.llm import LlmSettings
    from medley.llm.extra import extra_from_options

    if extra and url is None:
        raise InputError("--llm-extra needs --llm-url: fields go with the requests to an endpoint.")
    if url is None and local is None:
        if model is not None:
            raise InputError("--llm-model needs --llm-url: where the endpoint is.")
        return None
    if url is not None and local is not None:
        raise InputError("--llm-url and --llm-local name two language models; give one of them.")
    if url is not None and model is None:
        raise InputError("--llm-model is required with --llm-url; name the model that the endpoint serves.")
    return LlmSettings(
        base_url=url,
        model=model,
        local=local,
        extra_body=extra_from_options(extra or (), "--llm-extra"),
        concurrency=concurrency,
        budget_tokens=budget_tokens,
    )


def required_llm(settings: LlmSettings | None, work: str) -> LlmSettings:
    """The settings, or an InputError that says what needs a language model."""
    if settings is None:
        raise InputError(f"{work} needs a language model; give --llm-url and --llm-model, or --llm-local.")
    return settings


def open_llm(settings: LlmSettings, out: Path) -> ChatModel:
    """The model, with its replies kept in a file beside the result: the same command again pays for none twice."""
    from medley.llm import open_chat

    return open_chat(settings, cache=out.with_name(out.name + ".llm-cache.jsonl"))
