"""Kinds of hard negatives that a language model can be asked for, and the rows where each makes sense.

In: a training pair. Out: whether a kind is drawn for it. The kinds' paragraphs and weights are in
hard_negative_kinds.yaml. A kind without a rule here (a user's own) is drawn for every row.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path

from medley.pairs import TrainingPair
from medley.synthesize.query_forms import asks_for_number, content_words, is_claim

KINDS = Path(__file__).with_name("hard_negative_kinds.yaml")
PARTS = 4
"""A query of fewer content words asks for one thing, of which there is no part."""
_OPEN = re.compile(r"(what|which|who|whom|whose|when|where|why|how)\b", re.IGNORECASE)
"""How a question begins that yes and no do not answer, whatever stands at its end."""
_REFUTING_COUNTS = re.compile(r"\b(refut|contradict|counter|oppos|against|disprov)", re.IGNORECASE)


def fits(kind: str, pair: TrainingPair) -> bool:
    """Whether a kind makes sense for a row."""
    rule = _RULES.get(kind)
    return rule is None or rule(pair)


def meets(kind: str, text: str, pair: TrainingPair) -> bool:
    """Whether a text can be of its kind at all, as far as words tell: a wrong number is one that the positive lacks."""
    return kind != "wrong_number" or bool(_numbers(text) - _numbers(pair.positive))


def _can_be_contradicted(pair: TrainingPair) -> bool:
    """Where refuting passages are wanted too, as for claims to be checked, a contradiction is an answer."""
    refuting_counts = _REFUTING_COUNTS.search(pair.instruction)
    claim = is_claim(pair.query) and not _OPEN.match(pair.query.strip()) and _is_one_sentence(pair.query)
    return claim and not _is_question(pair.positive) and not refuting_counts


def _can_be_answered_in_part(pair: TrainingPair) -> bool:
    return len(content_words(pair.query)) >= PARTS and not _is_question(pair.positive)


def _has_number_asked_for(pair: TrainingPair) -> bool:
    """A yes or no does not hang on the number, and neither does a statement or a long story that mentions one."""
    states = is_claim(pair.query) or pair.query.rstrip().endswith(".")
    asks = asks_for_number(pair.query) and not states and _is_one_sentence(pair.query)
    return asks and bool(_numbers(pair.positive)) and not _is_question(pair.positive)


def _is_one_sentence(query: str) -> bool:
    return len(re.findall(r"[.?!](?=\s|$)", query.strip())) <= 1


def _is_question(text: str) -> bool:
    """Where questions of the same meaning are looked for, the positive is one and claims nothing."""
    return text.rstrip().endswith("?")


def _numbers(text: str) -> set[str]:
    return {number.replace(",", "") for number in re.findall(r"\d+(?:[.,]\d+)*", text)}


_RULES: Mapping[str, Callable[[TrainingPair], bool]] = {
    "contradicted_claim": _can_be_contradicted,
    "partial_answer": _can_be_answered_in_part,
    "wrong_number": _has_number_asked_for,
}
