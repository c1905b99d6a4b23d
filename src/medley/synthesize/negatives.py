"""Hard negatives written by a language model: new passages for each query, positive and mined negative.

From training pairs and a chat model to the same pairs, in the same order, with more negatives. The prompt is a file
(hard_negative.txt; its six requirements are those of Synthesize-Train-Merge, section 1.1) with a place for the kind of
negative (hard_negative_kinds.yaml). Kind, model and the prompt's fingerprint go into the provenance. A bad reply is
counted and its row stays as it was; too many bad replies are an error.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from medley.errors import InputError
from medley.fingerprint import fingerprint
from medley.llm import ChatModel, LlmSettings, Message, Reply, Request
from medley.pairs import TrainingPair, numbered
from medley.positives import PositiveKeys
from medley.prompt_file import filled, read_prompt
from medley.synthesize.asking import Usefulness, ask_each
from medley.synthesize.generated import Outcome
from medley.synthesize.kinds import KINDS, fits, meets
from medley.synthesize.replies import check_reply
from medley.synthesize.variants import Weights, draw, read_variants, weights_for

HARD_NEGATIVE = Path(__file__).with_name("hard_negative.txt")
DEFAULT_INSTRUCTION = "Given a question, retrieve passages that answer it"
NO_NEGATIVE = "(none was found)"
OWN_KIND = "own"
"""The kind of what a prompt of the user's own asks for where it has no place for one."""


class GenerationSettings(BaseModel):
    """What a language model is asked for when it writes hard negatives."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    per_query: int = Field(1, ge=1, description="negatives asked for, for each pair")
    kinds: Weights | None = Field(
        None,
        description="kind -> weight: `other_aspect`, `sibling_entity`, `contradicted_claim`, `partial_answer`, "
        "`wrong_number`; drawn for each pair among those that make sense for it; null: the weights in `kinds_file`",
    )
    kinds_file: Path | None = Field(
        None,
        description="a file of kinds (paragraphs and weights) instead of the bundled hard_negative_kinds.yaml",
    )
    prompt: Path | None = Field(
        None,
        description="a prompt file instead of the bundled hard_negative.txt; without {kind} it has no kinds",
    )
    max_bad: float = Field(
        0.5, ge=0, le=1, description="share of unusable replies above which the work stops with an error"
    )

    @property
    def files(self) -> list[Path]:
        """Files of the user's own that decide what is written."""
        return [path for path in (self.prompt, self.kinds_file) if path is not None]


@dataclass(frozen=True)
class _Prompts:
    """The frame, and the paragraph and weight of each kind."""

    frame: str
    paragraphs: Mapping[str, str]
    weights: Weights

    def completed(self, kind: str) -> str:
        """The frame with a kind's paragraph; its other places are still open."""
        return filled(self.frame, {"kind": self.paragraphs[kind]})


@dataclass(frozen=True)
class _Row:
    """A pair on its way: its row of the input, the kinds drawn for it, the texts that are not to be copied."""

    index: int
    pair: TrainingPair
    kinds: tuple[str, ...]


def generate_negatives(
    pairs: Iterable[TrainingPair],
    chat: ChatModel,
    settings: GenerationSettings,
    *,
    llm: LlmSettings,
    seed: int,
    total: int | None = None,
    positives: PositiveKeys | None = None,
) -> Iterator[Outcome]:
    """Ask for `settings.per_query` negatives for every pair; one outcome for each pair, in order.

    `pairs` is read as requests are sent; `total`, where it is known, is their number, for the progress; what
    `positives` knows as an answer is no negative (without: each pair's own positive only). The kinds of a
    pair depend on its own texts and the seed only. Counts: rows, made, `no_kind` for a pair for which none of the
    kinds makes sense, `kind_missed` for a text that cannot be of its kind, `positive_of_the_query` for one that is
    another positive of its query, and one for each other thing that was wrong with a reply (see replies.py).
    Raises InputError for an unusable prompt or kind at once, and EndpointError on the way when the endpoint is down
    or more than `settings.max_bad` of the replies are bad.
    """
    prompts = _read_prompts(settings)
    rows = (_row(row, pair, prompts.weights, settings.per_query, seed) for row, pair in numbered(pairs))
    asked = (
        (row, [_request(row, attempt, prompts, llm, seed) for attempt in range(len(row.kinds))])
        for row in rows
    )
    answered = ask_each(
        chat, asked, concurrency=llm.concurrency, label="write negatives",
        total=total and total * settings.per_query,
    )  # fmt: skip
    return _outcomes(answered, chat.name, prompts, Usefulness(settings.max_bad), positives)


