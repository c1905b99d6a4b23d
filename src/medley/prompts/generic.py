"""The method `generic`: many instructions that name no field, one drawn at random for each training query.

A regulariser rather than an optimiser (STM's GP10 to GP100, section 1.2). A language model writes them; without one
they are drawn from those of the library that name no field.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel

from medley.errors import EndpointError, InputError
from medley.fingerprint import fingerprint
from medley.llm import ChatModel, LlmSettings, Message, Request, complete_structured
from medley.prompt_file import filled, read_prompt
from medley.prompts.candidates import Rejected
from medley.prompts.checks import known_from, problem_of
from medley.prompts.library import Library

PROMPT = Path(__file__).with_name("generic.txt")
AT_ONCE = 10
"""Instructions asked for in one request."""
WAVES = 6
"""Requests for what is missing, where replies repeat or cannot be read."""


class _Written(BaseModel):
    instructions: list[str]


def generic_instructions(
    count: int, library: Library, *, seed: int, chat: ChatModel | None = None, llm: LlmSettings | None = None
) -> tuple[dict[str, str], tuple[Rejected, ...]]:
    """`count` instructions that name no field -> their origin, and what was rejected.

    Raises InputError where the library holds too few and there is no language model; EndpointError when the model is
    down or wrote too few that can be used.
    """
    if chat is None or llm is None:
        free = library.domain_free
        if count > len(free):
            raise InputError(
                f"prompts.count: {count} generic instructions are wanted and the library has {len(free)} that name no "
                "field; ask for fewer, or name a language model at `llm`."
            )
        drawn = set(random.Random(fingerprint([seed, "generic"])).sample(free, count))
        return {text: origin for text, origin in library.origins.items() if text in drawn}, ()
    return _written(count, library, seed, chat, llm)


def _written(
    count: int, library: Library, seed: int, chat: ChatModel, llm: LlmSettings
) -> tuple[dict[str, str], tuple[Rejected, ...]]:
    template = read_prompt(PROMPT, ("count", "known"))
    known = known_from([], library.texts)
    found: list[str] = []
    rejected: list[Rejected] = []
    problems: Counter[str] = Counter()
    for wave in range(WAVES):
        missing = count - len(found)
        if missing <= 0:
            break
        wanted = {"count": str(AT_ONCE), "known": "; ".join(found) or "(none yet)"}
        message = Message("user", filled(template, wanted))
        requests = [
            Request((message,), llm.sampling(seed + 1000 * wave + number))
            for number in range(-(-missing // AT_ONCE))
        ]
        for answer in complete_structured(
            chat,
            requests,
            _Written,
            concurrency=llm.concurrency,
            label="generic instructions",
            total=len(requests),
        ):
            problems[answer.problem] += 1
            for text in answer.value.instructions if answer.value else ():
                text = " ".join(text.split()).rstrip(".")
                problem = "said before" if text in found else problem_of(text, known)
                if problem:
                    rejected.append(Rejected(text, problem))
                else:
                    found.append(text)
    if len(found) < count:
        said = ", ".join(f"{number} {name or 'readable'}" for name, number in problems.items())
        raise EndpointError(
            f"the language model wrote {len(found)} of {count} generic instructions (replies: {said}); ask for fewer, "
            "use another model, or leave `llm` out to draw them from the library."
        )
    return dict.fromkeys(found[:count], f"generic: {llm.name}"), tuple(rejected)


def drawn_for(queries: Sequence[str], instructions: Sequence[str], *, seed: int) -> list[str]:
    """The instruction that each training query is given, at random; the same query gets the same one."""
    return [instructions[int(fingerprint([seed, query]), 16) % len(instructions)] for query in queries]
