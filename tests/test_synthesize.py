"""Hard negatives by a language model: their kinds, their prompts, what becomes of bad replies, and that it streams."""

from __future__ import annotations

import itertools
import json
import random
import re
import weakref
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chat import LLM, Scripted
from llm_server import ChatServer, made_up_text, serving
from medley.errors import EndpointError, InputError
from medley.fingerprint import fingerprint
from medley.llm import LlmSettings, Reply, Sampling, open_chat
from medley.pairs import TrainingPair, iter_pairs, read_pairs, write_pairs
from medley.prompt_file import filled
from medley.synthesize import GenerationSettings, Tally, collected, generate_negatives
from medley.synthesize.asking import ENOUGH, ask_each
from medley.synthesize.kinds import _RULES, KINDS, fits, meets
from medley.synthesize.negatives import HARD_NEGATIVE
from medley.synthesize.variants import draw, read_variants, weights_for
from small import medley

POSITIVE = (
    "Metformin lowers glucose production in the liver and is usually the first tablet in type 2 diabetes."
)
MINED = "Insulin is injected under the skin of the belly, at changing places, with a short needle or a pen."
GOOD = "Metformin tablets are swallowed with food so that the stomach is less upset in the first weeks."
OTHER = "Gliclazide makes the pancreas release insulin, so a missed meal may let the glucose fall too far."
PAIR = TrainingPair("which drug comes first in type 2 diabetes", POSITIVE, (MINED,), "Find answers", "med")
KIND_NAMES = ("other_aspect", "sibling_entity", "contradicted_claim", "partial_answer", "wrong_number")
TEXTS = {name: variant.text for name, variant in read_variants(KINDS).items()}


def rows(count: int) -> list[TrainingPair]:
    return [TrainingPair(f"{PAIR.query} in group {i}", POSITIVE, (MINED,), "", "med") for i in range(count)]


def made_from(pairs: list[TrainingPair], script: Any, seed: int = 0, **settings: Any) -> Any:
    chat = script if isinstance(script, Scripted) else Scripted(script)
    return collected(generate_negatives(pairs, chat, GenerationSettings(**settings), llm=LLM, seed=seed))


def novel(prompt: str, sampling: Sampling) -> str:
    """A text of its own for each request."""
    return made_up_text(f"{prompt} {sampling.seed}".encode())


def kind_in(prompt: str) -> str:
    """The kind whose paragraph stands in a prompt."""
    return next(name for name, text in TEXTS.items() if text in prompt)


# Requests and records ----------------------------------------------------------------------------------------


def test_a_negative_is_added_with_its_provenance() -> None:
    chat = Scripted(lambda prompt, sampling: f'Here is a hard negative passage:\n\n"{GOOD}"')
    made = made_from([PAIR], chat, seed=5)
    assert made.counts == {"rows": 1, "made": 1}
    assert made.pairs[0].negatives == (MINED, GOOD)
    prompt = chat.prompts[0]
    assert all(text in prompt for text in (PAIR.query, PAIR.instruction, POSITIVE, MINED))
    kind = kind_in(prompt)
    frame = HARD_NEGATIVE.read_text(encoding="utf-8")
    assert made.pairs[0].provenance == {
        "generated": [
            {
                "kind": kind,
                "model": "m",
                "prompt": fingerprint(frame.replace("{kind}", TEXTS[kind])),
                "row": 0,
            }
        ]
    }


def test_the_prompt_states_the_six_requirements_and_asks_for_the_passage_only() -> None:
    frame = HARD_NEGATIVE.read_text(encoding="utf-8")
    assert [int(number) for number in re.findall(r"^(\d)\. ", frame, re.MULTILINE)] == [1, 2, 3, 4, 5, 6]
    for words in (
        "stays in the domain", "shares important terms and concepts with the positive", "does not answer the query",
        "moderately hard to tell from the positive", "reads like a real document", "harder than the mined negative",
        "Output the passage only", "Version: 2",
    ):  # fmt: skip
        assert words in frame
    for place in ("instruction", "query", "positive", "negative", "kind"):
        assert frame.count(f"{{{place}}}") == 1


def test_records_stay_in_step_with_negatives_and_earlier_ones_are_kept() -> None:
    def script(prompt: str, sampling: Sampling) -> str:
        return {0: GOOD, 1: "too short", 2: OTHER}[sampling.seed]

    kinds = {"other_aspect": 1.0}
    made = made_from([PAIR], script, per_query=3, kinds=kinds)
    assert made.counts == {"rows": 1, "made": 2, "too_short": 1}
    assert made.pairs[0].negatives == (MINED, GOOD, OTHER)
    assert len(made.pairs[0].provenance["generated"]) == 2
    again = made_from(list(made.pairs), lambda p, s: "Diet and exercise come before any of the tablets, say most guides.")  # fmt: skip
    assert [record["row"] for record in again.pairs[0].provenance["generated"]] == [0, 0, 0]
    assert len(again.pairs[0].negatives) == 4


