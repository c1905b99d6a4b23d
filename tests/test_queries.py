"""Queries written for a corpus, invented tasks, the consistency filter, and what is dropped and counted."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from chat import LLM, Scripted
from llm_server import ChatServer, made_up_text, serving
from medley.collections import Passage
from medley.encoder import RetrieverSettings, build_retriever, encode_passages, encode_queries, open_retriever
from medley.errors import EndpointError, InputError, ModelError
from medley.fingerprint import fingerprint
from medley.llm import Reply, Sampling
from medley.pairs import TrainingPair, read_pairs
from medley.synthesize import (
    ConsistencySettings,
    Outcome,
    QuerySettings,
    TaskSettings,
    collected,
    consistent_examples,
    generate_for_tasks,
    generate_queries,
    invent_tasks,
    pairs_from_corpus,
)
from medley.synthesize.consistency import keep_consistent, open_finder, without_duplicates
from medley.synthesize.queries import QUERY, STYLES
from medley.synthesize.tasks import Task
from medley.synthesize.variants import read_variants
from small import PASSAGES, medley, write_collection, write_lines

CORPUS = [Passage(key, text, title) for key, (title, text) in PASSAGES.items()]
STYLE_TEXTS = {name: variant.text for name, variant in read_variants(STYLES).items()}


def written(script: Any, passages: Sequence[Passage] = CORPUS, seed: int = 0, **settings: Any) -> Any:
    chat = script if isinstance(script, Scripted) else Scripted(script)
    return collected(generate_queries(passages, chat, QuerySettings(**settings), llm=LLM, seed=seed))


def style_in(prompt: str) -> str:
    return next(name for name, text in STYLE_TEXTS.items() if f"Style: {text}\n" in prompt)


def words_of_its_passage(prompt: str, sampling: Sampling) -> str:
    """A query made of a passage's words: what BM25 surely finds it by."""
    passage = prompt.partition("Passage:\n")[2].partition("\n\n")[0]
    words = re.findall(r"\w{5,}", passage)
    return " ".join(words[sampling.seed or 0 :][:4])


# Queries -----------------------------------------------------------------------------------------------------


def test_a_query_becomes_a_pair_with_its_provenance() -> None:
    chat = Scripted(lambda prompt, sampling: 'Query: "when to swallow\nmetformin"')
    passage = Passage(
        "m", "Metformin is swallowed with food, so that the stomach is less upset.", "Metformin"
    )
    outcomes = generate_queries(
        [passage], chat, QuerySettings(), llm=LLM, seed=0, instruction="Find", source="corpus"
    )
    made = collected(outcomes)
    assert made.counts == {"rows": 1, "made": 1}
    assert passage.full_text in chat.prompts[0] and '("the passage", "the text"' in chat.prompts[0]
    record = {
        "kind": "passage", "model": "m", "prompt": fingerprint(QUERY.read_text(encoding="utf-8")),
        "style": style_in(chat.prompts[0]), "row": 0, "passage_id": "m",
    }  # fmt: skip
    assert made.pairs == (
        TrainingPair("when to swallow metformin", passage.full_text, (), "Find", "corpus", {"generated_query": record}),
    )  # fmt: skip


def test_styles_are_mixed_by_weight_and_do_not_depend_on_other_passages() -> None:
    passages = [Passage(str(i), f"{made_up_text(b'%d' % i)} {i}") for i in range(300)]

    def styles_of(chosen: list[Passage], **settings: Any) -> dict[str, list[str]]:
        made = written(lambda p, s: f"query {fingerprint(p)[:8]} {s.seed}", chosen, **settings)
        found: dict[str, list[str]] = {}
        for pair in made.pairs:
            record = pair.provenance["generated_query"]
            found.setdefault(record["passage_id"], []).append(record["style"])
        return found

    together = styles_of(passages, per_passage=2)
    assert together == styles_of(passages[::-1], per_passage=2)
    assert styles_of(passages[7:8], per_passage=2) == {"7": together["7"]}
    counts = Counter(style for styles in together.values() for style in styles)
    assert set(counts) == set(STYLE_TEXTS) and all(90 < count < 150 for count in counts.values())  # 120 each
    assert all(len(set(styles)) == 2 for styles in together.values()), (
        "two queries of a passage differ in style"
    )
    weighted = styles_of(passages, styles={"keywords": 3, "claim": 1})
    counts = Counter(style for styles in weighted.values() for style in styles)
    assert set(counts) == {"keywords", "claim"} and 200 < counts["keywords"] < 250


