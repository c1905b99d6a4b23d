"""Training pairs from text that nobody labelled: title -> text, heading -> section, and two spans of one document.

Input: documents. Output: training pairs for contrastive pre-training (BMRetriever, arXiv 2404.18443, section 3.1: the
title is the query where there is one, else one of two non-overlapping spans of a document). What is drawn depends on
the seed and the document alone, not on what was read before.
"""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Iterator

from medley.documents import Document
from medley.pairs import TrainingPair
from medley.train.settings import PretrainSettings

TITLE_INSTRUCTION = "Given a title, retrieve the passage that it belongs to"
SECTION_INSTRUCTION = "Given a title and a heading, retrieve the section that they belong to"
SPAN_INSTRUCTION = "Given a passage, retrieve another passage of the same document"
SENTENCE_END = re.compile(r"(?<=[.!?])\s+|(?<=[。！？])|\n+")
SHORTEST = 40
"""Characters that a span should have; a shorter document is cut in two all the same."""


def pairs_of(document: Document, settings: PretrainSettings, *, seed: int) -> Iterator[TrainingPair]:
    """The pairs that one document gives, at most one of spans; none where it is too short for any."""
    title, text = document.title.strip(), document.text.strip()
    if settings.titles and title and text:
        yield TrainingPair(title, text, (), TITLE_INSTRUCTION, "titles", {"unlabelled": "title"})
    if settings.sections:
        for heading, body in document.sections:
            query = f"{title}: {heading.strip()}" if title else heading.strip()
            # `Introduction` alone says nothing of what stands under it
            if body.strip() and len(query.split()) > 1:
                yield TrainingPair(
                    query, body.strip(), (), SECTION_INSTRUCTION, "sections", {"unlabelled": "section"}
                )
    if settings.spans:
        draw = random.Random(f"{seed} {text}")
        sides = two_spans(text, draw, max_characters=settings.span_characters)
        if sides is not None:
            query, positive = sorted(sides, key=len)
            yield TrainingPair(query, positive, (), SPAN_INSTRUCTION, "spans", {"unlabelled": "spans"})


def two_spans(text: str, draw: random.Random, *, max_characters: int) -> tuple[str, str] | None:
    """Two spans of whole sentences that do not overlap, drawn at random, in the order of the text.

    The text is cut into spans of random length up to `max_characters` (a longer sentence stays whole), and two of
    them are drawn. None where there is one sentence only.
    """
    sentences = _sentences(text)
    if len(sentences) < 2:
        return None
    spans: list[tuple[int, int]] = []
    wanted = 0
    for start, end in sentences:
        if spans and end - spans[-1][0] <= wanted:
            spans[-1] = (spans[-1][0], end)
        else:
            spans.append((start, end))
            wanted = draw.randint(min(SHORTEST, max_characters), max_characters)
    if len(spans) == 1:
        cut = draw.randrange(1, len(sentences))
        spans = [(sentences[0][0], sentences[cut - 1][1]), (sentences[cut][0], sentences[-1][1])]
    (a, b), (c, d) = (spans[index] for index in sorted(draw.sample(range(len(spans)), 2)))
    return text[a:b], text[c:d]


def _sentences(text: str) -> list[tuple[int, int]]:
    """Start and end of each sentence."""
    bounds = [(0, 0), *(match.span() for match in SENTENCE_END.finditer(text)), (len(text), len(text))]
    found = [(before[1], after[0]) for before, after in itertools.pairwise(bounds)]
    return [(start, end) for start, end in found if text[start:end].strip()]