def test_the_same_text_twice_is_a_copy() -> None:
    made = made_from([PAIR], lambda prompt, sampling: GOOD, per_query=3, max_bad=0.7)
    assert made.counts == {"rows": 1, "made": 1, "copy": 2}


# Kinds -------------------------------------------------------------------------------------------------------


def test_each_kind_has_a_paragraph_and_every_rule_a_kind() -> None:
    assert tuple(TEXTS) == KIND_NAMES and set(_RULES) < set(KIND_NAMES)
    assert len(set(TEXTS.values())) == 5


@pytest.mark.parametrize(
    ("query", "positive", "instruction", "expected"),
    [
        ("which drug comes first in type 2 diabetes", POSITIVE, "", {"partial_answer"}),
        ("metformin", POSITIVE, "", set()),
        ("metformin dose", "Treatment starts with 500 mg once a day.", "", {"wrong_number"}),
        ("metformin dose", "Treatment starts low.", "", set()),
        ("how many tablets of metformin a day", "Two a day.", "", set()),
        ("is metformin safe for the kidneys", POSITIVE, "", {"contradicted_claim"}),
        ("Metformin lowers glucose production.", POSITIVE, "Given a claim, retrieve passages that support it",
         {"contradicted_claim", "partial_answer"}),
        ("Metformin lowers glucose production.", POSITIVE,
         "Given a claim, retrieve documents that support or refute the claim", {"partial_answer"}),
        ("What causes the side effects of metformin.", POSITIVE, "", set()),
        ("The temperature of metformin-treated mice is stable (3b).", "It is 37 degrees.", "", {"partial_answer"}),
        ("I take metformin. I feel sick every morning. It is worse at work.", POSITIVE, "", {"partial_answer"}),
        ("does a dose of 500 mg of metformin suffice", "A dose of 500 mg suffices.", "",
         {"contradicted_claim", "partial_answer"}),
        ("how long is metformin taken", "Did you take metformin for 5 years?", "", set()),
        ("is metformin safe in pregnancy with weak kidneys?", "Can I take metformin while pregnant?", "", set()),
        ("when was the first trial of metformin in adults published", "It was published in 1957.", "",
         {"wrong_number", "partial_answer"}),
    ],
)  # fmt: skip
def test_a_kind_is_drawn_only_where_it_makes_sense(
    query: str, positive: str, instruction: str, expected: set[str]
) -> None:
    pair = TrainingPair(query, positive, (), instruction)
    always = {"other_aspect", "sibling_entity", "a_kind_of_the_users_own"}
    assert {kind for kind in (*KIND_NAMES, *always) if fits(kind, pair)} == always | expected
    # and the requests are for these kinds only, whatever the weights
    chat = Scripted(lambda p, s: f"{novel(p, s)} About {s.seed} grams.")
    weights = {"contradicted_claim": 50.0, "wrong_number": 50.0, "partial_answer": 50.0, "other_aspect": 0.1}
    made_from([pair] * 1, chat, per_query=40, kinds=weights, max_bad=1)
    drawn = {kind_in(prompt) for prompt in chat.prompts}
    assert drawn <= expected | {"other_aspect"} and expected <= drawn


def test_a_row_for_which_no_kind_makes_sense_stays_and_nothing_is_asked() -> None:
    dose = TrainingPair("metformin dose", "Treatment starts with 500 mg once a day.", (MINED,))
    pairs = [PAIR, dose, PAIR, PAIR]
    chat = Scripted(
        lambda prompt, sampling: "Treatment with metformin starts with 850 mg twice a day in adults."
    )
    made = made_from(pairs, chat, kinds={"wrong_number": 1})
    assert len(chat.prompts) == 1 and made.counts == {"rows": 4, "made": 1, "no_kind": 3}
    assert [made.pairs[i] for i in (0, 2, 3)] == [PAIR, PAIR, PAIR]
    assert made.pairs[1].negatives[0] == MINED and made.pairs[1].provenance["generated"][0]["row"] == 1


