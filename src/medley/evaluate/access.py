"""A served model as recipes and options name it: `URL#MODEL`, and what its server is asked with beside the texts."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field, JsonValue, model_validator

from medley.llm.addresses import check_address
from medley.llm.extra import check_extra_body


def is_server(name: str) -> bool:
    """Whether a model's name is `http(s)://...#MODEL`."""
    return name.startswith(("http://", "https://"))


def check_server(name: str) -> None:
    """Refuse a `URL#MODEL` without a model, and one with a key, which would be written into results.

    Raises ValueError.
    """
    base_url, _, model = name.partition("#")
    check_address(base_url, "URL#MODEL")
    if not model:
        raise ValueError(f"{name}: names no model; write the server's address, #, and the model's name")


class Access(BaseModel):
    """What a server is asked with beside the texts."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, hide_input_in_errors=True)

    api_key_env: str | None = Field(None, description="the environment variable that holds the server's key")
    extra_body: dict[str, JsonValue] = Field(
        {}, description="further fields of each request, as the server wants them"
    )
    query_body: dict[str, JsonValue] = Field(
        {}, description="further fields with queries only, such as {input_type: query}"
    )
    document_body: dict[str, JsonValue] = Field(
        {}, description="further fields with passages only, such as {input_type: passage}"
    )

    @model_validator(mode="after")
    def _fields_of_its_own(self) -> Access:
        for extra in (self.extra_body, self.query_body, self.document_body):
            check_extra_body(extra, {"model": "the name behind #", "input": None, "encoding_format": None})
        return self

    @property
    def decides(self) -> dict[str, JsonValue]:
        """What of it may change vectors; empty where nothing is said, so that older results keep their keys."""
        return self.model_dump(mode="json", exclude={"api_key_env"}, exclude_defaults=True)