@pytest.mark.parametrize(
    ("reply", "problem"),
    [
        ("What does the passage say about metformin?", "points_at_passage"),
        ("which drug is meant in the study above", "points_at_passage"),
        ("what is written in this article about tablets", "points_at_passage"),
        ("what passage did the ship take through the ice", ""),
        ("Which tablets " + "and which others " * 30, "too_long"),
        ("metformin", "too_short"),
        ("I'm sorry, I can't help with that.", "refusal"),
        (Reply("half a", "length"), "truncated"),
        (CORPUS[2].full_text, "copy"),
    ],
)
def test_a_query_that_cannot_be_used_is_counted(reply: Any, problem: str) -> None:
    made = written(lambda prompt, sampling: reply, CORPUS[2:3], max_bad=1)
    assert made.counts == {"rows": 1, "made": int(not problem)} | ({problem: 1} if problem else {})


def test_passages_are_drawn_at_random_and_a_query_comes_once() -> None:
    chat = Scripted(lambda prompt, sampling: "what is it made of?")
    settings = QuerySettings(passages=5)
    made = collected(pairs_from_corpus(CORPUS, chat, settings, llm=LLM, seed=1))
    assert made.counts == {"rows": 5, "made": 1, "duplicate": 4} and len(chat.prompts) == 5
    asked = {passage.id for passage in CORPUS for prompt in chat.prompts if passage.full_text in prompt}
    other = Scripted(words_of_its_passage)
    made = collected(pairs_from_corpus(CORPUS, other, settings, llm=LLM, seed=2))
    assert made.counts == {"rows": 5, "made": 5}
    assert {pair.provenance["generated_query"]["passage_id"] for pair in made.pairs} != asked
    assert len(written(words_of_its_passage).pairs) == len(CORPUS)


def test_duplicates_are_told_by_their_words() -> None:
    def outcome(query: str | None) -> Outcome:
        return Outcome(query and TrainingPair(query, "p"), ("rows", "made" if query else "refusal"))

    queries = ["What is it?", None, "what is it", "What is that?", "WHAT  IS IT !"]
    made = collected(without_duplicates(map(outcome, queries)))
    assert [pair.query for pair in made.pairs] == ["What is it?", "What is that?"]
    assert made.counts == {"rows": 5, "made": 2, "refusal": 1, "duplicate": 2}


# The consistency filter --------------------------------------------------------------------------------------


def pair_for(query: str, passage_id: str, instruction: str = "") -> TrainingPair:
    return TrainingPair(query, "p", (), instruction, "", {"generated_query": {"passage_id": passage_id}})


def passage_id_of(pair: TrainingPair) -> str:
    return str(pair.provenance["generated_query"]["passage_id"])


def test_bm25_keeps_a_pair_only_if_it_finds_the_passage_near_the_top() -> None:
    pairs = [
        pair_for("penicillin for ear infections", "p1"),
        pair_for("penicillin for ear infections", "p2"),
        pair_for("vaccination prevents measles, a viral infection", "p5"),
        pair_for("vaccination prevents measles, a viral infection", "p6"),  # mumps: the second best
        pair_for("xyzzy", "p1"),
    ]
    for top_k, expected in ((1, [True, False, True, False, False]), (2, [True, False, True, True, False])):
        find = open_finder(CORPUS, ConsistencySettings(top_k=top_k))
        outcomes = [Outcome(pair, ("rows", "made")) for pair in pairs]
        kept = list(keep_consistent(outcomes, find, passage_id_of))
        assert [outcome.pair is not None for outcome in kept] == expected
        counts = collected(kept).counts
        assert counts == {"rows": 5, "made": sum(expected), "inconsistent": 5 - sum(expected)}


