"""Invented tasks: an LLM thinks of retrieval tasks, then writes query, positive and hard negative for each.

From nothing but a field and a chat model to training pairs (the task level of BMRetriever's synthesis; the two steps
are those of Wang et al., arXiv 2401.00368). Prompts are files: task.txt with a kind of task (task_kinds.yaml), and
example.txt with a style of query (query_styles.yaml). Replies are JSON, checked against a schema.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, Field

from medley.collections import Passage
from medley.errors import EndpointError
from medley.fingerprint import fingerprint
from medley.llm import ChatModel, LlmSettings, Message, Reply, Request, complete_structured
from medley.llm.structured import parsed, schema_of, with_schema
from medley.overlap import normal_form
from medley.pairs import TrainingPair
from medley.progress import say
from medley.prompt_file import filled, read_prompt
from medley.synthesize.asking import Usefulness, ask_each
from medley.synthesize.consistency import (
    ConsistencySettings,
    keep_consistent,
    open_finder,
    without_duplicates,
)
from medley.synthesize.generated import Outcome
from medley.synthesize.queries import RECORD, STYLES
from medley.synthesize.replies import check_reply
from medley.synthesize.variants import Variant, Weights, draw, read_variants, weights_for

if TYPE_CHECKING:
    from medley.encoder import Retriever

TASK = Path(__file__).with_name("task.txt")
EXAMPLE = Path(__file__).with_name("example.txt")
TASK_KINDS = Path(__file__).with_name("task_kinds.yaml")
AT_ONCE = 5
"""Tasks asked for in one request: more of them repeat each other."""
WAVES = 4
"""How often more tasks are asked for, where replies repeat tasks or cannot be read."""
LENGTHS = ("one or two sentences", "about 60 words", "about 120 words", "about 250 words")
SOURCE = "tasks"


class TaskSettings(BaseModel):
    """Invented tasks: how many, of which field and kinds, and how many examples of each."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    tasks: int = Field(20, ge=1, description="different tasks")
    per_task: int = Field(10, ge=1, description="examples (query, positive, negative) of each")
    field: str = Field("any", min_length=1, description="where the tasks are from, such as `biomedicine`")
    kinds: Weights | None = Field(
        None, description="kind of task -> weight; null: the weights in task_kinds.yaml"
    )
    styles: Weights | None = Field(
        None, description="style of query -> weight; null: those in query_styles.yaml"
    )
    max_bad: float = Field(
        0.5, ge=0, le=1, description="share of unusable replies above which the work stops with an error"
    )


class Task(BaseModel):
    """One invented task."""

    model_config = ConfigDict(frozen=True)

    instruction: str = Field(min_length=10, max_length=400)
    queries: str = Field(min_length=3, max_length=400)
    passages: str = Field(min_length=3, max_length=400)


class _Tasks(BaseModel):
    tasks: list[Task]


class _Example(BaseModel):
    query: str
    positive: str
    negative: str


@dataclass(frozen=True)
class _Place:
    """Which example of which task a request is for."""

    task: Task
    task_index: int
    row: int
    style: str


