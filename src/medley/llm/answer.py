"""What comes of a request: an answer, or the loss of one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal


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
