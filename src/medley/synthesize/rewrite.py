"""Edits of a text as values: where, what was there, what stands there now. Everything perturbation does is a
list of them.

A change holds a character offset into the original text, so a record of changes rebuilds the new text
exactly: `replay(positive, provenance["changes"]) == negative`. Inflection helpers keep case, number and a/an
right.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import regex

WORD = regex.compile(r"[\w\p{M}]+(?:[-'’][\w\p{M}]+)*")
_IRREGULAR = {
    "child": "children", "man": "men", "woman": "women", "tooth": "teeth", "foot": "feet", "mouse": "mice",
    "goose": "geese", "person": "people", "bacterium": "bacteria", "fungus": "fungi", "leaf": "leaves",
    "loaf": "loaves", "knife": "knives", "wolf": "wolves", "calf": "calves", "half": "halves",
    "life": "lives",
    "ovary": "ovaries", "vertebra": "vertebrae", "alga": "algae", "larva": "larvae", "nucleus": "nuclei",
    "diagnosis": "diagnoses", "thrombosis": "thromboses", "metastasis": "metastases", "potato": "potatoes",
    "tomato": "tomatoes", "sheep": "sheep", "fish": "fish", "salmon": "salmon", "biopsy": "biopsies",
}  # fmt: skip
_SINGULAR = {plural_form: form for form, plural_form in _IRREGULAR.items()}


@dataclass(frozen=True, order=True)
class Change:
    """At character `start` of the original text, `old` becomes `new`."""

    start: int
    old: str
    new: str

    @property
    def end(self) -> int:
        """Offset just after the old text."""
        return self.start + len(self.old)


def apply_changes(text: str, changes: Iterable[Change]) -> str:
    """Apply changes that do not overlap, whatever their order.

    Raises ValueError when two overlap or the text does not read as a change says.
    """
    parts: list[str] = []
    position = 0
    for change in sorted(changes):
        if change.start < position or text[change.start : change.end] != change.old:
            raise ValueError(f"change at {change.start} does not fit the text: expected {change.old!r}")
        parts += [text[position : change.start], change.new]
        position = change.end
    return "".join((*parts, text[position:]))


def recorded(changes: Iterable[Change]) -> list[dict[str, Any]]:
    """Changes as provenance keeps them: one entry for each (from, to), with every offset in the original
    text.
    """
    places: dict[tuple[str, str], list[int]] = {}
    for change in sorted(changes):
        places.setdefault((change.old, change.new), []).append(change.start)
    return [
        {"from": old, "to": new, "count": len(starts), "at": starts} for (old, new), starts in places.items()
    ]


def replay(text: str, changes: Sequence[Mapping[str, Any]]) -> str:
    """Rebuild the perturbed text from the original and the changes that its provenance records."""
    return apply_changes(
        text, (Change(start, entry["from"], entry["to"]) for entry in changes for start in entry["at"])
    )


def plural(term: str) -> str:
    """The plural of a term's last word by the regular rules of English and a few exceptions."""
    head, last = _split_last(term)
    low = last.lower()
    if low in _IRREGULAR:
        form = _IRREGULAR[low]
    elif low.endswith("sis"):
        form = last[:-2] + "es"
    elif re.search(r"(s|x|z|ch|sh)$", low):
        form = last + "es"
    elif re.search(r"[^aeiou]y$", low):
        form = last[:-1] + "ies"
    else:
        form = last + "s"
    return head + form


def singular(term: str) -> str:
    """The singular of a term's last word; a word that does not look like a plural is returned as it is."""
    head, last = _split_last(term)
    low = last.lower()
    if low in _SINGULAR:
        return head + _SINGULAR[low]
    if low.endswith("ies") and len(low) > 4:
        return head + last[:-3] + "y"
    if re.search(r"(x|ch|sh|ss|z)es$", low):
        return head + last[:-2]
    if low.endswith("s") and not re.search(r"(ss|us|is|as|ics|[^aeiou]ies)$", low) and len(low) > 3:
        return head + last[:-1]
    return term


def _split_last(term: str) -> tuple[str, str]:
    place = max(term.rfind(" "), term.rfind("-")) + 1
    return term[:place], term[place:]


def is_plural(term: str) -> bool:
    """Whether a term's last word looks like a plural."""
    return singular(term) != term


def like_case(new: str, old: str) -> str:
    """`new` with the capitals that `old` has because of its place (a sentence's start, a heading, all
    capitals).
    """
    old_words = WORD.findall(old)
    if old.isupper() and len(old) > 4 and not new.isupper():
        return new.upper()
    if len(old_words) > 1 and all(word[:1].isupper() for word in old_words):
        return re.sub(r"(^|\s)([a-z])", lambda match: match[1] + match[2].upper(), new)
    if old[:1].isupper() and new[:1].islower():
        return new[:1].upper() + new[1:]
    return new


def article_changes(text: str, changes: Sequence[Change]) -> list[Change]:
    """Further changes that turn a into an, or an into a, before a changed word where its sound now asks for
    it.
    """
    repairs = []
    for change in changes:
        before = re.search(r"\b(an?|An?)(?=\s+$)", text[max(0, change.start - 6) : change.start])
        if not before or not change.new or not change.old:
            continue
        if starts_with_vowel_sound(change.old) == starts_with_vowel_sound(change.new):
            continue
        article = before[1]
        fitting = article[0] + ("n" if starts_with_vowel_sound(change.new) else "")
        if fitting != article:
            start = max(0, change.start - 6) + before.start()
            repairs.append(Change(start, article, fitting))
    return repairs


def starts_with_vowel_sound(word: str) -> bool:
    """Whether `an` goes before a word: by letter, with the usual exceptions (hour, unit, X-ray, 8, MRI)."""
    first = WORD.search(word)
    if not first:
        return False
    spoken = first[0]
    if spoken[0].isdigit():
        return bool(re.match(r"8|11(?!\d)|18(?!\d)", spoken))
    if re.match(r"[A-Z](?![a-z])", spoken) and (len(spoken) == 1 or not spoken[1].islower()):
        return spoken[0] in "AEFHILMNORSX"
    low = spoken.lower()
    if re.match(r"(hour|honest|honou?r|heir)", low):
        return True
    if re.match(r"(uni(?!n|m)|use|usu|ure|uri|uro|ute|eu|ewe|one|once)", low):
        return False
    return low[0] in "aeiou"
