"""The recipe's `llm:`: which language model writes, how it is asked, and what that may cost."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, model_validator

from medley.llm.addresses import check_address
from medley.llm.extra import check_extra_body
from medley.llm.messages import Sampling

SAID_ELSEWHERE = {
    "model": "llm.model",
    "messages": None,
    "stream": None,
    "n": None,
    "temperature": "llm.temperature",
    "max_tokens": "llm.max_tokens",
    "max_completion_tokens": "llm.max_tokens",
    "seed": "the recipe's seed",
    "response_format": None,
}
"""Fields of a chat request that Medley fills in, and where a user says them."""


class Prices(BaseModel):
    """What an endpoint charges, in USD for a million tokens."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    prompt: float = Field(ge=0, description="USD for a million prompt tokens")
    completion: float = Field(ge=0, description="USD for a million tokens of replies")

    def usd(self, prompt_tokens: float, completion_tokens: float) -> float:
        """The price of so many tokens."""
        return (self.prompt * prompt_tokens + self.completion * completion_tokens) / 1e6


class LlmSettings(BaseModel):
    """An OpenAI-compatible endpoint (`base_url` and `model`) or a model in this process (`local`), and its use."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, hide_input_in_errors=True)

    base_url: str | None = Field(None, description="where the endpoint is, for most servers ending in /v1")
    model: str | None = Field(None, description="the model's name as the endpoint knows it")
    local: str | None = Field(
        None, description="instead of an endpoint: a model run in this process (hub id, folder, or `tiny`)"
    )
    engine: Literal["transformers", "vllm"] = Field("transformers", description="what runs a local model")
    api_key_env: str = Field(
        "OPENAI_API_KEY", description="the environment variable that holds the key, if any"
    )
    extra_body: dict[str, JsonValue] = Field(
        {},
        description="further fields of each request, as the server wants them, such as {enable_thinking: false}",
    )
    concurrency: int = Field(
        8, ge=1, description="requests under way at once; for a local model the size of a batch"
    )
    timeout_s: float = Field(120.0, gt=0, description="seconds until a request counts as lost")
    max_tokens: int = Field(700, ge=1, description="longest reply in tokens")
    temperature: float = Field(0.7, ge=0, le=2, description="0 is greedy")
    retries: int = Field(
        5, ge=0, description="further attempts after 429, 5xx, a timeout or a dropped connection"
    )
    backoff_s: float = Field(
        0.5, ge=0, description="pause before the first further attempt; doubled each time, up to 30 s"
    )
    budget_tokens: int | None = Field(
        None, ge=1, description="tokens, prompts included, that may be spent at most, earlier runs included"
    )
    prices: Prices | None = Field(None, description="what the endpoint charges, for the ledger and `--plan`")
    budget_usd: float | None = Field(
        None, gt=0, description="money that may be spent at most, earlier runs included; needs `prices`"
    )

    @model_validator(mode="after")
    def _one_model(self) -> LlmSettings:
        if (self.local is None) == (self.base_url is None):
            raise ValueError("give either `base_url` and `model`, or `local`")
        if self.base_url is not None and not self.model:
            raise ValueError("`model` is missing: name the model that the endpoint serves")
        if self.local is not None and self.model is not None:
            raise ValueError("`model` belongs to an endpoint; leave it out beside `local`")
        if self.budget_usd is not None and self.prices is None:
            raise ValueError(
                "`budget_usd` needs `prices`: {prompt: .., completion: ..} in USD per million tokens"
            )
        return self

    @model_validator(mode="after")
    def _address_holds_no_secret(self) -> LlmSettings:
        if self.base_url is not None:
            check_address(self.base_url, "base_url")
        return self

    @model_validator(mode="after")
    def _fields_of_its_own(self) -> LlmSettings:
        if self.extra_body and self.local is not None:
            raise ValueError("`extra_body` belongs to an endpoint; leave it out beside `local`")
        check_extra_body(self.extra_body, SAID_ELSEWHERE)
        return self

    @property
    def name(self) -> str:
        """The model as a person would name it."""
        return self.model or self.local or ""

    def sampling(self, seed: int | None = None) -> Sampling:
        """The decoding values of one request."""
        return Sampling(seed, self.temperature, self.max_tokens)
