"""Queries written by a language model for passages: training pairs from a bare corpus.

From passages and a chat model to one pair for each usable reply (the instance level of BMRetriever's synthesis: one
passage, one query it answers). The prompt is a file (query.txt) with a place for the style (query_styles.yaml), drawn
for each passage so that the pairs look like what different people type.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, Field

from medley.collections import Passage
from medley.fingerprint import fingerprint
from medley.llm import ChatModel, LlmSettings, Message, Reply, Request
from medley.pairs import TrainingPair
from medley.prompt_file import filled, read_prompt
from medley.synthesize.asking import Usefulness, ask_each
from medley.synthesize.consistency import (
    ConsistencySettings,
    keep_consistent,
    open_finder,
    without_duplicates,
)
from medley.synthesize.generated import Outcome
from medley.synthesize.replies import Checked, check_reply
from medley.synthesize.variants import Weights, draw, read_variants, weights_for

if TYPE_CHECKING:
    from medley.encoder import Retriever

QUERY = Path(__file__).with_name("query.txt")
STYLES = Path(__file__).with_name("query_styles.yaml")
RECORD = "generated_query"
"""The key of a written query's record in a pair's provenance."""
_POINTS_AT_PASSAGE = re.compile(
    r"\b(this|the|above|following|given) (passage|text|excerpt|abstract|article|paragraph)\b|"
    r"\b(study|document) above\b",
    re.IGNORECASE,
)


class QuerySettings(BaseModel):
    """Queries that a language model writes for the passages of a corpus, and which of them are kept."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    per_passage: int = Field(1, ge=1, description="queries asked for, for each passage")
    passages: int | None = Field(None, ge=1, description="how many passages, drawn at random; null: all")
    styles: Weights | None = Field(
        None,
        description="style -> weight: `layperson`, `professional`, `keywords`, `claim`, `situation`; "
        "null: the weights in `styles_file`",
    )
    styles_file: Path | None = Field(
        None, description="a file of styles (paragraphs and weights) instead of the bundled query_styles.yaml"
    )
    prompt: Path | None = Field(None, description="a prompt file instead of the bundled query.txt")
    consistency: ConsistencySettings | None = Field(
        None, description="keep a pair only if its passage is found for its query; null: keep all"
    )
    max_bad: float = Field(
        0.5, ge=0, le=1, description="share of unusable replies above which the work stops with an error"
    )

    @property
    def files(self) -> list[Path]:
        """Files of the user's own that decide what is written."""
        return [path for path in (self.prompt, self.styles_file) if path is not None]


@dataclass(frozen=True)
class _Row:
    """A passage on its way: its place in the input and the styles drawn for it."""

    index: int
    passage: Passage
    styles: tuple[str, ...]


def generate_queries(
    passages: Iterable[Passage],
    chat: ChatModel,
    settings: QuerySettings,
    *,
    llm: LlmSettings,
    seed: int,
    instruction: str = "",
    source: str = "",
    total: int | None = None,
) -> Iterator[Outcome]:
    """Ask for `settings.per_passage` queries for every passage; an outcome for each reply, in order.

    Reads `passages` as requests are sent; the styles of a passage depend on its own text and the seed only. Counts:
    rows (passages), made, `points_at_passage` for a query that makes sense beside its passage only, and one for each
    other thing that was wrong with a reply. Neither the consistency filter nor the search for duplicates is applied
    here (see consistency.py). Raises as `generate_negatives` does.
    """
    template = read_prompt(settings.prompt or QUERY, ("passage",))
    variants = read_variants(settings.styles_file or STYLES)
    weights = weights_for(variants, settings.styles, "styles")
    texts = {name: variants[name].text for name in weights}

    def asked() -> Iterator[tuple[_Row, list[Request]]]:
        for index, passage in enumerate(passages):
            rng = random.Random(fingerprint([seed, "styles", passage.full_text]))
            styles = tuple(draw(weights, settings.per_passage, rng))
            prompts = [filled(template, {"style": texts[s], "passage": passage.full_text}) for s in styles]
            requests = [
                Request((Message("user", prompt),), llm.sampling(seed + attempt))
                for attempt, prompt in enumerate(prompts)
            ]
            yield _Row(index, passage, styles), requests

    answered = ask_each(
        chat, asked(), concurrency=llm.concurrency, label="write queries",
        total=total and total * settings.per_passage,
    )  # fmt: skip
    record = {"kind": "passage", "model": chat.name, "prompt": fingerprint(template)}
    blank = TrainingPair("", "", (), instruction, source, {RECORD: record})
    return _outcomes(answered, blank, Usefulness(settings.max_bad))


def _outcomes(
    answered: Iterable[tuple[_Row, list[Reply]]], blank: TrainingPair, usefulness: Usefulness
) -> Iterator[Outcome]:
    """The outcomes of the replies; `blank` holds what all pairs share."""
    for row, replies in answered:
        for place, (style, reply) in enumerate(zip(row.styles, replies, strict=True)):
            checked = checked_query(reply, row.passage.full_text)
            counted = usefulness.count(checked.problem or "made")
            pair = _pair(blank, row, style, checked.text) if checked.text else None
            yield Outcome(pair, (counted,) if place else ("rows", counted))
    usefulness.finish()


def _pair(blank: TrainingPair, row: _Row, style: str, query: str) -> TrainingPair:
    record = {
        **blank.provenance[RECORD], "style": style, "row": row.index, "passage_id": row.passage.id,
    }  # fmt: skip
    return TrainingPair(query, row.passage.full_text, (), blank.instruction, blank.source, {RECORD: record})


def checked_query(reply: Reply, passage: str) -> Checked:
    """The query in a reply, on one line, or what is wrong with it."""
    checked = check_reply(reply, [passage], least_words=2)
    query = " ".join(checked.text.split())
    if checked.problem:
        return checked
    if len(query) > len(passage):
        return Checked("", "too_long")
    if _POINTS_AT_PASSAGE.search(query):
        return Checked("", "points_at_passage")
    return Checked(query)


def pairs_from_corpus(
    corpus: Sequence[Passage],
    chat: ChatModel,
    settings: QuerySettings,
    *,
    llm: LlmSettings,
    seed: int,
    instruction: str = "",
    source: str = "",
    retriever: Retriever | None = None,
) -> Iterator[Outcome]:
    """All of `settings`: queries for the passages drawn, those kept that the consistency filter lets pass, each once.

    `retriever` is the filter's model, opened, where the settings name one. The corpus is indexed before anything is
    asked; further counts: `inconsistent`, `duplicate`. Raises as `generate_queries` and `open_finder` do.
    """
    find = open_finder(corpus, settings.consistency, retriever) if settings.consistency else None
    positions = _drawn(len(corpus), settings.passages, seed)
    passages = corpus if len(positions) == len(corpus) else (corpus[position] for position in positions)
    outcomes = generate_queries(
        passages,
        chat,
        settings,
        llm=llm,
        seed=seed,
        instruction=instruction,
        source=source,
        total=len(positions),
    )
    if find is not None:
        outcomes = keep_consistent(outcomes, find, _passage_id)
    return without_duplicates(outcomes)


def _passage_id(pair: TrainingPair) -> str:
    return str(pair.provenance[RECORD]["passage_id"])


def _drawn(count: int, wanted: int | None, seed: int) -> Sequence[int]:
    """Which of `count` passages get queries, in order."""
    if wanted is None or wanted >= count:
        return range(count)
    return sorted(random.Random(seed).sample(range(count), wanted))
