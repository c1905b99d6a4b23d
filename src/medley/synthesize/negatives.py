"""Hard negatives written by a language model: one new passage for each query, positive and mined negative.

From training pairs and a chat model to the same pairs with more negatives. The prompt is a file
(hard_negative.txt; its six requirements are those of Synthesize-Train-Merge, section 1.1) and its fingerprint
goes into the provenance. A bad reply is counted and its row stays as it was; too many bad replies are an
error.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from medley.errors import EndpointError, InputError
from medley.fingerprint import fingerprint
from medley.llm import ChatModel, Message, Request, Sampling, complete_many
from medley.pairs import TrainingPair
from medley.progress import say
from medley.synthesize.generated import Generated
from medley.synthesize.replies import check_reply

HARD_NEGATIVE = Path(__file__).with_name("hard_negative.txt")
DEFAULT_INSTRUCTION = "Given a question, retrieve passages that answer it"
NO_NEGATIVE = "(none was found)"


class GenerationSettings(BaseModel):
    """How a language model writes negatives and queries."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    per_query: int = Field(1, ge=1, description="texts asked for, for each row or passage")
    prompt: Path | None = Field(None, description="a prompt file instead of the bundled one")
    temperature: float = Field(0.7, ge=0, le=2, description="of the sampling")
    max_tokens: int = Field(700, ge=1, description="longest reply in tokens")
    concurrency: int = Field(8, ge=1, description="requests under way at once")
    max_bad: float = Field(
        0.5, ge=0, le=1, description="share of bad replies above which the work is an error"
    )


def generate_negatives(
    pairs: Sequence[TrainingPair], chat: ChatModel, settings: GenerationSettings, *, seed: int
) -> Generated:
    """Ask for `settings.per_query` negatives for every row.

    `counts`: rows, made, and one entry for each thing that was wrong with a reply (see `replies`). Raises
    EndpointError when the endpoint is down or more than `settings.max_bad` of the replies are bad.
    """
    template = read_prompt(settings.prompt or HARD_NEGATIVE, ("query", "positive"))
    requests = [
        Request((Message("user", _prompt(template, pair)),), _sampling(settings, seed, attempt))
        for pair in pairs
        for attempt in range(settings.per_query)
    ]
    replies = complete_many(chat, requests, concurrency=settings.concurrency, label="write negatives")
    counts: Counter[str] = Counter(rows=len(pairs), made=0)
    extended: list[TrainingPair] = []
    for index, pair in enumerate(pairs):
        shown = [pair.positive, *pair.negatives]
        texts: list[str] = []
        for reply in replies[index * settings.per_query : (index + 1) * settings.per_query]:
            checked = check_reply(reply, [*shown, *texts])
            counts[checked.problem or "made"] += 1
            if checked.text:
                texts.append(checked.text)
        record = {"kind": "llm", "model": chat.name, "prompt": fingerprint(template), "row": index}
        extended.append(pair.with_negatives(texts, {"generated": record}) if texts else pair)
    check_share(counts, len(replies), settings)
    return Generated(tuple(extended), dict(counts))


def _prompt(template: str, pair: TrainingPair) -> str:
    return filled(
        template,
        {
            "instruction": pair.instruction or DEFAULT_INSTRUCTION,
            "query": pair.query,
            "positive": pair.positive,
            "negative": pair.negatives[0] if pair.negatives else NO_NEGATIVE,
        },
    )


def _sampling(settings: GenerationSettings, seed: int, attempt: int) -> Sampling:
    return Sampling(seed + attempt, settings.temperature, settings.max_tokens)


def read_prompt(path: Path, needed: Sequence[str]) -> str:
    """Read a prompt file and check that it has a place for each needed text.

    Raises InputError naming the file and the missing place.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such prompt file; check the path or leave `prompt` out.")
    template = path.read_text(encoding="utf-8")
    for name in needed:
        if f"{{{name}}}" not in template:
            raise InputError(
                f"{path}: the prompt has no place {{{name}}}; write it where the {name} belongs."
            )
    return template


def filled(template: str, texts: Mapping[str, str]) -> str:
    """Put texts into a template's places in one pass, so that braces inside a text mean nothing."""
    places = "|".join(re.escape(name) for name in texts)
    return re.sub(rf"\{{({places})\}}", lambda match: texts[match[1]], template)


def check_share(counts: Mapping[str, int], replies: int, settings: GenerationSettings) -> None:
    """Raise EndpointError when too many replies were bad, or none could be paid for; say so when the budget
    ended.
    """
    unsent = counts.get("over_budget", 0)
    received = replies - unsent
    bad = received - counts["made"]
    if received and bad > settings.max_bad * received:
        reasons = {key: n for key, n in counts.items() if key not in ("rows", "made", "over_budget") and n}
        listed = ", ".join(f"{n} {key}" for key, n in sorted(reasons.items(), key=lambda item: -item[1]))
        raise EndpointError(
            f"{bad} of {received} replies are unusable ({listed}), more than {settings.max_bad:.0%}; "
            "try another model or prompt, or raise max_tokens if replies are truncated."
        )
    if unsent and not received:
        raise EndpointError("the budget of tokens does not cover a single request; raise budget_tokens.")
    if unsent:
        say(
            f"the budget of tokens is spent: {unsent} of {replies} requests were not sent; raise it to go on."
        )