def test_a_wrong_number_must_be_another_number() -> None:
    pair = TrainingPair("metformin dose", "Treatment starts with 1,000 mg once a day.", ())
    same = "The usual way to begin is with a single tablet of 1000 mg of metformin daily."
    other = "The usual way to begin is with a single tablet of 850 mg of metformin daily."
    assert not meets("wrong_number", same, pair) and meets("wrong_number", other, pair)
    assert meets("other_aspect", same, pair)
    made = made_from([pair], lambda prompt, sampling: same, kinds={"wrong_number": 1}, max_bad=1)
    assert made.counts == {"rows": 1, "made": 0, "kind_missed": 1}
    assert made.pairs[0] == pair


def test_the_kinds_of_a_row_do_not_depend_on_the_other_rows() -> None:
    pairs = rows(30)

    def kinds_of(chosen: list[TrainingPair], seed: int = 3) -> dict[str, list[str]]:
        made = made_from(chosen, novel, seed, per_query=2)
        return {p.query: [record["kind"] for record in p.provenance["generated"]] for p in made.pairs}

    alone = {query: kinds for pair in pairs for query, kinds in kinds_of([pair]).items()}
    assert kinds_of(pairs) == alone == kinds_of(pairs[::-1])
    assert kinds_of(pairs, seed=4) != alone
    assert len({tuple(kinds) for kinds in alone.values()}) > 3


def test_weights_decide_the_mixture() -> None:
    chat = Scripted(novel)
    made_from(rows(600), chat, kinds={"other_aspect": 2, "sibling_entity": 1, "partial_answer": 0})
    drawn = Counter(kind_in(prompt) for prompt in chat.prompts)
    assert set(drawn) == {"other_aspect", "sibling_entity"}
    assert 360 < drawn["other_aspect"] < 440  # 400 expected, standard deviation 11.5


@given(
    st.dictionaries(st.sampled_from("abcdef"), st.floats(0.01, 50), min_size=1),
    st.integers(1, 12),
    st.integers(0, 2**32),
)
def test_draws_follow_the_weights_as_closely_as_whole_numbers_can(
    weights: dict[str, float], count: int, seed: int
) -> None:
    drawn = Counter(draw(weights, count, random.Random(seed)))
    assert drawn.total() == count
    for name, weight in weights.items():
        share = count * weight / sum(weights.values())
        assert share - 1 - 1e-6 < drawn[name] < share + 1 + 1e-6
    backwards = dict(reversed(weights.items()))
    assert Counter(draw(backwards, count, random.Random(seed))) == drawn


def test_draws_are_right_on_average_and_in_no_fixed_order() -> None:
    rng = random.Random(1)
    many = [draw({"a": 3, "b": 1, "c": 1}, 2, rng) for _ in range(4000)]
    first = Counter(names[0] for names in many)
    assert 2300 < first["a"] < 2500  # 3/5 of 4000, standard deviation 31
    assert 700 < first["b"] < 900 and 700 < first["c"] < 900


def test_kinds_of_ones_own(tmp_path: Path) -> None:
    own = tmp_path / "kinds.yaml"
    own.write_text("wrong_patient:\n  text: The passage is about a patient of another age.\n")
    chat = Scripted(lambda prompt, sampling: GOOD)
    made = made_from([PAIR], chat, kinds_file=own)
    assert "a patient of another age" in chat.prompts[0]
    assert made.pairs[0].provenance["generated"][0]["kind"] == "wrong_patient"
    variants = read_variants(own)
    assert weights_for(variants, None, "kinds") == {"wrong_patient": 1.0}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"kinds": {"othr_aspect": 1}},
            r"kinds: 'othr_aspect' is not known; known: other_aspect, sibling_ent",
        ),
        ({"kinds": {"other_aspect": 0}}, r"kinds: every weight is 0"),
        ({"kinds_file": "none.yaml"}, r"none.yaml: no such file"),
        ({"kinds_file": "list.yaml"}, r"list.yaml: the file: .*dictionary; write `name"),
        ({"kinds_file": "empty.yaml"}, r"empty.yaml: a.text: field required; write `name"),
        ({"kinds_file": "broken.yaml"}, r"broken.yaml:2: not valid YAML"),
        ({"prompt": "own.txt", "kinds": {"other_aspect": 1}}, r"own.txt: the prompt has no place \{kind\}"),
        ({"prompt": "bare.txt"}, r"bare.txt: the prompt has no place \{positive\}"),
    ],
)
def test_an_unusable_prompt_or_kind_is_told_before_anything_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("list.yaml").write_text("- a\n- b\n")
    Path("empty.yaml").write_text("a: {weight: 1}\n")
    Path("broken.yaml").write_text("a: [\n")
    Path("own.txt").write_text("{query} {positive}")
    Path("bare.txt").write_text("{query}")
    chat = Scripted(lambda prompt, sampling: GOOD)
    with pytest.raises(InputError, match=message):
        generate_negatives([PAIR], chat, GenerationSettings(**settings), llm=LLM, seed=0)
    assert not chat.prompts