def invent_tasks(chat: ChatModel, settings: TaskSettings, *, llm: LlmSettings, seed: int) -> list[Task]:
    """Up to `settings.tasks` tasks with different instructions, of kinds drawn by weight.

    Fewer, and a line on standard error, where the model repeats itself. Raises EndpointError when no reply can be used
    or the endpoint is down.
    """
    template = read_prompt(TASK, ("kind", "count"))
    kinds = read_variants(TASK_KINDS)
    weights = weights_for(kinds, settings.kinds, "kinds")
    found: dict[str, Task] = {}
    problems: Counter[str] = Counter()
    asked = 0
    for wave in range(WAVES):
        missing = settings.tasks - len(found)
        if missing <= 0:
            break
        drawn = draw(weights, -(-missing // AT_ONCE), random.Random(fingerprint([seed, "tasks", wave])))
        requests = [
            _task_request(template, kinds[kind], settings.field, llm, seed + asked + place)
            for place, kind in enumerate(drawn)
        ]
        asked += len(requests)
        replies = complete_structured(
            chat, requests, _Tasks, concurrency=llm.concurrency, label="invent tasks", total=len(requests)
        )
        for reply in replies:
            problems[reply.problem] += bool(reply.problem)
            for task in reply.value.tasks if reply.value else ():
                found.setdefault(normal_form(task.instruction), task)
    if not found:
        listed = ", ".join(f"{count} {problem}" for problem, count in problems.items() if count)
        raise EndpointError(
            f"none of {asked} replies holds a task ({listed or 'all empty'}); try another model."
        )
    if len(found) < settings.tasks:
        say(f"the model invented {len(found)} different tasks, not {settings.tasks}.")
    return list(found.values())[: settings.tasks]


def _task_request(template: str, kind: Variant, field: str, llm: LlmSettings, seed: int) -> Request:
    texts = {"field": field, "kind": kind.text, "count": str(AT_ONCE)}
    return Request((Message("user", filled(template, texts)),), llm.sampling(seed))


def generate_for_tasks(
    tasks: Sequence[Task], chat: ChatModel, settings: TaskSettings, *, llm: LlmSettings, seed: int
) -> Iterator[Outcome]:
    """Write `settings.per_task` examples of each task; an outcome for each, in order.

    Style and length of an example depend on the task, its number and the seed only. Counts: rows (examples asked
    for), made, `invalid` for a reply that is not the JSON asked for, `duplicate` for a query that came before, and one
    for each other thing that was wrong with a text of it (see replies.py). Raises as `generate_negatives` does.
    """
    template = read_prompt(EXAMPLE, ("instruction", "style"))
    styles = read_variants(STYLES)
    weights = weights_for(styles, settings.styles, "styles")
    schema = schema_of(_Example)

    def asked() -> Iterator[tuple[_Place, list[Request]]]:
        for index, task in enumerate(tasks):
            rng = random.Random(fingerprint([seed, "examples", task.instruction]))
            for number, style in enumerate(draw(weights, settings.per_task, rng)):
                texts = {
                    **task.model_dump(), "style": styles[style].text, "length": rng.choice(LENGTHS),
                    "number": str(number + 1), "total": str(settings.per_task),
                }  # fmt: skip
                request = Request((Message("user", filled(template, texts)),), llm.sampling(seed + number))
                place = _Place(task, index, index * settings.per_task + number, style)
                yield place, [with_schema(request, schema)]

    answered = ask_each(
        chat, asked(), concurrency=llm.concurrency, label="write examples",
        total=len(tasks) * settings.per_task,
    )  # fmt: skip
    shared = {"kind": "task", "model": chat.name, "prompt": fingerprint(template)}
    return without_duplicates(_outcomes(answered, shared, Usefulness(settings.max_bad)))


def _outcomes(
    answered: Iterator[tuple[_Place, list[Reply]]], shared: Mapping[str, str], usefulness: Usefulness
) -> Iterator[Outcome]:
    for place, (reply,) in answered:
        example, problem = _checked(reply)
        counted = usefulness.count(problem or "made")
        pair = None
        if example is not None:
            record = {**shared, "row": place.row}
            pair = TrainingPair(
                example.query, example.positive, (example.negative,), place.task.instruction, SOURCE,
                {
                    RECORD: {**record, "task": place.task_index, "style": place.style},
                    "generated": [record],
                },
            )  # fmt: skip
        yield Outcome(pair, ("rows", counted))
    usefulness.finish()


def consistent_examples(
    outcomes: Iterable[Outcome], settings: ConsistencySettings, *, retriever: Retriever | None = None
) -> Iterator[Outcome]:
    """Examples whose positive the retriever finds for the query among all passages written.

    The passages searched are the examples themselves, so all of them are in memory. Further count: `inconsistent`.
    Raises as `open_finder` does.
    """
    written = list(outcomes)
    pairs = [outcome.pair for outcome in written if outcome.pair is not None]
    if not pairs:
        return iter(written)
    corpus = [
        Passage(f"{_row_of(pair)}{suffix}", text)
        for pair in pairs
        for suffix, text in (("", pair.positive), ("-negative", pair.negatives[0]))
    ]
    find = open_finder(corpus, settings, retriever)
    return keep_consistent(written, find, _row_of)


def _row_of(pair: TrainingPair) -> str:
    return str(pair.provenance[RECORD]["row"])


def _checked(reply: Reply) -> tuple[_Example | None, str]:
    """The example in a reply, its texts cleaned; or None and what is wrong with it."""
    result = parsed(reply, _Example)
    if result.value is None:
        return None, result.problem
    given = result.value
    query = check_reply(Reply(given.query), [given.positive, given.negative], least_words=2)
    positive = check_reply(Reply(given.positive), [given.query], least_words=3)
    negative = check_reply(Reply(given.negative), [given.positive, given.query], least_words=3)
    problem = query.problem or positive.problem or negative.problem
    if problem:
        return None, problem
    return _Example(query=" ".join(query.text.split()), positive=positive.text, negative=negative.text), ""
