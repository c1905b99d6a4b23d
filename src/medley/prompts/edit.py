"""The method `edit`: local search over phrases, without a language model.

From the best instruction so far to its neighbours: one phrase deleted, two phrases swapped, or one replaced by another
of its group in thesaurus.yaml. A sample of them races against it; the best that finishes becomes the next centre, until
no neighbour is better. Whether the gain is more than luck is for the proof to say.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import yaml

from medley.fingerprint import fingerprint
from medley.prompts.candidates import Candidate, Found, Problem
from medley.prompts.library import DEFAULT
from medley.prompts.racing import race

THESAURUS = Path(__file__).with_name("thesaurus.yaml")
ROUNDS = 4
PER_ROUND = 24
"""Neighbours tried around one centre."""
FEWEST_WORDS = 3
_CUT = re.compile(r"(?<=,)\s+|\s+(?=(?:that|which|to|for|by|with|about|in|under|from)\b)")
"""Where phrases begin: after a comma, before a word that joins."""


def edit(problem: Problem) -> Found:
    """Search around the seed instruction."""
    tried: dict[str, Candidate] = {}
    places: dict[str, int] = {}
    centre, how = problem.seed_instruction, "seed"
    _add(problem, {centre: how}, None, tried, places)
    if not centre:
        centre = DEFAULT
        _add(problem, {centre: "edit: start"}, None, tried, places)
    ended = f"after {ROUNDS} rounds"
    for step in range(ROUNDS):
        around = {text: what for text, what in neighbours(centre).items() if text not in tried}
        draw = random.Random(fingerprint([problem.seed, "edit", step, centre]))
        chosen = draw.sample(list(around), min(PER_ROUND, len(around)))
        _add(problem, {text: around[text] for text in chosen}, centre, tried, places)
        best = max((c for c in tried.values() if c.finished), key=lambda c: c.score)
        if best.score <= tried[centre].score:
            ended = f"after round {step + 1}: no change made it better"
            break
        centre = best.instruction
    return Found(tuple(tried.values()), ended, counts={"tried": len(tried)})


def _add(
    problem: Problem,
    texts: dict[str, str],
    parent: str | None,
    tried: dict[str, Candidate],
    places: dict[str, int],
) -> None:
    """Race new candidates, with the seed and their parent, and note them."""
    keep = [problem.seed_instruction, *([parent] if parent else [])]
    scorer = problem.scorer
    for r in race([*keep, *texts], scorer.scores, scorer.weights, problem.rows, keep=keep):
        if r.instruction in texts and r.instruction not in tried:
            places[r.instruction] = len(tried)
            tried[r.instruction] = Candidate(
                r.instruction, r.score, r.queries, r.finished, texts[r.instruction],
                None if parent is None else places[parent],
            )  # fmt: skip


def neighbours(instruction: str) -> dict[str, str]:
    """Every instruction one change away -> what was changed, in a fixed order."""
    found: dict[str, str] = {}
    phrases = _CUT.split(instruction)
    for place, phrase in enumerate(phrases):
        rest = [p for other, p in enumerate(phrases) if other != place]
        found.setdefault(_sentence(rest), f"edit: without {phrase.strip(', ')!r}")
    parts = instruction.split(", ")
    for place in range(len(parts) - 1):
        swapped = [*parts]
        swapped[place : place + 2] = reversed(swapped[place : place + 2])
        text = ", ".join(part[:1].lower() + part[1:] for part in swapped)
        found.setdefault(_sentence([text]), f"edit: {parts[place]!r} after {parts[place + 1]!r}")
    for old, new, text in paraphrases(instruction):
        found.setdefault(_sentence([text]), f"edit: {old!r} -> {new!r}")
    return {
        text: what
        for text, what in found.items()
        if text != _sentence([instruction]) and len(text.split()) >= FEWEST_WORDS
    }


def paraphrases(instruction: str) -> list[tuple[str, str, str]]:
    """(phrase, its replacement, the new text) for each phrase of the thesaurus that occurs, longest phrases first."""
    found = []
    taken: list[tuple[int, int]] = []
    phrases = sorted(((phrase, group) for group in thesaurus() for phrase in group), key=lambda p: -len(p[0]))
    for phrase, group in phrases:
        for match in re.finditer(rf"\b{re.escape(phrase)}\b", instruction, re.IGNORECASE):
            if any(start < match.end() and match.start() < end for start, end in taken):
                continue
            taken.append(match.span())
            for other in group:
                if other.lower() != match[0].lower():
                    new = other[0].upper() + other[1:] if match[0][0].isupper() else other
                    found.append(
                        (phrase, other, instruction[: match.start()] + new + instruction[match.end() :])
                    )
    return found


@cache
def thesaurus() -> tuple[tuple[str, ...], ...]:
    """The groups of phrases."""
    groups = yaml.safe_load(THESAURUS.read_text(encoding="utf-8"))["groups"]
    return tuple(tuple(group) for group in groups)


def _sentence(phrases: Sequence[str]) -> str:
    """Phrases joined; the first letter large, no comma at the end."""
    text = " ".join(" ".join(phrases).split()).strip(" ,")
    return text[:1].upper() + text[1:]
