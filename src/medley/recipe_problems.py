"""What is wrong with a recipe, in one sentence: the key, the value, and the nearest key or what is allowed."""

from __future__ import annotations

import difflib
import json
import re
import reprlib
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ValidationError

LONGEST_NAME = 200
"""Bytes of a folder's name: file systems have 255, and temporary names are a little longer."""


_SHAPE = re.compile(
    r"(int|float|str|bool)|(constrained|function|nullable|lax|json)-.*|(list|dict|tuple|literal)\[.*\]"
)
"""What pydantic puts into a place for the shape that it tried: no key of the user's."""


def explain(problem: ValidationError, model: type[BaseModel]) -> str:
    """The first thing that is wrong, in one sentence: key, value, and the nearest key or what is allowed."""
    # an unknown key explains a missing one; of a value's several shapes the one that it comes nearest to is told
    error = min(problem.errors(), key=lambda error: (error["type"] != "extra_forbidden", -len(error["loc"])))
    key = ".".join(str(part) for part in error["loc"] if not _SHAPE.fullmatch(str(part)))
    if error["type"] == "extra_forbidden":
        known = _fields_at(model, error["loc"][:-1])
        return _sentence(f"{key}: unknown key{nearest(str(error['loc'][-1]), known)}")
    if error["type"] == "missing":
        return f"{key}: this key is required; add it."
    message = error["msg"].removeprefix("Value error, ")
    if error["type"] == "value_error":
        return _sentence(f"{key + ': ' if key else ''}{message}")
    found = error["input"]
    if error["type"] == "string_type" and isinstance(found, (bool, int, float)):
        return f"{key}: a text is needed, and {json.dumps(found)} is none by YAML's rules; put it in quotes."
    return f"{key}: {message[0].lower()}{message[1:]} (found {reprlib.repr(found)})."


def _sentence(text: str) -> str:
    return text if text.endswith("?") else f"{text}."


def nearest(name: str, known: Sequence[str] | Mapping[str, Any]) -> str:
    """The end of a sentence about an unknown name: the known one nearest to it, or all that are known."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; known: {', '.join(known)}" if known else ""


def check_folder_name(key: str, name: str) -> None:
    """Refuse what cannot be the name of one folder, or leads out of the folder it stands in. Raises ValueError."""
    if (
        not name.strip()
        or name.startswith(".")
        or any(c in "/\\" or not c.isprintable() for c in name)
        or len(name.encode()) > LONGEST_NAME
    ):
        raise ValueError(
            f"{key}: {name!r} cannot name a folder; take letters, digits, - and _, no slash and no dot in front"
        )


def _fields_at(model: type[BaseModel], location: Sequence[int | str]) -> list[str]:
    """The known keys of the model found by walking `location`, through dicts, lists and optionals."""
    current: Any = model
    for part in location:
        if part in (fields := _fields(current)):
            current = _model_in(fields[part].annotation)
    return list(_fields(current))


def _fields(model: Any) -> dict[Any, Any]:
    """A model's fields by the keys that people write; none of what is no model."""
    return {field.alias or name: field for name, field in getattr(model, "model_fields", {}).items()}


def _model_in(annotation: Any) -> Any:
    """The pydantic model inside an annotation such as `dict[str, Model]` or `Model | None`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for argument in getattr(annotation, "__args__", ()):
        found = _model_in(argument)
        if found is not None:
            return found
    return None
