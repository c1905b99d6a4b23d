"""A language model as judge: does this passage answer the query? Grades 0 to 3, each with a reason.

In: (instruction, query, passage) triples and a chat model. Out: a judgement for each, except where the reply could not
be read or was not paid for, and counts. The prompt is a file (judge.txt) that a user can replace.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from medley.errors import EndpointError
from medley.guard.settings import JudgeSettings
from medley.llm import ChatModel, Message, Request, Sampling, complete_structured
from medley.progress import say
from medley.prompt_file import filled, read_prompt

PROMPT = Path(__file__).with_name("judge.txt")
DEFAULT_INSTRUCTION = "Given a question, retrieve passages that answer it"
Question = tuple[str, str, str]
"""(instruction, query, passage)."""


class Judgement(BaseModel):
    """What the judge says about one passage. The reason comes first, so that the grade follows from it."""

    model_config = ConfigDict(frozen=True)

    reason: str
    grade: int = Field(ge=0, le=3)


def judge(
    questions: Iterable[Question], chat: ChatModel, settings: JudgeSettings, *, seed: int, concurrency: int
) -> tuple[dict[Question, Judgement], dict[str, int]]:
    """Ask about each distinct question once.

    Returns the judgements that could be read, and counts: `asked`, `grade_0` to `grade_3`, and one entry for each
    thing that was wrong with a reply (`invalid`, `truncated`, `over_budget`, ...). Raises EndpointError when the
    endpoint is down, or more than `settings.max_bad` of the replies are unusable; InputError for a prompt file
    without {query} or {passage}.
    """
    distinct = list(dict.fromkeys(questions))
    requests = requests_for(distinct, settings, seed=seed)
    results = complete_structured(
        chat, requests, Judgement, concurrency=concurrency, label="judge negatives", total=len(requests)
    )
    counts: Counter[str] = Counter(asked=len(distinct))
    judged: dict[Question, Judgement] = {}
    for question, result in zip(distinct, results, strict=True):
        if result.value is not None:
            judged[question] = result.value
        counts[f"grade_{result.value.grade}" if result.value else result.problem] += 1
    _check_share(counts, len(judged), settings)
    return judged, dict(counts)


def requests_for(questions: Iterable[Question], settings: JudgeSettings, *, seed: int) -> list[Request]:
    """What the language model is sent for each question, the reply's schema apart."""
    template = read_judge_prompt(settings)
    sampling = Sampling(seed, settings.temperature, settings.max_tokens)
    return [Request((Message("user", _prompt(template, *question)),), sampling) for question in questions]


def read_judge_prompt(settings: JudgeSettings) -> str:
    """The text of the judge's prompt file. Raises InputError for one without {query} or {passage}."""
    return read_prompt(settings.prompt or PROMPT, ("query", "passage"))


def _prompt(template: str, instruction: str, query: str, passage: str) -> str:
    texts = {"instruction": instruction or DEFAULT_INSTRUCTION, "query": query, "passage": passage}
    return filled(template, texts)


def _check_share(counts: Mapping[str, int], read: int, settings: JudgeSettings) -> None:
    unsent = counts.get("over_budget", 0)
    received = counts["asked"] - unsent
    bad = received - read
    if bad > settings.max_bad * received:
        raise EndpointError(
            f"{bad} of the judge's {received} replies hold no grade from 0 to 3, more than {settings.max_bad:.0%}; "
            "try another model or prompt, or raise the judge's max_tokens."
        )
    if unsent:
        say(f"the budget is spent: {unsent} negatives were not judged; raise it and run again to go on.")
