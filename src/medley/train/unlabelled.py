"""Training pairs from text that nobody labelled: title -> text, and adjacent spans of one passage.

Input: passages of a corpus. Output: training pairs for contrastive pre-training (BMRetriever, arXiv 2404.18443,
section 3.1: the title is the query where there is one, else a span of the same document).
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterable

from medley.collections import Passage
from medley.pairs import TrainingPair

TITLE_INSTRUCTION = "Given a title, retrieve the passage that it belongs to"
SPAN_INSTRUCTION = "Given a passage, retrieve the passage that continues it"
SENTENCE_END = re.compile(r"(?<=[.!?])\s+")


def unlabelled_pairs(
    passages: Iterable[Passage], *, titles: bool, spans: bool, max_pairs: int, seed: int
) -> list[TrainingPair]:
    """Make at most `max_pairs` pairs, each from one passage, in random order.

    A span pair cuts the text at a sentence end, so the two sides never overlap; the query side is the shorter.
    """
    draw = random.Random(seed)
    pairs: list[TrainingPair] = []
    for passage in passages:
        if titles and passage.title.strip() and passage.text.strip():
            provenance = {"unlabelled": "title", "passage": passage.id}
            pairs.append(
                TrainingPair(passage.title, passage.text, (), TITLE_INSTRUCTION, "titles", provenance)
            )
        if spans:
            sentences = SENTENCE_END.split(passage.text.strip())
            if len(sentences) > 1:
                cut = draw.randrange(1, len(sentences))
                sides = sorted((" ".join(sentences[:cut]), " ".join(sentences[cut:])), key=len)
                provenance = {"unlabelled": "spans", "passage": passage.id}
                pairs.append(TrainingPair(sides[0], sides[1], (), SPAN_INSTRUCTION, "spans", provenance))
    draw.shuffle(pairs)
    return pairs[:max_pairs]