def test_a_model_keeps_what_an_exhaustive_ranking_keeps(tiny_model_folder: Path) -> None:
    model = build_retriever(str(tiny_model_folder), RetrieverSettings(max_length=48, dtype="float32"))
    texts = [f"{text.split('.')[0]} {i}" for i, (_, text) in enumerate(PASSAGES.values())] * 3
    pairs = [pair_for(text, f"p{1 + i % 12}", ("", "Find it")[i % 2]) for i, text in enumerate(texts)]
    passages_DH = encode_passages(model, CORPUS)
    expected = []
    for pair in pairs:
        query_H = encode_queries(model, [pair.query], instruction=pair.instruction or None)[0]
        scores = {p.id: float(np.float32(s)) for p, s in zip(CORPUS, passages_DH @ query_H, strict=True)}
        ranked = sorted(scores, key=lambda passage_id: (-scores[passage_id], passage_id))
        expected.append(passage_id_of(pair) in ranked[:3])
    assert 0 < sum(expected) < len(expected)
    settings = ConsistencySettings(retriever=str(tiny_model_folder), top_k=3)
    find = open_finder(CORPUS, settings, model)
    kept = keep_consistent([Outcome(pair, ("made",)) for pair in pairs], find, passage_id_of)
    assert [outcome.pair is not None for outcome in kept] == expected
    foreign = open_finder(CORPUS, settings, open_retriever(str(tiny_model_folder)))
    assert foreign(pairs[:1]) == foreign([replace(pairs[0], instruction="x")]), "it takes no instruction"
    with pytest.raises(ModelError, match="needs that retriever opened"):
        open_finder(CORPUS, settings)


def test_what_is_filtered_is_counted_and_the_rest_stays() -> None:
    """Half of the queries are about another passage than their own."""
    others = {passage.full_text: CORPUS[(i + 1) % 12] for i, passage in enumerate(CORPUS) if i % 2}

    def script(prompt: str, sampling: Sampling) -> str:
        passage = prompt.partition("Passage:\n")[2].partition("\n\n")[0]
        text = others[passage].full_text if passage in others else passage
        return " ".join(re.findall(r"\w{5,}", text)[:6])

    chat = Scripted(script)
    settings = QuerySettings(consistency=ConsistencySettings(top_k=1))
    made = collected(pairs_from_corpus(CORPUS, chat, settings, llm=LLM, seed=0))
    assert made.counts == {"rows": 12, "made": 6, "inconsistent": 6}
    assert [passage_id_of(pair) for pair in made.pairs] == ["p1", "p3", "p5", "p7", "p9", "p11"]


# Tasks -------------------------------------------------------------------------------------------------------


def task_reply(prompt: str, sampling: Sampling) -> str:
    """Five tasks, of which the first two are the same in every reply."""
    own = [f"Given a question number {sampling.seed}-{i}, retrieve its answer" for i in range(3)]
    both = ["Given a drug, retrieve its leaflet", "given a DRUG: retrieve its leaflet!"]
    tasks = [{"instruction": text, "queries": "questions", "passages": "answers"} for text in (*both, *own)]
    return f"```json\n{json.dumps({'tasks': tasks})}\n```"


def example_reply(prompt: str, sampling: Sampling) -> str:
    text = made_up_text(f"{prompt} {sampling.seed}".encode())
    words = text.split()
    return json.dumps(
        {
            "query": " ".join(words[:4]),
            "positive": " ".join(reversed(words)),
            "negative": made_up_text(text.encode()),
        }
    )


TASKS = [
    Task(instruction="Given a symptom, retrieve illnesses", queries="symptoms", passages="illnesses"),
    Task(instruction="Given a law, retrieve its cases", queries="laws", passages="cases"),
]


