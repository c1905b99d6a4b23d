"""Other numbers in the place of numbers: doses, percentages, years, ranges, ratios and number words.

From a text and the spans that matter for the query, to changes. A value that occurs again changes alike
everywhere; format (decimals, thousands separators) and unit stay; a range keeps its order; a percentage stays
below 100. Numbers inside names (HbA1c, B12, type 2, phase III, Figure 3) are left alone.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence

from medley.synthesize.rewrite import Change, like_case

_NUMBER = re.compile(r"(?<![\w.,/^-])(?<!±)\d[\d,]*(?:\.\d+)?(?![\w^]|[.,]\d|-[a-zA-Z]*\d)")
_NAMED = re.compile(
    r"\b(?:(?i:types?|phase|stage|grade|figure|fig\.?|table|chapter|section|group|class|version|no\.?|number|step|"
    r"vitamin|factor|chromosome|covid|day|week|level|model|part)|(?!pH)[A-Z][A-Za-z]?[A-Z]*)[\s-]$"
)
_RANGE = re.compile(r"^\s*(?:to|and|or|-|–|—)\s*$")
_WORDS = (
    "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
)  # fmt: skip
_TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
_WORD_NUMBER = re.compile(rf"\b(?:{'|'.join((*_WORDS, *_TENS))})\b(?!-)", re.IGNORECASE)


def number_changes(text: str, focus: Sequence[tuple[int, int]], rng: random.Random) -> list[Change]:
    """Changes of every number in the focused spans, and of the same values elsewhere in the text."""
    found = [match for match in _NUMBER.finditer(text) if not _NAMED.search(text, 0, match.start())]
    focused = [match for match in found if any(start <= match.start() < end for start, end in focus)]
    replacements: dict[str, str] = {}
    for group in _ranges(text, focused):
        replacements.update(_other_values([match[0] for match in group], text[group[-1].end() :], rng))
    changes = [
        Change(match.start(), match[0], replacements[match[0]])
        for match in found
        if replacements.get(match[0], match[0]) != match[0]
    ]
    return changes + _word_changes(text, focus, rng)


def _ranges(text: str, matches: Sequence[re.Match[str]]) -> list[list[re.Match[str]]]:
    """Numbers grouped so that the two ends of a range (`10 to 12`, `5-6`) are together."""
    groups: list[list[re.Match[str]]] = []
    for match in matches:
        if groups and _RANGE.match(text[groups[-1][-1].end() : match.start()]):
            groups[-1].append(match)
        else:
            groups.append([match])
    return groups


def _other_values(numbers: list[str], following: str, rng: random.Random) -> dict[str, str]:
    """The numbers of one range scaled or shifted together, so that their order holds."""
    values = [float(number.replace(",", "")) for number in numbers]
    if all(re.fullmatch(r"(1[789]\d|20\d)\d", number) for number in numbers):
        shift = rng.choice([-1, 1]) * rng.randint(4, 23)
        return {n: str(int(v) + shift) for n, v in zip(numbers, values, strict=True)}
    percent = bool(re.match(r"\s*(%|per\s?cent|percent)", following))
    factors = [0.4, 0.5, 0.6, 1.5, 1.7, 2.0, 2.4]
    rng.shuffle(factors)
    for factor in factors:
        new = [_formatted(value * factor, number) for value, number in zip(values, numbers, strict=True)]
        plain = [float(number.replace(",", "")) for number in new]
        if percent and max(plain) >= 99:
            continue
        moved = all(a != b and a > 0 for a, b in zip(plain, values, strict=True))
        if moved and _order(plain) == _order(values):
            return dict(zip(numbers, new, strict=True))
    return {}


def _order(values: Sequence[float]) -> list[int]:
    """Ranks of the values, equal ones alike."""
    ranks = sorted(set(values))
    return [ranks.index(value) for value in values]


def _formatted(value: float, like: str) -> str:
    """A number with as many decimals, trailing zeros and separators as the one it replaces."""
    plain = like.replace(",", "")
    if "." in plain:
        return f"{value:.{len(plain.partition('.')[2])}f}"
    whole = max(1, round(value))
    zeros = len(plain) - len(plain.rstrip("0"))
    if zeros and whole >= 10**zeros:
        whole = round(whole / 10**zeros) * 10**zeros
    elif plain.endswith("5") and len(plain) > 1:
        whole = max(5, round(whole / 5) * 5)
    return f"{whole:,}" if "," in like else str(whole)


def _word_changes(text: str, focus: Sequence[tuple[int, int]], rng: random.Random) -> list[Change]:
    """Number words swap with others of their kind: two with five, thirty with sixty."""
    found = list(_WORD_NUMBER.finditer(text))
    wanted = {m[0].lower() for m in found if any(start <= m.start() < end for start, end in focus)}
    present = {m[0].lower() for m in found}
    replacements: dict[str, str] = {}
    for word in sorted(wanted):
        family = _WORDS if word in _WORDS else _TENS
        free = [other for other in family if other not in present and other not in replacements.values()]
        near = [other for other in free if 1 <= abs(family.index(other) - family.index(word)) <= 4]
        if near:
            replacements[word] = rng.choice(near)
    return [
        Change(m.start(), m[0], like_case(replacements[m[0].lower()], m[0]))
        for m in found
        if m[0].lower() in replacements
    ]
