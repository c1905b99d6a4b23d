"""Other people's words in Markdown: names, licences and texts that stand in a model card as they were written.

In: any text. Out: one line of Markdown (CommonMark, GitHub's tables and HTML in it) that means nothing but itself.
"""

from __future__ import annotations

import re

from medley.progress import printable

_MARKS = re.compile(r"[\\`*\[\]|~]|(?<![^\W_])_|_(?![^\W_])|^(?=[#+=-])")
"""Marks inside a line, an underscore unless within a word, and what begins a heading, a rule or a list."""
_NUMBERED = re.compile(r"^(\d{1,9})(?=[.)](?:\s|$))")
_ENTITY = re.compile(r"&(?=#?\w+;)")


def literal(text: str) -> str:
    """A text in a line, a list or a cell of a table: nothing in it is a mark, a tag or a new line."""
    line = _MARKS.sub(r"\\\g<0>", " ".join(printable(text).split()))
    line = _NUMBERED.sub(r"\1\\", line)
    return _ENTITY.sub("&amp;", line).replace("<", "&lt;").replace(">", "&gt;")


def code(text: str) -> str:
    """A text as code in a line; between more backticks than it holds in a row (CommonMark, section 6.1)."""
    line = " ".join(printable(text).split())
    fence = "`" * (1 + max(map(len, re.findall("`+", line)), default=0))
    room = " " if line.startswith("`") or line.endswith("`") else ""
    return f"{fence}{room}{line}{room}{fence}".replace("|", "\\|")
