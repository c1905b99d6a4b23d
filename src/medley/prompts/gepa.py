"""The method `gepa`: a language model reads how the instruction failed and writes a better one (arXiv 2507.19457).

The gepa package keeps the pool of candidates, picks parents from the Pareto front of the validation queries and decides
what is accepted; scoring, feedback, asking and checking are ours. Its traps are stepped round: it writes no folder (no
run_dir), it does not begin an iteration that the budget cannot finish, it prints nothing, and a search in which the
model never said anything usable is reported as such. Resuming needs no state of its: scores are deterministic and
replies are on disk, so a killed search goes through the same steps again and pays for nothing twice.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from medley.errors import EndpointError
from medley.llm import ChatModel, LlmSettings, Message, bare, complete
from medley.progress import say
from medley.prompt_file import filled, read_prompt
from medley.prompts.candidates import Candidate, Found, Problem, Rejected
from medley.prompts.checks import Known, problem_of
from medley.prompts.feedback import in_words, look_at
from medley.prompts.settings import Budget

PROMPT = Path(__file__).with_name("reflect.txt")
COMPONENT = "instruction"
TRIES = 3
"""Questions in one reflection, where the reply cannot be used."""
_LEAD = re.compile(
    r"^(?:sure|okay|here\b|the (?:new|improved|better)|new instruction|improved|instruction)[^:]*:\s*", re.I
)


def gepa(problem: Problem, budget: Budget, *, chat: ChatModel, llm: LlmSettings, known: Known) -> Found:
    """Evolve the seed instruction. The choosing queries are split into those to learn from and those to select by.

    Ends with the best so far when the budget is spent, when the endpoint is lost or when nothing usable comes back,
    and says which. Raises EndpointError when the endpoint never answered.
    """
    from gepa import optimize

    rows = problem.rows[: 2 * budget.queries]
    learn, select = rows[: len(rows) // 2], rows[len(rows) // 2 :]
    learn = learn if len(learn) else select
    search = _Search(problem, replace(budget, minibatch=min(budget.minibatch, len(learn))), chat, llm, known)
    adapter: Any = search  # typed by protocols that its own dataclasses do not fit
    result: Any = optimize(
        seed_candidate={COMPONENT: problem.seed_instruction},
        trainset=[int(row) for row in learn],
        valset=[int(row) for row in select],
        adapter=adapter,
        reflection_minibatch_size=search.budget.minibatch,
        stop_callbacks=adapter.must_stop,
        logger=search,
        run_dir=None,
        track_best_outputs=False,
        display_progress_bar=False,
        raise_on_exception=True,
        seed=problem.seed,
    )
    if search.failure is not None:
        raise search.failure
    if search.lost is not None and not search.answers:
        raise search.lost
    return search.found(result.candidates, result.parents, result.val_aggregate_scores, len(select))


class _Search:
    """What gepa calls back: evaluate, feedback, proposals, the end. Keeps count of what it hides."""

    def __init__(
        self, problem: Problem, budget: Budget, chat: ChatModel, llm: LlmSettings, known: Known
    ) -> None:
        self.problem, self.budget, self.chat, self.llm, self.known = problem, budget, chat, llm, known
        self.template = read_prompt(PROMPT, ("instruction", "feedback"))
        self.reflections = self.answers = self.idle = 0
        self.tried: list[str] = []
        self.rejected: list[Rejected] = []
        self.problems: Counter[str] = Counter()
        self.seen: set[str] = {problem.seed_instruction}
        self.lost: EndpointError | None = None
        self.failure: Exception | None = None
        self.ended = ""

    # What gepa asks for

    def evaluate(self, batch: list[int], candidate: dict[str, str], capture_traces: bool = False) -> Any:
        """Scores of queries (their places) under a candidate, as gepa's EvaluationBatch."""
        from gepa.core.adapter import EvaluationBatch

        scores = self.problem.scorer.scores([candidate[COMPONENT]], np.array(batch, dtype=int))[0]
        values = [float(score) for score in scores]
        return EvaluationBatch(values, values, list(batch) if capture_traces else None)

    def make_reflective_dataset(
        self, candidate: dict[str, str], eval_batch: Any, components_to_update: list[str]
    ) -> Mapping[str, Sequence[Mapping[str, Any]]]:
        """What happened to each query of a minibatch, in words."""
        try:
            told = [
                in_words(look_at(self.problem.scorer, candidate[COMPONENT], row))
                for row in eval_batch.trajectories or []
            ]
        except Exception as problem:  # gepa would log it and go on as if nothing had been wrong
            self.failure = self.failure or problem
            raise
        return {COMPONENT: [{"Feedback": text} for text in told]}

    def propose_new_texts(
        self,
        candidate: dict[str, str],
        reflective_dataset: Mapping[str, Sequence[Mapping[str, Any]]],
        components_to_update: list[str],
    ) -> dict[str, str]:
        """Ask for a better instruction; an empty result where none came back that may be tried.

        Nothing is raised: gepa would swallow it and ask a second time.
        """
        feedback = "\n\n".join(str(entry["Feedback"]) for entry in reflective_dataset[COMPONENT])
        try:
            text = self._reflected(candidate[COMPONENT], feedback)
        except EndpointError as problem:
            self.lost = problem
            return {}
        except Exception as problem:
            self.failure = problem
            return {}
        self.idle = 0 if text else self.idle + 1
        said = f"tries {text!r}" if text else f"nothing to try ({self.rejected[-1].reason})"
        say(f"reflection {self.reflections} of {self.budget.reflections}: {said}")
        return {COMPONENT: text} if text else {}

    def must_stop(self, state: Any) -> bool:
        """Whether to begin no further iteration; `ended` says why."""
        self.ended = self._reason(state)
        return bool(self.ended)

    def _reason(self, state: Any) -> str:
        if self.failure is not None:
            return "failed"
        if self.lost is not None:
            return f"the language model's endpoint was lost: {self.lost}"
        if self.reflections >= self.budget.reflections:
            return f"the budget of {self.budget.reflections} reflections is spent"
        if self.idle >= self.budget.reflections // 2:
            return f"{self.idle} reflections in a row brought nothing that may be tried"
        if state.i >= 4 * self.budget.reflections:
            return "the instruction fails on too few queries to learn from"
        return ""

    def log(self, message: str) -> None:
        """Where gepa's own log goes: nowhere; it would be standard output, which is for results."""

    # What we do with it

    def _reflected(self, instruction: str, feedback: str) -> str:
        """One reflection: a proposal that may be tried, or "" after TRIES questions."""
        prompt = filled(self.template, {"instruction": instruction or "(none)", "feedback": feedback})
        number = self.reflections
        self.reflections += 1
        for attempt in range(TRIES):
            sampling = self.llm.sampling(self.problem.seed + 1000 * number + attempt)
            reply = complete(self.chat, (Message("user", prompt),), sampling=sampling)
            if reply.problem == "over_budget":
                raise EndpointError(
                    "the language model's budget is spent; raise llm.budget_tokens or budget_usd."
                )
            self.answers += 1
            text, problem = ("", reply.problem) if reply.problem else sentence_of(reply.text)
            if not problem:
                problem = "was tried before" if text in self.seen else problem_of(text, self.known)
            if not problem:
                self.seen.add(text)
                self.tried.append(text)
                return text
            self.problems[problem.partition(" (")[0]] += 1
            self.rejected.append(Rejected(text or " ".join(reply.text.split())[:200], problem))
        return ""

    def found(
        self, texts: Sequence[dict[str, str]], parents: Sequence[Any], scores: Sequence[float], selecting: int
    ) -> Found:
        """gepa's pool as candidates. The seed and the final best are scored on all choosing queries, as elsewhere."""
        pool = [text[COMPONENT] for text in texts]
        means = self.problem.scorer.means(pool, self.problem.rows)
        candidates = [
            Candidate(
                text, float(mean), len(self.problem.rows), True,
                "seed" if place == 0 else f"gepa: {self.llm.name}",
                next((p for p in parents[place] or [] if p is not None), None),
            )
            for place, (text, mean) in enumerate(zip(pool, means, strict=True))
        ]  # fmt: skip
        dropped = [text for text in self.tried if text not in pool]
        self.rejected += [
            Rejected(text, "no better on the queries that it was written for") for text in dropped
        ]
        counts = {
            "reflections": self.reflections,
            "replies": self.answers,
            "proposed": len(self.tried),
            "accepted": len(pool) - 1,
            "selecting_queries": selecting,
            **{f"rejected: {name}": number for name, number in self.problems.items()},
        }
        ended = self.ended
        if not self.tried:
            ended += "; the language model proposed nothing that could be tried, so nothing was searched"
        complete = self.lost is None and bool(self.tried)
        return Found(tuple(candidates), ended, tuple(self.rejected), counts, complete)


def sentence_of(text: str) -> tuple[str, str]:
    """(the instruction in a reply, ""), or ("", what is wrong with it)."""
    lines = [line.strip() for line in bare(text).splitlines() if re.search(r"\w", line)]
    if len(lines) > 1 and lines[0].endswith(":"):
        lines = lines[1:]
    if not lines:
        return "", "empty"
    if len(lines) > 1:
        return "", "several lines instead of one sentence"
    sentence = _LEAD.sub("", lines[0]).strip(" \t\"'`*“”").rstrip(".")
    return " ".join(sentence.split()), "" if sentence else "empty"
