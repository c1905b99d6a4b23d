"""The list of instructions that Medley brings (library.yaml), or one of the user's own in the same form."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from medley.errors import InputError
from medley.files import json_kind
from medley.yaml_file import read_yaml

LIBRARY = Path(__file__).with_name("library.yaml")
DEFAULT = "Given a question, retrieve passages that answer the question"
"""What is started from where neither source nor model has an instruction."""
ANY = "any"
"""The domain of instructions that name no field."""


class Entry(BaseModel):
    """One instruction: what stands in the query, what the texts are about, where the sentence is from."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    text: str = Field(min_length=3)
    kind: str = "mixed"
    domain: str = ANY
    source: str = ""

    @property
    def origin(self) -> str:
        """As tables show it."""
        return f"library: {self.kind}, {self.domain}"


@dataclass(frozen=True)
class Library:
    """Instructions in file order, and the version of the list."""

    version: int
    entries: tuple[Entry, ...]

    @property
    def texts(self) -> tuple[str, ...]:
        """The sentences."""
        return tuple(entry.text for entry in self.entries)

    @property
    def domain_free(self) -> tuple[str, ...]:
        """The sentences that name no field."""
        return tuple(entry.text for entry in self.entries if entry.domain == ANY)

    @property
    def origins(self) -> dict[str, str]:
        """Sentence -> where it is from."""
        return {entry.text: entry.origin for entry in self.entries}


@cache
def read_library(path: Path | None = None) -> Library:
    """Read the bundled list, or one of the user's own. Raises InputError naming the file and the entry."""
    where = path or LIBRARY
    content = read_yaml(where, InputError, missing="no such file; check prompts.library")
    if not isinstance(content, dict) or not isinstance(content.get("instructions"), list):
        raise InputError(
            f"{where}: a library is `version: 1` and a list `instructions`; see the bundled one."
        )
    entries = [
        _entry(row, f"{where}: instructions[{place}]") for place, row in enumerate(content["instructions"])
    ]
    if not entries:
        raise InputError(f"{where}: holds no instruction; add some.")
    texts = [entry.text for entry in entries]
    twice = next((text for text in texts if texts.count(text) > 1), None)
    if twice:
        raise InputError(f"{where}: holds {twice!r} twice; take one out.")
    version = content.get("version", 1)
    if not isinstance(version, int) or isinstance(version, bool):
        raise InputError(f"{where}: version: {json_kind(version)} is no whole number; write `version: 1`.")
    return Library(version, tuple(entries))


def _entry(row: object, where: str) -> Entry:
    try:
        return Entry.model_validate({"text": row} if isinstance(row, str) else row)
    except ValidationError as problem:
        error = problem.errors()[0]
        key = ".".join(map(str, error["loc"])) or "entry"
        raise InputError(
            f"{where}: {key}: {error['msg']}; an entry is text, kind, domain, source."
        ) from problem