def test_tasks_are_different_and_as_many_as_asked_for(capfd: pytest.CaptureFixture[str]) -> None:
    chat = Scripted(task_reply)
    tasks = invent_tasks(chat, TaskSettings(tasks=9, field="pharmacy"), llm=LLM, seed=0)
    assert len({re.sub(r"\W+", " ", task.instruction).lower().strip() for task in tasks}) == len(tasks) == 9
    assert all("Field: pharmacy" in prompt and "JSON" in prompt for prompt in chat.prompts)
    assert len(chat.prompts) == 3, "two requests for nine tasks, and one more for what was said twice"
    same = json.dumps(
        {"tasks": [{"instruction": "Given x, retrieve y", "queries": "abc", "passages": "abc"}]}
    )
    assert len(invent_tasks(Scripted(lambda p, s: same), TaskSettings(tasks=3), llm=LLM, seed=0)) == 1
    assert "invented 1 different tasks, not 3" in capfd.readouterr().err
    with pytest.raises(EndpointError, match=r"none of 4 replies holds a task \(4 invalid\)"):
        invent_tasks(Scripted(lambda p, s: "no JSON here"), TaskSettings(tasks=3), llm=LLM, seed=0)
    with pytest.raises(InputError, match="kinds: 'poetry' is not known; known: question_answering"):
        invent_tasks(chat, TaskSettings(kinds={"poetry": 1}), llm=LLM, seed=0)


def test_examples_become_rows_with_a_negative_and_their_task() -> None:
    chat = Scripted(example_reply)
    settings = TaskSettings(per_task=6)
    made = collected(generate_for_tasks(TASKS, chat, settings, llm=LLM, seed=0))
    assert made.counts == {"rows": 12, "made": 12}
    for row, pair in enumerate(made.pairs):
        assert pair.instruction == TASKS[row // 6].instruction and len(pair.negatives) == 1
        record = pair.provenance["generated_query"]
        assert (record["row"], record["task"], record["kind"]) == (row, row // 6, "task")
        assert pair.provenance["generated"] == [
            {"kind": "task", "model": "m", "prompt": record["prompt"], "row": row}
        ]
    assert len({pair.provenance["generated_query"]["style"] for pair in made.pairs[:6]}) == 5
    alone = collected(generate_for_tasks(TASKS[1:], Scripted(example_reply), settings, llm=LLM, seed=0))
    assert [pair.query for pair in alone.pairs] == [pair.query for pair in made.pairs[6:]]


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"negative": ""}, "empty"),
        ({"positive": "I'm sorry, but I cannot help."}, "refusal"),
        ({"query": "one"}, "too_short"),
        ({"negative": "THE same words as in the positive."}, "copy"),
        ({"query": None}, "invalid"),
    ],
)
def test_an_example_with_a_bad_text_is_counted(change: dict[str, Any], problem: str) -> None:
    good = {"query": "what is it about", "positive": "The same words as in the positive.", "negative": "Another text altogether."}  # fmt: skip
    chat = Scripted(lambda prompt, sampling: json.dumps(good | change))
    outcomes = generate_for_tasks(TASKS[:1], chat, TaskSettings(per_task=1, max_bad=1), llm=LLM, seed=0)
    assert collected(outcomes).counts == {"rows": 1, "made": 0, problem: 1}


def test_examples_are_checked_among_each_other() -> None:
    def script(prompt: str, sampling: Sampling) -> str:
        number = int(re.findall(r"Example number: (\d+)", prompt)[0])
        thing = ("copper", "insulin", "measles", "granite")[number - 1]
        asked = thing if number < 4 else "copper"  # the last asks for what the first passage is about
        return json.dumps(
            {"query": f"facts about {asked} please {number}", "positive": f"Here {thing} is described in full: {thing}.",
             "negative": f"Some {thing}-like things, of no account, are listed."}
        )  # fmt: skip

    outcomes = generate_for_tasks(TASKS[:1], Scripted(script), TaskSettings(per_task=4), llm=LLM, seed=0)
    made = collected(consistent_examples(outcomes, ConsistencySettings(top_k=1)))
    assert made.counts == {"rows": 4, "made": 3, "inconsistent": 1}
    assert [pair.provenance["generated_query"]["row"] for pair in made.pairs] == [0, 1, 2]
    assert collected(consistent_examples([], ConsistencySettings())).counts == {"rows": 0, "made": 0}


# The commands ------------------------------------------------------------------------------------------------


@pytest.fixture
def server() -> Iterator[ChatServer]:
    with serving() as running:
        yield running


