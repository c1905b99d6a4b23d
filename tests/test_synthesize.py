"""Negatives and queries by a language model, against a scripted server, and what becomes of bad replies."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from medley.collections import Passage
from medley.errors import EndpointError, InputError
from medley.fingerprint import fingerprint
from medley.llm import LlmSettings, Reply, open_chat
from medley.pairs import TrainingPair
from medley.synthesize import GenerationSettings, generate_negatives, generate_queries
from medley.synthesize.negatives import HARD_NEGATIVE, filled, read_prompt
from medley.synthesize.replies import check_reply, clean, is_copy
from test_llm import ChatServer, completion, serving

POSITIVE = (
    "Metformin lowers glucose production in the liver and is usually the first tablet in type 2 diabetes."
)
MINED = "Insulin is injected under the skin of the belly, at changing places, with a short needle or a pen."
GOOD = "Metformin tablets are swallowed with food so that the stomach is less upset in the first weeks."
PAIR = TrainingPair("which drug comes first in type 2 diabetes", POSITIVE, (MINED,), "Find answers", "med")


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[ChatServer]:
    monkeypatch.setattr("medley.llm._backoff_s", lambda attempt: 0.01)
    with serving() as running:
        yield running


def chat_with(server: ChatServer, cache: Path | None = None, **values: Any) -> Any:
    return open_chat(LlmSettings(base_url=server.url, model="m", **values), cache)


def test_a_negative_is_added_with_its_provenance(server: ChatServer) -> None:
    server.script = lambda number, body: f'Here is a hard negative passage:\n\n"{GOOD}"'
    made = generate_negatives([PAIR], chat_with(server), GenerationSettings(), seed=5)
    assert made.counts == {"rows": 1, "made": 1}
    assert made.pairs[0].negatives == (MINED, GOOD)
    assert made.pairs[0].provenance == {
        "generated": {"kind": "llm", "model": "m", "prompt": fingerprint(HARD_NEGATIVE.read_text()), "row": 0}
    }
    prompt = server.bodies[0]["messages"][0]["content"]
    assert all(text in prompt for text in (PAIR.query, PAIR.instruction, POSITIVE, MINED))


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        ("I'm sorry, but I can't help with that request.", "refusal"),
        ("As an AI language model, I cannot write medical advice.", "refusal"),
        ((GOOD, "content_filter"), "refusal"),
        ("", "empty"),
        ("  \n…", "empty"),
        ((None, "stop"), "empty"),
        ("<think>let me see, " + GOOD, "empty"),
        ((GOOD[:60], "length"), "truncated"),
        (POSITIVE.upper().replace(",", ""), "copy"),
        (POSITIVE + " It is cheap.", "copy"),
        (MINED, "copy"),
        (GOOD + " This passage does not answer the query.", "commentary"),
        (GOOD + "\n\nNote: it shares terms with the positive.", "commentary"),
        ("Metformin is a drug.", "too_short"),
        (400, "rejected"),
    ],
)
def test_a_bad_reply_is_counted_and_its_row_stays(server: ChatServer, answer: Any, problem: str) -> None:
    bad = TrainingPair("bad " + PAIR.query, POSITIVE, (MINED,))

    def script(number: int, body: dict[str, Any]) -> Any:
        return answer if "Query: bad" in body["messages"][0]["content"] else GOOD

    server.script = script
    made = generate_negatives([PAIR, bad], chat_with(server), GenerationSettings(), seed=0)
    assert made.counts == {"rows": 2, "made": 1, problem: 1}
    assert made.pairs[1] == bad and made.pairs[0].negatives[-1] == GOOD


def test_too_many_bad_replies_are_an_error_that_says_which(server: ChatServer) -> None:
    server.script = lambda number, body: "I cannot help with that." if number % 3 else GOOD
    pairs = [TrainingPair(f"{PAIR.query} {i}", POSITIVE) for i in range(6)]
    with pytest.raises(EndpointError, match=r"4 of 6 replies are unusable \(4 refusal\)"):
        generate_negatives(pairs, chat_with(server), GenerationSettings(concurrency=1), seed=0)
    made = generate_negatives(pairs, chat_with(server), GenerationSettings(max_bad=0.7), seed=0)
    assert made.counts["made"] == 2


def test_several_negatives_of_a_row_differ(server: ChatServer) -> None:
    other = (
        "Gliclazide makes the pancreas release insulin, so a missed meal may let the glucose fall too far."
    )
    server.script = lambda number, body: GOOD if body["seed"] < 2 else other
    made = generate_negatives([PAIR], chat_with(server), GenerationSettings(per_query=3), seed=0)
    assert made.counts == {"rows": 1, "made": 2, "copy": 1}
    assert made.pairs[0].negatives == (MINED, GOOD, other)


def test_an_interrupted_generation_goes_on_where_it_was(server: ChatServer, tmp_path: Path) -> None:
    pairs = [TrainingPair(f"{PAIR.query} {i}", POSITIVE, (MINED,)) for i in range(8)]
    server.script = lambda number, body: 403 if number == 5 else GOOD
    settings = GenerationSettings(concurrency=1)
    with pytest.raises(EndpointError):
        generate_negatives(pairs, chat_with(server, tmp_path / "r.jsonl"), settings, seed=0)
    made = generate_negatives(pairs, chat_with(server, tmp_path / "r.jsonl"), settings, seed=0)
    assert made.counts["made"] == 8 and len(server.bodies) == 9


def test_a_budget_leaves_rows_out_and_says_so(server: ChatServer, capfd: pytest.CaptureFixture[str]) -> None:
    server.script = lambda number, body: GOOD
    pairs = [TrainingPair(f"{PAIR.query} {i}", POSITIVE, (MINED,)) for i in range(40)]
    budget = chat_with(server, budget_tokens=1000)
    made = generate_negatives(pairs, budget, GenerationSettings(concurrency=1, max_tokens=100), seed=0)
    assert made.counts["made"] + made.counts["over_budget"] == 40 and made.counts["over_budget"] > 0
    assert "budget" in capfd.readouterr().err
    with pytest.raises(EndpointError, match="single request"):
        generate_negatives(pairs, chat_with(server, budget_tokens=9), GenerationSettings(), seed=0)


def test_a_prompt_of_ones_own_is_used_and_checked(server: ChatServer, tmp_path: Path) -> None:
    own = tmp_path / "own.txt"
    own.write_text("Q={query} P={positive} {not a place}")
    server.script = lambda number, body: GOOD
    pair = TrainingPair("what is {positive}?", POSITIVE)
    made = generate_negatives([pair], chat_with(server), GenerationSettings(prompt=own), seed=0)
    assert (
        server.bodies[0]["messages"][0]["content"] == f"Q=what is {{positive}}? P={POSITIVE} {{not a place}}"
    )
    assert made.pairs[0].provenance["generated"]["prompt"] == fingerprint(own.read_text())
    own.write_text("Q={query}")
    with pytest.raises(InputError, match=r"own.txt: the prompt has no place \{positive\}"):
        read_prompt(own, ("query", "positive"))


def test_queries_become_pairs_in_several_styles(server: ChatServer) -> None:
    server.script = lambda number, body: 'Query: "when to swallow metformin"'
    passages = [Passage("a", GOOD, "Metformin"), Passage("b", MINED)]
    made = generate_queries(
        passages,
        chat_with(server),
        GenerationSettings(per_query=2),
        seed=0,
        instruction="Find",
        source="corpus",
    )
    assert made.counts == {"rows": 2, "made": 4}
    first = made.pairs[0]
    assert (first.query, first.positive) == ("when to swallow metformin", f"Metformin {GOOD}")
    assert (first.instruction, first.source) == ("Find", "corpus")
    record = first.provenance["generated"]
    assert record["row"] == 0 and record["passage_id"] == "a" and record["kind"] == "llm"
    assert len({pair.provenance["generated"]["style"] for pair in made.pairs}) == 3


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        ("Sure! Here is the passage you asked for:\n\nThe text.", "The text."),
        ("**Passage:** The text.", "The text."),
        ("```text\nThe text.\n```", "The text."),
        ("<think>hm</think>\nThe text.", "The text."),
        ("hm</think>The text.", "The text."),
        ("“The text.”", "The text."),
        ('"One" and "two"', '"One" and "two"'),
        ("Here is why: nothing.", "nothing."),
        ("Sorry is a hard word to say: here it is.", "Sorry is a hard word to say: here it is."),
    ],
)
def test_replies_are_cleaned(raw: str, text: str) -> None:
    assert clean(raw) == text


def test_a_copy_is_judged_by_its_words() -> None:
    assert is_copy("a B, c", "A b c!") and not is_copy("a b c", "a b d")
    assert check_reply(Reply(GOOD), [POSITIVE, MINED]).text == GOOD
    assert filled("{a}{b}", {"a": "{b}", "b": "x"}) == "{b}x"
    assert completion("x", "stop")["choices"]
