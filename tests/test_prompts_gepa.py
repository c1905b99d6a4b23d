"""gepa against a scripted proposer, a loopback server and a real one: what is known to go wrong in it is told."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from chat import LLM, Scripted
from llm_server import serving
from medley.errors import EndpointError
from medley.llm import LlmSettings, Reply, ReplyFile, Sampling, open_chat
from medley.llm.cache import Cached
from medley.prompts.choose import Chat, Choice, choose
from medley.prompts.generic import generic_instructions
from medley.prompts.gepa import sentence_of
from medley.prompts.library import read_library
from medley.prompts.settings import PromptSettings
from prompt_parts import KnownScorer, dev_set, paired_test, words_of
from transformers_serve import make_chatty, needs_serving, transformers_serve

SEED = "Given a question, find documents"
STEPS = [
    "Given a question, retrieve documents",
    "Given a medical question, retrieve documents",
    "Given a medical question, retrieve passages",
    "Given a medical question, retrieve passages that answer it",
]
BEST = STEPS[-1]
GEPA = PromptSettings(method="gepa", budget="light")


def improving(prompt: str, sampling: Sampling) -> str:
    """The next step after the instruction that the prompt shows; every third reply is a bad idea."""
    shown = re.search(r"The instruction now:\n(.*)\n", prompt)
    assert shown is not None
    if (sampling.seed or 0) % 3 == 1:
        return f"Here is a better instruction:\n\nFind things like number {sampling.seed}."
    place = STEPS.index(shown[1]) if shown[1] in STEPS else -1
    return STEPS[min(place + 1, len(STEPS) - 1)]


def tuned(chat: object, *, queries: int = 400, seed: int = 1) -> Choice:
    scorer = KnownScorer(words_of(BEST), [dev_set(queries)], 0.02)
    return choose(GEPA, SEED, scorer, test=paired_test, seed=seed, chat=Chat(chat, LLM))  # type: ignore[arg-type]


def test_the_known_best_instruction_is_found_through_its_parents(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    chat = Scripted(improving)
    choice = tuned(chat)
    assert choice.instruction == BEST and choice.proof is not None and choice.proof.verdict == "better"
    found = choice.found
    assert found is not None and found.complete
    line, place = [], found.candidates.index(found.best)
    while place is not None:
        line.append(found.candidates[place].instruction)
        place = found.candidates[place].parent
    assert line[::-1] == [SEED, *STEPS], "each from the one before"
    assert found.counts["reflections"] <= 16 and found.counts["accepted"] == len(found.candidates) - 1
    assert list(tmp_path.iterdir()) == [], "gepa writes nothing"
    assert capsys.readouterr().out == "", "and prints nothing"
    assert all("Query: " in p and "What tells them apart" in p and "on rank 3" in p for p in chat.prompts)


def test_the_budget_ends_the_search_between_iterations_and_says_so() -> None:
    chat = Scripted(lambda prompt, sampling: f"Find texts of number {sampling.seed}")
    found = tuned(chat).found
    assert found is not None and found.ended == "the budget of 16 reflections is spent"
    assert found.counts["reflections"] == 16 == found.counts["proposed"] == len(chat.prompts)
    reasons = {r.reason for r in found.rejected}
    assert reasons <= {"no better on the queries that it was written for"}
    assert len(found.rejected) + len(found.candidates) - 1 == 16, "every proposal is accounted for"


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ("", "empty"),
        ("%$#@ !!! ??? ...", "empty"),
        ("the the the the the the", "repeats itself"),
        ("does the heart heal in case0", "repeats a dev query"),
        ("line one is here\nline two is here", "several lines instead of one sentence"),
        (Reply("Given a quest", "length", 10, 5), "truncated"),
        (SEED, "was tried before"),
    ],
)
def test_a_model_that_says_nothing_usable_does_not_look_like_success(
    said: str | Reply, reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    choice = tuned(Scripted(lambda prompt, sampling: said))
    found = choice.found
    assert found is not None and choice.instruction == SEED and not found.complete
    assert "proposed nothing that could be tried" in found.ended and "in a row" in found.ended
    assert found.counts["proposed"] == 0 and {r.reason.partition(" (")[0] for r in found.rejected} == {reason}
    assert "not what was asked for" in capsys.readouterr().err
    assert choice.as_json()["complete"] is False


def test_an_endpoint_lost_in_the_middle_leaves_the_best_so_far() -> None:
    def until_lost(prompt: str, sampling: Sampling) -> str:
        if len(chat.prompts) > 4:
            raise EndpointError("http://127.0.0.1:9/v1: cannot be reached.")
        return improving(prompt, Sampling(0))

    chat = Scripted(until_lost)
    choice = tuned(chat)
    assert choice.found is not None and not choice.found.complete
    assert choice.found.ended.startswith("the language model's endpoint was lost: http://127.0.0.1:9/v1")
    assert choice.instruction in STEPS and choice.changes and len(chat.prompts) == 5


def test_an_endpoint_that_was_never_there_is_an_error() -> None:
    def lost(prompt: str, sampling: Sampling) -> str:
        raise EndpointError("http://127.0.0.1:9/v1: cannot be reached.")

    with pytest.raises(EndpointError, match="cannot be reached"):
        tuned(Scripted(lost))


def test_a_spent_token_budget_is_told() -> None:
    def spent(prompt: str, sampling: Sampling) -> str | Reply:
        return improving(prompt, Sampling(0)) if len(chat.prompts) < 3 else Reply("", "budget")

    chat = Scripted(spent)
    found = tuned(chat).found
    assert (
        found is not None and "budget is spent; raise llm.budget_tokens" in found.ended and not found.complete
    )


def test_a_fault_of_ours_is_not_swallowed() -> None:
    class Broken(KnownScorer):
        def similarities(self, instruction: str, row: int) -> object:  # type: ignore[override]
            raise RuntimeError("a defect")

    scorer = Broken(words_of(BEST), [dev_set(100)])
    with pytest.raises(RuntimeError, match="a defect"):
        choose(GEPA, SEED, scorer, test=paired_test, seed=1, chat=Chat(Scripted(improving), LLM))  # type: ignore[arg-type]


def test_a_killed_search_goes_through_the_same_steps_and_pays_for_nothing_twice(tmp_path: Path) -> None:
    whole = tuned(Scripted(improving))
    replies = tmp_path / "replies.jsonl"

    class Killed(BaseException):
        pass

    def dies(prompt: str, sampling: Sampling) -> str:
        if len(first.prompts) > 6:
            raise Killed
        return improving(prompt, sampling)

    first = Scripted(dies)
    with pytest.raises(Killed):
        tuned(Cached(first, ReplyFile(replies)))
    second = Scripted(improving)
    again = tuned(Cached(second, ReplyFile(replies)))
    assert again.as_json() == whole.as_json()
    assert len(first.prompts) - 1 + len(second.prompts) == whole.found.counts["replies"]  # type: ignore[union-attr]


def test_few_dev_queries_still_work() -> None:
    for queries in (2, 3, 5, 12):
        choice = tuned(Scripted(improving), queries=queries)
        assert choice.found is not None and choice.proof is not None
        assert choice.found.best.score >= choice.found.candidates[0].score


@pytest.mark.parametrize(
    ("reply", "sentence", "problem"),
    [
        ("Given a claim, find evidence.", "Given a claim, find evidence", ""),
        (
            'Here is the new instruction:\n\n"Given a claim, find evidence"',
            "Given a claim, find evidence",
            "",
        ),
        ("```\nGiven a claim,  find evidence\n```", "Given a claim, find evidence", ""),
        ("<think>hmm\nso</think>\nGiven a claim, find evidence", "Given a claim, find evidence", ""),
        ("Sure! Improved instruction: Given a claim, find evidence", "Given a claim, find evidence", ""),
        ("one\ntwo", "", "several lines instead of one sentence"),
        ("  \n", "", "empty"),
    ],
)
def test_the_sentence_in_a_reply(reply: str, sentence: str, problem: str) -> None:
    assert sentence_of(reply) == (sentence, problem)


def test_generic_instructions_written_by_a_model() -> None:
    def ten(prompt: str, sampling: Sampling) -> str:
        rows = [f'"Find texts about thing{(sampling.seed or 0) % 7} in way number {i}"' for i in range(10)]
        return f'{{"instructions": [{", ".join(rows)}, "Rank by nDCG"]}}'

    found, rejected = generic_instructions(20, read_library(), seed=1, chat=Scripted(ten), llm=LLM)
    assert len(found) == 20 and set(found.values()) == {"generic: m"}
    assert "names a metric or a rank ('nDCG')" in {r.reason for r in rejected}
    with pytest.raises(EndpointError, match="wrote 0 of 20 generic instructions"):
        generic_instructions(20, read_library(), seed=1, chat=Scripted(lambda p, s: "blah"), llm=LLM)


def test_over_http_with_an_endpoint_that_dies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    with serving() as server:
        server.script = lambda number, body: (
            improving(body["messages"][-1]["content"], Sampling(0)) if number < 3 else "<drop>"
        )
        llm = LlmSettings(base_url=server.url, model="m", retries=1, backoff_s=0)
        chat = Chat(open_chat(llm, tmp_path / "replies.jsonl"), llm)
        scorer = KnownScorer(words_of(BEST), [dev_set(200)], 0.02)
        choice = choose(GEPA, SEED, scorer, test=paired_test, seed=1, chat=chat)  # type: ignore[arg-type]
    assert choice.found is not None and "endpoint was lost" in choice.found.ended
    assert choice.instruction in STEPS


@pytest.fixture(scope="module")
def tiny_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """A `transformers serve` process with the tiny base: its address and the model's name."""
    folder = make_chatty(tmp_path_factory.mktemp("serve") / "tiny")
    with transformers_serve(folder) as url:
        yield url, str(folder)


