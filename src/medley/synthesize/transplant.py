"""Answers taken out: the sentences that answer the query become sentences of a passage near by, made to fit.

From a positive with its focus and the corpus to changes. The foreign sentences come from one passage on the
same topic, hold little of the query, and name this passage's subject where they named their own. Where words
tell which sentences answer, only those go; where they do not, all go and the title stays.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from medley.collections import Passage
from medley.sentences import sentence_spans
from medley.synthesize.entities import Lexicon, short_title, stems_of
from medley.synthesize.focus import Focus, query_share
from medley.synthesize.rewrite import Change, is_plural, like_case

NEAREST = 6
"""How many passages are looked at for sentences."""
NEAR = 0.12
"""The least similarity (cosine) of a passage whose sentences are used."""
NEAR_ENOUGH = 0.6
"""How near a passage must be, relative to the nearest."""
TOLERATED = 0.25
"""The largest share of the query that a foreign sentence may hold."""
_LEANING = re.compile(
    r"(it|its|they|their|them|this|these|those|that|he|his|she|her|such|however|otherwise|then|both|neither|others?|"
    r"another|instead|besides|too|even so|also|here|thereafter|afterwards|"
    r"the (same|latter|former|result|rest|other)|"
    r"(and|but|or|so|yet|because of (this|that))|by contrast|conversely|similarly|in contrast|one of)\b",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Donor:
    """The sentences of one passage that could be used, in order, and the passage's id."""

    id: str
    sentences: tuple[str, ...]


def transplant_changes(
    text: str,
    query_stems: frozenset[str],
    focus: Focus,
    donors: Sequence[Donor],
    *,
    lexicon: Lexicon,
    rng: random.Random,
) -> tuple[list[Change], str]:
    """Changes of whole sentences, and the id of the passage that gave them; no changes where no donor has
    enough.

    A sentence that leans on an outgoing one (It, These, However) goes with it, and so does the one after the
    best where that holds less than most of the query; where the donor has fewer sentences the rest is left
    out. A text without a title keeps at least one sentence, so that it is still this passage's.
    """
    outgoing = _outgoing(text, focus)
    for donor in _shuffled_near(donors, rng):
        incoming = [
            s for s in donor.sentences if query_share(query_stems, s, lexicon) <= TOLERATED and s not in text
        ]
        if outgoing and len(incoming) >= min(2, len(outgoing)):
            changes = []
            for index, (start, end) in enumerate(outgoing):
                gap = len(text) - len(text[end:].lstrip()) if index >= len(incoming) else end
                changes.append(
                    Change(start, text[start:gap], incoming[index] if index < len(incoming) else "")
                )
            return changes, donor.id
    return [], ""


def _outgoing(text: str, focus: Focus) -> list[tuple[int, int]]:
    """The sentences that go, in the order of the text."""
    answering = set(focus.answering)
    best = focus.answering[0]
    for before, after in pairwise(focus.sentences):
        if before in answering and (_LEANING.match(text, after[0]) or (before == best and not focus.strong)):
            answering.add(after)
    if len(answering) == len(focus.sentences) and not focus.title_end:
        answering.discard(focus.sentences[focus.shares.index(min(focus.shares))])
    return sorted(answering)


def _shuffled_near(donors: Sequence[Donor], rng: random.Random) -> list[Donor]:
    """Nearer donors first, with some chance: each place is drawn from the next two."""
    left, order = list(donors), []
    while left:
        order.append(left.pop(rng.randrange(min(2, len(left)))))
    return order


def make_donor(passage: Passage, subject: str, *, whole: bool) -> Donor:
    """The sentences of a passage with its own subject (its title) replaced by another; `whole` keeps every
    one.

    Otherwise sentences that lean on the one before (It, These, However) are left out.
    """
    own = short_title(passage.title)
    body = _renamed(passage.text, own, subject) if own and subject else passage.text
    sentences = [body[start:end] for start, end in sentence_spans(body)]
    return Donor(
        passage.id, tuple(s for s in sentences if s and (whole or not _LEANING.match(s)) and s[-1:] in ".!?")
    )


def _renamed(text: str, own: str, subject: str) -> str:
    if is_plural(own) != is_plural(subject) or not stems_of(own):
        return text
    return re.sub(
        rf"\b{re.escape(own)}\b", lambda match: like_case(subject, match[0]), text, flags=re.IGNORECASE
    )