def test_a_prompt_of_ones_own_without_kinds(tmp_path: Path) -> None:
    own = tmp_path / "own.txt"
    own.write_text("Q={query} P={positive} {not a place}")
    chat = Scripted(lambda prompt, sampling: GOOD)
    pair = TrainingPair("what is {positive}?", POSITIVE)
    made = made_from([pair], chat, prompt=own)
    assert chat.prompts == [f"Q=what is {{positive}}? P={POSITIVE} {{not a place}}"]
    record = made.pairs[0].provenance["generated"][0]
    assert record["prompt"] == fingerprint(own.read_text()) and record["kind"] == "own"
    assert filled("{a}{b}", {"a": "{b}", "b": "x"}) == "{b}x"


# Bad replies, budgets, streams -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        ("I'm sorry, but I can't help with that request.", "refusal"),
        (Reply(GOOD, "content_filter"), "refusal"),
        ("", "empty"),
        (Reply(GOOD[:60], "length"), "truncated"),
        (POSITIVE + " It is cheap.", "copy"),
        (MINED, "copy"),
        (GOOD + " This passage does not answer the query.", "commentary"),
        ("Metformin is a drug.", "too_short"),
        (Reply("", "rejected"), "rejected"),
    ],
)
def test_a_bad_reply_is_counted_and_its_row_stays(answer: Any, problem: str) -> None:
    bad = TrainingPair("bad " + PAIR.query, POSITIVE, (MINED,))
    made = made_from([PAIR, bad], lambda prompt, sampling: answer if "Query: bad" in prompt else GOOD)
    assert made.counts == {"rows": 2, "made": 1, problem: 1}
    assert made.pairs[1] == bad and made.pairs[0].negatives[-1] == GOOD


def test_too_many_bad_replies_are_an_error_that_says_which() -> None:
    def script(prompt: str, sampling: Sampling) -> str:
        return GOOD if re.search(r"group [03]\n", prompt) else "I cannot help with that."

    with pytest.raises(EndpointError, match=r"4 of 6 replies are unusable \(4 refusal\), more than 50%"):
        made_from(rows(6), script)
    assert made_from(rows(6), script, max_bad=0.7).counts["made"] == 2


def test_a_useless_model_is_found_out_long_before_the_end(tmp_path: Path) -> None:
    chat = Scripted(lambda prompt, sampling: "No.")
    outcomes = generate_negatives(iter(rows(100_000)), chat, GenerationSettings(), llm=LLM, seed=0)
    with pytest.raises(EndpointError, match=f"{ENOUGH} of {ENOUGH} replies are unusable"):
        write_pairs(tmp_path / "out.jsonl", Tally(outcomes))
    assert len(chat.prompts) < ENOUGH + 20 * LLM.concurrency
    assert not list(tmp_path.iterdir()), "nothing half-written"


def test_rows_stream_through_in_order_and_memory_stays_flat() -> None:
    alive: list[weakref.ref[TrainingPair]] = []

    def endless() -> Iterator[TrainingPair]:
        for index in itertools.count():
            pair = TrainingPair(f"{PAIR.query} number {index}", POSITIVE, (MINED,))
            alive.append(weakref.ref(pair))
            yield pair

    tally = Tally(generate_negatives(endless(), Scripted(novel), GenerationSettings(), llm=LLM, seed=0))
    stream = iter(tally)
    most = 0
    for index, pair in enumerate(itertools.islice(stream, 1000)):
        assert pair.query.endswith(f"number {index}") and len(pair.negatives) == 2
        most = max(most, sum(ref() is not None for ref in alive))
    assert tally.counts == {"rows": 1000, "made": 1000}
    assert len(alive) - 1000 <= most <= 20 * LLM.concurrency, "what is under way, and nothing that is done"
    stream.close()  # type: ignore[attr-defined]


def test_rows_without_requests_keep_their_places() -> None:
    from medley.llm import Message, Request

    request = Request((Message("user", "x"),))
    numbers = [0, 2, 0, 0, 1, 3, 0]
    asked = ((row, [request] * number) for row, number in enumerate(numbers))
    found = list(ask_each(Scripted(lambda p, s: "y"), asked, concurrency=3, label="t"))
    assert [row for row, _ in found] == list(range(7))
    assert [len(replies) for _, replies in found] == numbers


@pytest.fixture
def server() -> Iterator[ChatServer]:
    with serving() as running:
        yield running