def _read_prompts(settings: GenerationSettings) -> _Prompts:
    frame = read_prompt(settings.prompt or HARD_NEGATIVE, ("query", "positive"))
    if "{kind}" in frame:
        variants = read_variants(settings.kinds_file or KINDS)
        paragraphs = {name: variant.text for name, variant in variants.items()}
        return _Prompts(frame, paragraphs, weights_for(variants, settings.kinds, "kinds"))
    if settings.kinds is not None or settings.kinds_file is not None:
        raise InputError(
            f"{settings.prompt}: the prompt has no place {{kind}} for the kinds that are asked for; "
            "write it where the kind's paragraph belongs, or leave the kinds out."
        )
    return _Prompts(frame, {OWN_KIND: ""}, {OWN_KIND: 1.0})


def _row(index: int, pair: TrainingPair, weights: Weights, per_query: int, seed: int) -> _Row:
    fitting = {kind: weight for kind, weight in weights.items() if fits(kind, pair)}
    rng = random.Random(fingerprint([seed, "kinds", pair.query, pair.positive]))
    return _Row(index, pair, tuple(draw(fitting, per_query, rng)) if fitting else ())


def _request(row: _Row, attempt: int, prompts: _Prompts, llm: LlmSettings, seed: int) -> Request:
    pair = row.pair
    texts = {
        "instruction": pair.instruction or DEFAULT_INSTRUCTION,
        "query": pair.query,
        "positive": pair.positive,
        "negative": pair.negatives[0] if pair.negatives else NO_NEGATIVE,
        "kind": prompts.paragraphs[row.kinds[attempt]],
    }
    return Request((Message("user", filled(prompts.frame, texts)),), llm.sampling(seed + attempt))


def _outcomes(
    answered: Iterable[tuple[_Row, list[Reply]]],
    model: str,
    prompts: _Prompts,
    usefulness: Usefulness,
    positives: PositiveKeys | None,
) -> Iterator[Outcome]:
    fingerprints = {kind: fingerprint(prompts.completed(kind)) for kind in prompts.paragraphs}
    for row, replies in answered:
        texts: list[str] = []
        records: list[dict[str, object]] = []
        counted = ["rows"] if replies else ["rows", "no_kind"]
        for kind, reply in zip(row.kinds, replies, strict=True):
            text, problem = _checked(reply, kind, row.pair, texts)
            if text and positives is not None and positives.holds(row.pair.query, text):
                text, problem = "", "positive_of_the_query"
            counted.append(usefulness.count(problem or "made"))
            if text:
                texts.append(text)
                records.append({"kind": kind, "model": model, "prompt": fingerprints[kind], "row": row.index})
        yield Outcome(_extended(row.pair, texts, records), tuple(counted))
    usefulness.finish()


def _checked(reply: Reply, kind: str, pair: TrainingPair, written: list[str]) -> tuple[str, str]:
    """The usable text of a reply, or "" and what is wrong with it."""
    checked = check_reply(reply, [pair.positive, *pair.negatives, *written])
    if checked.text and not meets(kind, checked.text, pair):
        return "", "kind_missed"
    return checked.text, checked.problem


def _extended(pair: TrainingPair, texts: list[str], records: list[dict[str, object]]) -> TrainingPair:
    """The pair with the texts and one record for each of them; as it was where there are none."""
    if not texts:
        return pair
    earlier = pair.provenance.get("generated", [])
    earlier = earlier if isinstance(earlier, list) else [earlier]
    return replace(
        pair.with_negatives(texts, {}), provenance={**pair.provenance, "generated": [*earlier, *records]}
    )