@pytest.mark.slow
@needs_serving
def test_a_real_endpoint_whose_text_is_nonsense(tiny_server: tuple[str, str], tmp_path: Path) -> None:
    url, name = tiny_server
    llm = LlmSettings(base_url=url, model=name, max_tokens=24, timeout_s=120)
    chat = open_chat(llm, tmp_path / "replies.jsonl")
    scorer = KnownScorer(words_of(BEST), [dev_set(60)], 0.02)
    choice = choose(GEPA, SEED, scorer, test=paired_test, seed=1, chat=Chat(chat, llm))  # type: ignore[arg-type]
    found = choice.found
    assert found is not None and chat.ledger.calls > 0 and found.counts["replies"] == chat.ledger.calls
    assert found.ended and (found.complete or "nothing that could be tried" in found.ended)
    assert len(found.rejected) + len(found.candidates) - 1 == found.counts["replies"], (
        "every reply is accounted for"
    )
    again = open_chat(llm, tmp_path / "replies.jsonl")
    scorer = KnownScorer(words_of(BEST), [dev_set(60)], 0.02)
    repeated = choose(GEPA, SEED, scorer, test=paired_test, seed=1, chat=Chat(again, llm))  # type: ignore[arg-type]
    assert repeated.as_json() == choice.as_json() and again.ledger.calls == 0