def test_an_interrupted_generation_goes_on_where_it_was(server: ChatServer, tmp_path: Path) -> None:
    server.script = lambda number, body: 403 if number == 5 else GOOD
    llm = LlmSettings(base_url=server.url, model="m", backoff_s=0.01, concurrency=1)

    def generate() -> Any:
        chat = open_chat(llm, tmp_path / "r.jsonl")
        return collected(generate_negatives(rows(8), chat, GenerationSettings(), llm=llm, seed=0))

    with pytest.raises(EndpointError):
        generate()
    assert generate().counts["made"] == 8 and len(server.bodies) == 9


def test_a_budget_leaves_rows_out_and_says_so(server: ChatServer, capfd: pytest.CaptureFixture[str]) -> None:
    server.script = lambda number, body: GOOD

    def generate(budget: int) -> Any:
        llm = LlmSettings(base_url=server.url, model="m", budget_tokens=budget, max_tokens=100, concurrency=1)
        return collected(generate_negatives(rows(80), open_chat(llm), GenerationSettings(), llm=llm, seed=0))

    made = generate(2000)
    assert made.counts["made"] + made.counts["over_budget"] == 80 and made.counts["over_budget"] > 0
    assert made.counts["made"] > 0 and "the budget is spent" in capfd.readouterr().err
    with pytest.raises(EndpointError, match="single request"):
        generate(9)


# The command -------------------------------------------------------------------------------------------------


def test_the_command_writes_rows_in_order_and_pays_for_none_twice(server: ChatServer, tmp_path: Path) -> None:
    server.script = lambda number, body: made_up_text(json.dumps(body).encode())
    write_pairs(tmp_path / "p.jsonl", rows(40))
    call = [
        "synthesize", "negatives", "--pairs", tmp_path / "p.jsonl", "--out", tmp_path / "n.jsonl.gz",
        "--llm-url", server.url, "--llm-model", "m", "--kinds", "other_aspect=2,sibling_entity", "--per-query", 2,
    ]  # fmt: skip
    done = medley(*call)
    assert done.code == 0, done.err
    assert done.json() == {"rows": 40, "made": 80} and len(server.bodies) == 80
    assert "m: 80 calls (800 + 400 tokens), 0 replies from the cache" in done.err
    made = read_pairs(tmp_path / "n.jsonl.gz")
    assert [pair.query for pair in made] == [pair.query for pair in rows(40)]
    kinds = Counter(record["kind"] for pair in made for record in pair.provenance["generated"])
    assert set(kinds) == {"other_aspect", "sibling_entity"} and 40 <= kinds["other_aspect"] <= 68
    before = (tmp_path / "n.jsonl.gz").stat().st_size
    done = medley(*call, "--force")
    assert done.json()["made"] == 80 and len(server.bodies) == 80
    assert read_pairs(tmp_path / "n.jsonl.gz") == made and (tmp_path / "n.jsonl.gz").stat().st_size == before


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--kinds", "other_aspect=1"], "--kinds, --kinds-file and --prompt are for a language model"),
        (["--llm-model", "m"], "--llm-model needs --llm-url"),
        (["--llm-url", "http://h/v1"], "--llm-model is required with --llm-url"),
        (["--llm-url", "http://h/v1", "--llm-model", "m", "--llm-local", "x"], "name two language models"),
        (
            ["--llm-url", "http://h/v1", "--llm-model", "m", "--kinds", "a=b"],
            "--kinds a=b: 'a=b' is not NAME",
        ),
        (["--llm-url", "http://h/v1", "--llm-model", "m", "--kinds", "a=1"], "kinds: 'a' is not known"),
    ],
)
def test_wrong_options_are_told_in_one_sentence(tmp_path: Path, options: list[str], sentence: str) -> None:
    write_pairs(tmp_path / "p.jsonl", rows(2))
    done = medley(
        "synthesize", "negatives", "--pairs", tmp_path / "p.jsonl", "--out", tmp_path / "o", *options
    )
    assert done.code == 2 and sentence in done.err and done.err.count("\n") == 1
    assert not (tmp_path / "o").exists()


def test_a_broken_row_is_told_before_anything_is_asked(server: ChatServer, tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    write_pairs(path, rows(3))
    path.write_text(path.read_text() + '{"query": "q"}\n')
    llm = ["--llm-url", server.url, "--llm-model", "m"]
    done = medley("synthesize", "negatives", "--pairs", path, "--out", tmp_path / "o", *llm)
    assert done.code == 2 and f"{path}:4: no key 'positive'" in done.err and not server.bodies
    assert next(iter_pairs(path)) == rows(3)[0]
