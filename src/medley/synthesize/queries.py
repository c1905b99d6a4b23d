"""Queries written by a language model for passages: training pairs from a bare corpus.

From passages and a chat model to one pair for each usable reply (the instance level of BMRetriever's
synthesis: one passage, one query it answers). Styles alternate so that the pairs look like what different
people type.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from medley.collections import Passage
from medley.fingerprint import fingerprint
from medley.llm import ChatModel, Message, Request, Sampling, complete_many
from medley.pairs import TrainingPair
from medley.synthesize.generated import Generated
from medley.synthesize.negatives import GenerationSettings, check_share, filled, read_prompt
from medley.synthesize.replies import check_reply

QUERY = Path(__file__).with_name("query.txt")
STYLES = (
    "a full question, as a layperson would ask it in everyday words",
    "a precise question, as a professional of the field would ask it",
    "three to six keywords, as typed into a search box",
    "a claim, one sentence, that the passage supports or refutes",
    "a short description of a situation that ends in a question",
)


def generate_queries(
    passages: Sequence[Passage],
    chat: ChatModel,
    settings: GenerationSettings,
    *,
    seed: int,
    instruction: str = "",
    source: str = "",
) -> Generated:
    """Ask for `settings.per_query` queries for every passage, each in another style.

    Returns one pair for each usable reply; `counts["rows"]` is the number of passages. Raises EndpointError
    as `generate_negatives` does.
    """
    template = read_prompt(settings.prompt or QUERY, ("passage",))
    asked = [
        (index, passage, STYLES[(index + attempt) % len(STYLES)], attempt)
        for index, passage in enumerate(passages)
        for attempt in range(settings.per_query)
    ]
    requests = [
        Request(
            (Message("user", filled(template, {"style": style, "passage": passage.full_text})),),
            Sampling(seed + attempt, settings.temperature, settings.max_tokens),
        )
        for _, passage, style, attempt in asked
    ]
    replies = complete_many(chat, requests, concurrency=settings.concurrency, label="write queries")
    counts: Counter[str] = Counter(rows=len(passages), made=0)
    pairs: list[TrainingPair] = []
    for (index, passage, style, _), reply in zip(asked, replies, strict=True):
        checked = check_reply(reply, [passage.full_text, passage.text], least_words=2)
        query = " ".join(checked.text.split())
        problem = checked.problem or ("too_long" if len(query) > len(passage.full_text) else "")
        counts[problem or "made"] += 1
        if problem:
            continue
        record = {
            "kind": "llm", "model": chat.name, "prompt": fingerprint(template), "style": style, "row": index,
            "passage_id": passage.id,
        }  # fmt: skip
        pairs.append(TrainingPair(query, passage.full_text, (), instruction, source, {"generated": record}))
    check_share(counts, len(replies), settings)
    return Generated(tuple(pairs), dict(counts))
