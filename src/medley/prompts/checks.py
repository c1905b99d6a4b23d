"""Proposals of a language model that must not be tried, each with the reason.

An instruction is put before every query of every user, so it may not hold what was seen in dev queries, cannot steer
what a retriever does not do, and has no use for names of metrics.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

MOST_WORDS = 60
FEWEST_WORDS = 3
RUN = 4
"""So many words of a dev query in a row are a leak."""
RARE = 2
"""A word that so many dev queries hold, or fewer, points at them."""
_WORD = re.compile(r"[^\W_]+(?:[-'][^\W_]+)*")
_METRIC = re.compile(
    r"\b(?:n?dcg|mrr|map@?\d*|recall|precision|f1|hit[- ]?rate|auc|accuracy|top[- ]?\d+|@\d+|score[sd]?|metric\w*|"
    r"benchmark\w*|leaderboard|beir|mteb|ranked? (?:first|at|above)|outrank\w*)\b",
    re.IGNORECASE,
)
_IMPOSSIBLE = re.compile(
    r"\b(?:json|xml|bullet\w*|step by step|think|explain your|summari[sz]e (?:it|them|the)|translate|output|reply|"
    r"respond|write an?|generate|list the|sort|re-?rank|order (?:them|by)|exclude|ignore|avoid|do not|don't|never|"
    r"only if|if the|otherwise|first,|then,|finally|ask the user|rewrite|expand the|boost|penali[sz]e|weigh\w*|"
    r"embedding\w*|positive passage|negative passage|training|retriever)\b",
    re.IGNORECASE,
)
_COMMON = (
    "about above across after against also among another based because been before being between both cause caused "
    "causes could does doing during each effect effects either every from give given have having help high into less "
    "like made make many might more most much need needs only other over people same should show shown shows some such "
    "than that their them then there these they this those through time under used user using very want well were what "
    "when where whether which while will with within without would your author describe described discuss discusses "
    "specific particular mechanism mechanisms role result results study studies evidence context main directly key "
    "information details relevant related topic treatment disease risk level levels type types different"
)
COMMON = frozenset(_COMMON.split())
"""Words that any instruction may hold, however few dev queries do."""


@dataclass(frozen=True)
class Known:
    """What proposals are held against: the dev queries' word runs and rare words, and words that are allowed."""

    runs: frozenset[tuple[str, ...]]
    queries_of: dict[str, frozenset[int]]
    allowed: frozenset[str]


def known_from(queries: Sequence[str], instructions: Iterable[str]) -> Known:
    """Prepare; `instructions` (the seed, the library) say which words belong to instructions."""
    split = [_words(query) for query in queries]
    holders: dict[str, set[int]] = {}
    for row, words in enumerate(split):
        for word in words:
            holders.setdefault(word, set()).add(row)
    allowed = {word for text in instructions for word in _words(text)} | COMMON
    own_runs = {run for text in instructions for run in _runs(_words(text))}
    runs = {run for words in split for run in _runs(words)} - own_runs
    return Known(frozenset(runs), {w: frozenset(rows) for w, rows in holders.items()}, frozenset(allowed))


def problem_of(text: str, known: Known) -> str:
    """Why a proposal must not be tried; "" where nothing speaks against it."""
    words = _words(text)
    if len(words) < FEWEST_WORDS:
        return "says nothing" if not words else f"has {len(words)} words only"
    if len(words) > MOST_WORDS:
        return f"has {len(words)} words, more than {MOST_WORDS}"
    if len(set(words)) * 2 < len(words):
        return "repeats itself"
    if sum(len(word) for word in words) * 2 < len("".join(text.split())):
        return "is not made of words"
    found = _METRIC.search(text)
    if found:
        return f"names a metric or a rank ({found[0]!r})"
    found = _IMPOSSIBLE.search(text)
    if found:
        return f"asks for what a retriever cannot do ({found[0]!r})"
    return _leak(text, words, known)


def _leak(text: str, words: Sequence[str], known: Known) -> str:
    run = next((run for run in _runs(words) if run in known.runs), None)
    if run:
        return f"repeats a dev query ({' '.join(run)!r})"
    rare = [
        word
        for word in dict.fromkeys(words)
        if word not in known.allowed and len(word) > 3 and 0 < len(known.queries_of.get(word, ())) <= RARE
    ]
    marked = [word for word in rare if re.search(r"\d", word) or re.search(rf"\b{word.upper()}\b", text)]
    if marked:
        return f"names something out of a dev query ({marked[0]!r})"
    for word in rare:  # one such word may be chance; two of the same query are not
        for other in rare:
            if word < other and known.queries_of[word] & known.queries_of[other]:
                return f"names things out of one dev query ({word!r} and {other!r})"
    return ""


def _words(text: str) -> list[str]:
    return [word.lower() for word in _WORD.findall(text)]


def _runs(words: Sequence[str]) -> list[tuple[str, ...]]:
    return [tuple(words[i : i + RUN]) for i in range(len(words) - RUN + 1)]
