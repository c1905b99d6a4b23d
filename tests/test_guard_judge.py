"""The judge of negatives: whom it is asked about, what it decides, what it costs; in the command and in a run."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from guard_rows import ANSWER, BARE, BM25, FAR, HARD, OTHER_ANSWER, QUERY, removed, row
from llm_server import ChatServer
from medley.errors import EndpointError, InputError, RecipeError
from medley.guard.decide import guard_negatives
from medley.guard.judge import PROMPT
from medley.guard.settings import GuardSettings, JudgeSettings
from medley.llm import Endpoint, LlmSettings
from medley.pairs import TrainingPair, read_pairs, write_pairs
from medley.pipeline.data import assemble_pairs
from medley.recipe import parse_recipe
from small import PASSAGES, medley, write_collection, write_recipe


@pytest.fixture
def server(server: ChatServer) -> ChatServer:
    """The server as a judge that grades everything 0."""
    server.script = grading({})
    return server


def grading(grades: dict[str, Any]) -> Callable[[int, dict[str, Any]], str]:
    """A judge that grades the passage in the prompt; texts not listed get 0."""

    def answer(number: int, body: dict[str, Any]) -> str:
        asked = body["messages"][-1]["content"]
        passage = re.search(r"Passage:\n(.*?)\n\nGrade", asked, re.DOTALL)
        assert passage is not None
        grade = grades.get(passage[1], 0)
        return grade if isinstance(grade, str) else json.dumps({"reason": f"because {grade}", "grade": grade})

    return answer


def asked_about(server: ChatServer) -> set[str]:
    found = (
        re.search(r"Passage:\n(.*?)\n\nGrade", b["messages"][-1]["content"], re.DOTALL) for b in server.bodies
    )
    return {passage[1] for passage in found if passage}


def chat(server: ChatServer) -> Endpoint:
    return Endpoint(LlmSettings(base_url=server.url, model="judge", retries=0))


def judged_by(
    server: ChatServer, pairs: list[TrainingPair], given: GuardSettings = BARE, **values: Any
) -> Any:
    asked = given.model_copy(update={"judge": JudgeSettings(**values)})
    return guard_negatives(pairs, asked, seed=3, chat=chat(server))


def test_the_judge_keeps_drops_and_promotes_with_its_reasons(server: ChatServer) -> None:
    server.script = grading({OTHER_ANSWER: 3, HARD: 2, FAR: 1})
    guarded = judged_by(server, [row(OTHER_ANSWER, HARD, FAR, positive_id="d9")])
    (pair,) = guarded.pairs
    assert pair.negatives == (FAR,)
    assert pair.provenance["guard"]["kept"] == [
        {"verdict": "keep", "signal": "judge", "value": 1, "limit": 2, "reason": "because 1"}
    ]
    assert [(e["verdict"], e["value"], e["limit"], e["text"]) for e in pair.provenance["guard"]["removed"]] == [
        ("promote", 3, 3, OTHER_ANSWER), ("drop", 2, 2, HARD),
    ]  # fmt: skip
    (new,) = guarded.promoted
    assert (new.query, new.positive, new.negatives) == (QUERY, OTHER_ANSWER, (FAR,))
    assert new.provenance["promoted"]["row"] == 0 and "positive_id" not in new.provenance
    assert guarded.counts["judge"] == {"asked": 3, "grade_3": 1, "grade_2": 1, "grade_1": 1}
    assert (guarded.counts["promoted"], guarded.counts["new_pairs"]) == (1, 1)


def test_a_promoted_passage_is_a_negative_in_no_row_of_its_query(server: ChatServer) -> None:
    server.script = grading({OTHER_ANSWER: 3})
    pairs = [row(OTHER_ANSWER), row(OTHER_ANSWER + "!", FAR, positive="Diet comes first.")]
    guarded = judged_by(server, pairs)
    assert [pair.negatives for pair in guarded.pairs] == [(), (FAR,)] and len(guarded.promoted) == 1
    never = judged_by(server, pairs, promote_from=None)
    assert never.promoted == [] and never.pairs[0].negatives == ()


@pytest.mark.parametrize(("asked", "about"), [("all", 2), ("suspected", 1), ("left", 1)])
def test_the_judge_is_asked_about_what_the_settings_say(server: ChatServer, asked: str, about: int) -> None:
    close = "The first treatment of type 2 diabetes in adults is metformin, if the kidney takes no harm."
    given = BM25.model_copy(update={"closeness": 0.5})
    guarded = judged_by(server, [row(close, FAR, ANSWER)], given, asked=asked)
    wanted = {"all": {close, FAR}, "suspected": {close}, "left": {FAR}}[asked]
    assert asked_about(server) == wanted and len(server.bodies) == about
    kept = (FAR,) if asked == "left" else (close, FAR)  # grade 0: the judge frees the suspect
    assert guarded.pairs[0].negatives == kept
    assert removed(guarded.pairs[0])[ANSWER] == "duplicate", "a duplicate is not worth a question"


def test_equal_questions_are_paid_once_and_people_are_not_overruled(server: ChatServer) -> None:
    server.script = grading({HARD: 3, FAR: 3})
    pairs = [row(HARD, judged_negatives=["d1"]), row(FAR, positive="x"), row(FAR, positive="y")]
    guarded = judged_by(server, pairs)
    assert asked_about(server) == {FAR} and len(server.bodies) == 1
    assert guarded.pairs[0].negatives == (HARD,) and len(guarded.promoted) == 1


def test_replies_without_a_grade_leave_the_negative_and_are_counted(server: ChatServer) -> None:
    server.script = grading(
        {HARD: "no idea", FAR: '```json\n{"reason": "it does", "grade": 3}\n```', "third": '{"grade": 7}'}
    )
    pairs = [row(HARD, FAR, "third", "fourth")]
    guarded = judged_by(server, pairs)
    assert guarded.pairs[0].negatives == (HARD, "third", "fourth")
    assert guarded.counts["judge"] == {"asked": 4, "invalid": 2, "grade_3": 1, "grade_0": 1}
    with pytest.raises(EndpointError, match="2 of the judge's 4 replies"):
        judged_by(server, pairs, max_bad=0.4)


def test_the_budget_ends_the_judging_and_not_the_work(server: ChatServer) -> None:
    spare = Endpoint(LlmSettings(base_url=server.url, model="judge", budget_tokens=1))
    given = BARE.model_copy(update={"judge": JudgeSettings()})
    guarded = guard_negatives([row(HARD, FAR)], given, seed=0, chat=spare)
    assert guarded.pairs[0].negatives == (HARD, FAR) and guarded.counts["judge"]["over_budget"] == 2


def test_the_prompt_is_a_file_of_the_user_s_choice(server: ChatServer, tmp_path: Path) -> None:
    own = tmp_path / "own.txt"
    own.write_text("Frage: {query} {braces}\nPassage:\n{passage}\n\nGrade it.", encoding="utf-8")
    judged_by(server, [row("a {query} in braces")], prompt=own)
    text = server.bodies[0]["messages"][-1]["content"]
    assert text.startswith(f"Frage: {QUERY} {{braces}}\nPassage:\na {{query}} in braces\n\nGrade it.")
    own.write_text("{query}", encoding="utf-8")
    with pytest.raises(InputError, match=r"own\.txt.*\{passage\}"):
        judged_by(server, [row(HARD)], prompt=own)
    assert "{instruction}" in PROMPT.read_text(encoding="utf-8")


# The command and the recipe -----------------------------------------------------------------------------------


def test_the_command_writes_pairs_and_prints_counts(server: ChatServer, tmp_path: Path) -> None:
    path, out = tmp_path / "pairs.jsonl", tmp_path / "guarded.jsonl"
    write_pairs(path, [row(ANSWER + "!", HARD, OTHER_ANSWER, FAR)])
    done = medley("guard", "--pairs", path, "--out", out)
    assert done.code == 0, done.err
    assert done.json()["dropped"] == {"duplicate": 1} and len(read_pairs(out)[0].negatives) == 3
    server.script = grading({OTHER_ANSWER: 3})
    done = medley("guard", "--pairs", path, "--out", out, "--retriever", "none", "--judge", "all",
                  "--llm-url", server.url, "--llm-model", "m", "--force")  # fmt: skip
    assert done.code == 0, done.err
    assert [pair.positive for pair in read_pairs(out)] == [ANSWER, OTHER_ANSWER]
    only = medley("guard", "--pairs", path, "--out", out, "--similarity", "0.01", "--force")
    assert only.json()["dropped"] == {"duplicate": 1, "similarity": 2}, (
        "a limit that is given replaces the others"
    )


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--judge", "all"], "--llm-url"),
        (["--llm-url", "http://127.0.0.1:9/v1", "--llm-model", "m"], "--judge"),
        (["--judge", "some", "--llm-url", "http://127.0.0.1:9/v1", "--llm-model", "m"], "judge.asked"),
        (["--closeness", "3"], "closeness"),
        (["--retriever", "./nowhere/at/all"], "nowhere"),
    ],
)
def test_wrong_options_are_one_sentence(tmp_path: Path, arguments: list[str], words: str) -> None:
    path, out = tmp_path / "pairs.jsonl", tmp_path / "guarded.jsonl"
    write_pairs(path, [row(HARD)])
    done = medley("guard", "--pairs", path, "--out", out, *arguments)
    assert done.code == 2 and words in done.err and "Traceback" not in done.err and not out.exists()


def minimal(**guard: Any) -> dict[str, Any]:
    return {
        "name": "n", "base": "tiny", "sources": {"a": {"collection": "demo/medicine", "split": "train_care"}},
        "negatives": {"guard": guard}, "experts": {"a": {"sources": ["a"]}},
        "merge": {"dev": ["demo/medicine:dev"]}, "evaluate": {"medical": ["demo/medicine:test"]},
    }  # fmt: skip


def test_a_recipe_s_judge_needs_an_endpoint_and_may_be_said_in_one_word() -> None:
    assert parse_recipe(minimal(margin=0.95, judge=False)).negatives.guard.judge is None
    with pytest.raises(RecipeError, match=r"negatives\.guard\.judge.*`llm`"):
        parse_recipe(minimal(judge=True))
    with_llm = {**minimal(judge=True), "llm": {"base_url": "http://x/v1", "model": "m"}}
    assert parse_recipe(with_llm).negatives.guard.judge == JudgeSettings()
    with pytest.raises(RecipeError, match="did you mean 'closeness'"):
        parse_recipe(minimal(closenes=0.5))
    with pytest.raises(RecipeError, match="promote_from"):
        parse_recipe({**with_llm, "negatives": {"guard": {"judge": {"drop_from": 3, "promote_from": 1}}}})


def test_a_run_guards_what_it_mines_and_generates(
    server: ChatServer, tmp_path: Path, tiny_model_folder: Path
) -> None:
    """Mined passages that the judge finds to answer become rows of the expert that trains on mined negatives."""
    promoted = " ".join(PASSAGES["p5"])
    server.script = grading({promoted: 3})
    recipe = write_recipe(tmp_path / "small.yaml", tiny_model_folder, write_collection(tmp_path / "coll"), **{
        "llm": {"base_url": server.url, "model": "judge"},
        "negatives": {
            "mined": {"per_query": 6}, "generated": None,
            "guard": {"margin": None, "retriever": "bm25", "closeness": None, "judge": True},
        },
    })  # fmt: skip
    planned = {step["step"]: step for step in medley("run", recipe, "--plan", "--json").json()}
    assert planned["mine/a"]["llm_calls"] == 4 * 6 and planned["mine/a"]["llm_tokens"] > 24 * 200
    assert not server.bodies, "a plan asks nothing"
    done = medley("run", recipe, "--out", tmp_path / "run", "--until", "mine")
    assert done.code == 0, done.err
    stages = tmp_path / "run" / "stages"
    sources, mined = read_pairs(stages / "sources/a/pairs.jsonl"), read_pairs(stages / "mine/a/pairs.jsonl")
    assert [pair.query for pair in mined] == [pair.query for pair in sources], "rows stay in step"
    assert not any(promoted in pair.negatives for pair in mined)
    new = read_pairs(stages / "mine/a/promoted.jsonl")
    assert {pair.positive for pair in new} == {promoted} and not any(
        promoted in pair.negatives for pair in new
    )
    counts = json.loads((stages / "mine/a/counts.json").read_text())
    assert counts["guard_promoted"] == len(new) > 0 and counts["judge_grade_3"] == len(new)
    assert counts["negatives"] == sum(len(pair.negatives) for pair in mined)
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    costs = [step["summary"]["judge"] for step in manifest["stages"]["mine"].values()]
    assert sum(cost["calls"] for cost in costs) == len(server.bodies), (
        "what the judge cost stands in the manifest"
    )
    told = [entry for pair in mined for entry in pair.provenance.get("guard", {}).get("kept", ())]
    assert {entry.get("signal") for entry in told} <= {"judge", None} and told
    needs = {"sources/a": stages / "sources/a", "mine/a": stages / "mine/a"}
    assert assemble_pairs(["a"], ["judged", "mined"], needs)[len(sources) :] == new
    assert len(assemble_pairs(["a"], ["judged"], needs)) == len(sources)
    again = medley("run", recipe, "--out", tmp_path / "run", "--until", "mine")
    assert again.code == 0 and "[" not in again.err, "nothing is stale"
