"""Statements turned round: one word of a sentence becomes its opposite (antonyms.txt), or a `not` comes or
goes.

From a text and the sentences that matter for the query, to at most one change a sentence, because two would
cancel.
"""

from __future__ import annotations

import functools
import random
import re
from collections.abc import Sequence
from pathlib import Path

from medley.errors import InputError
from medley.synthesize.rewrite import Change, like_case
from medley.text_file import read_text

TABLE = Path(__file__).with_name("antonyms.txt")
_AUXILIARY = {"is", "are", "was", "were", "can", "could", "should", "must", "would", "will"}
_NEGATIVE_NEXT = re.compile(
    r"\s+(?:not|no|never|nothing|hardly|rarely|seldom|neither|only|also|often)\b|\s*,|n't|n’t"
)
_NEGATIVE_BEFORE = re.compile(
    r"\b(?:not|no|never|hardly|that|a|neither|nor|than|as|how|if)\s$", re.IGNORECASE
)


@functools.lru_cache(maxsize=8)
def read_antonyms(path: Path) -> dict[str, str]:
    """The opposite of each word or phrase of a table (its head says the format).

    Raises InputError with file:line for a line that is no pair.
    """
    text = read_text(
        path, InputError, missing="no such file; give a table of antonyms or leave the setting out"
    )
    opposites: dict[str, str] = {}
    for line_number, line in enumerate(text.splitlines(), start=1):
        if not line.strip() or line.startswith("#"):
            continue
        match = re.fullmatch(r"\s*([^/>]+?)\s*([/>])\s*([^/>]+?)\s*", line)
        if not match:
            raise InputError(
                f"{path}:{line_number}: no pair of words; write `word / opposite` or `word > opposite`."
            )
        opposites.setdefault(match[1], match[3])
        if match[2] == "/":
            opposites.setdefault(match[3], match[1])
    return opposites


def negation_changes(
    text: str, focus: Sequence[tuple[int, int]], rng: random.Random, *, table: Path = TABLE
) -> list[Change]:
    """One change in each focused span that has a word with an opposite; a word proper goes before a bare
    `not`.
    """
    opposites = read_antonyms(table)
    pattern = _pattern(table)
    changes = []
    for start, end in focus:
        strong, weak = [], []
        for match in pattern.finditer(text, start, end):
            word = match[0].lower()
            if _NEGATIVE_BEFORE.search(text, max(start, match.start() - 12), match.start()):
                continue
            if word in _AUXILIARY:
                if not _NEGATIVE_NEXT.match(text, match.end(), end) and match.start() > start:
                    weak.append(match)
            else:
                strong.append(match)
        chosen = rng.choice(strong) if strong else weak[0] if weak else None
        if chosen is not None:
            new = like_case(opposites[chosen[0].lower()], chosen[0])
            changes.append(Change(chosen.start(), chosen[0], new))
    return changes


@functools.lru_cache(maxsize=8)
def _pattern(table: Path) -> re.Pattern[str]:
    words = sorted(read_antonyms(table), key=lambda word: (-len(word), word))
    return re.compile(rf"(?<![\w-])(?:{'|'.join(map(re.escape, words))})(?![\w-])", re.IGNORECASE)
