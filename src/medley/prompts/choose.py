"""Choose an instruction: split the dev queries, let a method find candidates by one half, prove the best by the other.

In: a scorer, the seed instruction (what the sources or the model say), settings; a chat model for gepa and, if there is
one, for generic. Out: a `Choice`, which prompt.json holds. The seed stays unless the best candidate is better beyond
chance on queries that had no part in finding it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from medley.errors import InputError
from medley.leaks.chosen import ChosenOn, as_extra
from medley.llm import ChatModel, LlmSettings
from medley.progress import say
from medley.prompts.candidates import Found, Problem, from_list, only_seed
from medley.prompts.checks import known_from
from medley.prompts.edit import edit
from medley.prompts.generic import generic_instructions
from medley.prompts.gepa import gepa
from medley.prompts.library import Library, read_library
from medley.prompts.proof import PairedTest, Proof, halves, prove
from medley.prompts.scoring import Scorer
from medley.prompts.settings import BUDGETS, PromptSettings


@dataclass(frozen=True)
class Chat:
    """A language model and how it is asked."""

    model: ChatModel
    settings: LlmSettings


@dataclass(frozen=True)
class Choice:
    """The instruction to use, the one it had to beat, all that was tried, and the proof.

    `drawn_from` are the instructions to draw from while training; only `generic` has any.
    """

    instruction: str
    seed_instruction: str
    method: str
    found: Found | None = None
    proof: Proof | None = None
    drawn_from: tuple[str, ...] = ()
    library_version: int | None = None
    cost: Mapping[str, float] = field(default_factory=dict)
    chosen_on: tuple[ChosenOn, ...] = ()

    @property
    def changes(self) -> bool:
        """Whether the instruction is another than the seed."""
        return self.instruction != self.seed_instruction

    def as_json(self) -> dict[str, Any]:
        """As prompt.json holds it."""
        found = self.found
        return {
            "instruction": self.instruction,
            "seed_instruction": self.seed_instruction,
            "method": self.method,
            "candidates": [candidate.as_json() for candidate in found.candidates] if found else [],
            "proof": self.proof.as_json() if self.proof else None,
            "ended": found.ended if found else "",
            "complete": found.complete if found else True,
            "rejected": [{"instruction": r.instruction, "reason": r.reason} for r in found.rejected]
            if found
            else [],
            "counts": dict(found.counts) if found else {},
            "drawn_from": list(self.drawn_from),
            "library_version": self.library_version,
            "cost": dict(self.cost),
            **as_extra(self.chosen_on),
        }


def untouched(seed_instruction: str) -> Choice:
    """The choice of the method `none` without a look at dev: the instruction stays, nothing is scored."""
    return Choice(seed_instruction, seed_instruction, "none")


def drawn(seed_instruction: str, settings: PromptSettings, *, seed: int, chat: Chat | None = None) -> Choice:
    """`generic` before training: the instruction stays, and training queries draw from many others."""
    library = read_library(settings.library)
    texts, rejected = _generic(settings, library, seed, chat)
    found = Found((), f"{len(texts)} instructions to draw from", rejected)
    return Choice(seed_instruction, seed_instruction, "generic", found, None, tuple(texts), library.version)


def choose(
    settings: PromptSettings,
    seed_instruction: str,
    scorer: Scorer,
    *,
    test: PairedTest,
    seed: int,
    chat: Chat | None = None,
) -> Choice:
    """Find candidates by one half of the dev queries, prove the best by the other.

    `test` is the paired test of two systems' scores. Raises InputError where the method needs a language model and
    there is none; EndpointError where it never answers.
    """
    parts = halves(scorer, seed)
    problem = Problem(seed_instruction, scorer, parts.choose, seed)
    library = read_library(settings.library)
    found = _search(settings, problem, library, chat)
    best = found.best.instruction
    proof = prove(
        scorer,
        parts.confirm,
        best=best,
        seed_instruction=seed_instruction,
        library=library.texts,
        test=test,
        alpha=settings.alpha,
        seed=seed,
    )
    if not found.complete:
        say(f"prompts: the search is not what was asked for: {found.ended}")
    return Choice(
        best if proof.verdict == "better" else seed_instruction,
        seed_instruction,
        settings.method,
        found,
        proof,
        library_version=library.version,
        cost={"queries_encoded": scorer.encoded, "dev_queries": len(scorer.queries)},
    )


def _search(settings: PromptSettings, problem: Problem, library: Library, chat: Chat | None) -> Found:
    if settings.method == "none":
        return only_seed(problem)
    if settings.method == "library":
        return from_list(problem, library.origins)
    if settings.method == "generic":
        texts, rejected = _generic(settings, library, problem.seed, chat)
        found = from_list(problem, texts)
        return Found(found.candidates, found.ended, rejected)
    if settings.method == "edit":
        return edit(problem)
    if chat is None:
        raise InputError(
            "prompts.method: gepa needs a language model to reflect; name one at `llm` (--llm-url and --llm-model), "
            "or use edit, which needs none."
        )
    queries = [query.text for query in problem.scorer.queries]
    known = known_from(queries, [problem.seed_instruction, *library.texts])
    return gepa(problem, BUDGETS[settings.budget], chat=chat.model, llm=chat.settings, known=known)


def _generic(settings: PromptSettings, library: Library, seed: int, chat: Chat | None) -> Any:
    return generic_instructions(
        settings.count,
        library,
        seed=seed,
        chat=chat.model if chat else None,
        llm=chat.settings if chat else None,
    )