def test_the_command_writes_consistent_queries(server: ChatServer, tmp_path: Path) -> None:
    server.script = lambda number, body: words_of_its_passage(
        body["messages"][0]["content"], Sampling(body["seed"] - 13)
    )
    write_collection(tmp_path / "coll")
    (tmp_path / "coll" / "queries.jsonl").unlink()  # a bare corpus is enough
    call = [
        "synthesize", "queries", "--corpus", tmp_path / "coll", "--out", tmp_path / "q.jsonl", "--llm-url", server.url,
        "--llm-model", "m", "--per-passage", 2, "--consistency", "bm25", "--top-k", 1, "--instruction", "Find it",
    ]  # fmt: skip
    done = medley(*call)
    assert done.code == 0, done.err
    counts = done.json()
    rows = read_pairs(tmp_path / "q.jsonl")
    assert counts["rows"] == 12 and len(server.bodies) == 24 and counts["made"] == len(rows) >= 20
    assert sum(counts.values()) == 12 + 24
    assert {row.instruction for row in rows} == {"Find it"}
    titles = {f"{title} {text}": key for key, (title, text) in PASSAGES.items()}
    assert all(titles[row.positive] == row.provenance["generated_query"]["passage_id"] for row in rows)
    before = (tmp_path / "q.jsonl").read_bytes()
    assert medley(*call, "--force").code == 0 and len(server.bodies) == 24
    assert (tmp_path / "q.jsonl").read_bytes() == before


def test_the_command_invents_tasks(server: ChatServer, tmp_path: Path) -> None:
    def script(number: int, body: dict[str, Any]) -> str:
        prompt, sampling = body["messages"][0]["content"], Sampling(body["seed"])
        assert body["response_format"]["type"] == "json_schema"
        return (task_reply if prompt.startswith("You invent") else example_reply)(prompt, sampling)

    server.script = script
    call = [
        "synthesize", "tasks", "--out", tmp_path / "t.jsonl", "--tasks", 4, "--per-task", 5, "--field", "pharmacy",
        "--llm-url", server.url, "--llm-model", "m", "--consistency", "bm25",
    ]  # fmt: skip
    done = medley(*call)
    assert done.code == 0, done.err
    rows = read_pairs(tmp_path / "t.jsonl")
    assert done.json() == {"rows": 20, "made": 20} and len(rows) == 20
    assert len({row.instruction for row in rows}) == 4


def test_without_a_language_model_the_commands_say_what_they_need(tmp_path: Path) -> None:
    corpus = write_collection(tmp_path / "coll")
    for call, work in (
        (["queries", "--corpus", corpus], "writing queries"),
        (["tasks"], "inventing tasks"),
    ):
        done = medley("synthesize", *call, "--out", tmp_path / "o.jsonl")
        assert done.code == 2 and f"{work} needs a language model; give --llm-url" in done.err


def test_mined_and_written_negatives_keep_the_record_of_the_query(server: ChatServer, tmp_path: Path) -> None:
    """One row may go through every stage; each leaves its record and takes none away."""
    server.script = lambda number, body: made_up_text(json.dumps(body).encode())
    row = {
        "query": "what is copper used for", "positive": PASSAGES["p7"][1], "instruction": "Find",
        "provenance": {"generated_query": {"kind": "passage", "row": 7, "passage_id": "p7"}},
    }  # fmt: skip
    write_lines(tmp_path / "p.jsonl", [row])
    corpus = write_collection(tmp_path / "coll")
    mined = ["mine", "--pairs", tmp_path / "p.jsonl", "--corpus", corpus, "--out", tmp_path / "m.jsonl"]
    assert medley(*mined).code == 0
    done = medley(
        "synthesize", "negatives", "--pairs", tmp_path / "m.jsonl", "--out", tmp_path / "n.jsonl",
        "--llm-url", server.url, "--llm-model", "m",
    )  # fmt: skip
    assert done.code == 0, done.err
    (pair,) = read_pairs(tmp_path / "n.jsonl")
    assert list(pair.provenance) == ["generated_query", "mined", "generated"] and len(pair.negatives) == 2
    from medley.origins import negatives_of

    assert [negative.origin for negative in negatives_of(pair)] == ["mined", "generated"]
