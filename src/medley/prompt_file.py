"""Prompt files: a template with places such as {query}, visible and replaceable by the user."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from medley.errors import InputError
from medley.text_file import read_text


def read_prompt(path: Path, needed: Sequence[str]) -> str:
    """Read a prompt file and check that it has a place for each needed text.

    Raises InputError naming the file and the missing place.
    """
    template = read_text(
        path, InputError, missing="no such prompt file; check the path or leave `prompt` out"
    )
    for name in needed:
        if f"{{{name}}}" not in template:
            raise InputError(
                f"{path}: the prompt has no place {{{name}}}; write it where the {name} belongs."
            )
    return template


def filled(template: str, texts: Mapping[str, str]) -> str:
    """Put texts into a template's places in one pass, so that braces inside a text mean nothing."""
    places = "|".join(re.escape(name) for name in texts)
    return re.sub(rf"\{{({places})\}}", lambda match: texts[match[1]], template)
