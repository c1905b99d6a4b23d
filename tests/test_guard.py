"""The guard against false negatives: what it drops, by which signal, what the judge decides, and that all is on record."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_server import ChatServer, serving
from medley.encoder import Retriever, RetrieverSettings, build_retriever, encode_passages, encode_queries
from medley.errors import EndpointError, InputError, ModelError, RecipeError
from medley.guard.decide import guard_negatives
from medley.guard.judge import PROMPT
from medley.guard.settings import GuardSettings, JudgeSettings
from medley.guard.signals import KnownPositives
from medley.llm import Endpoint, LlmSettings
from medley.origins import negatives_of, without_negatives
from medley.overlap import normal_form
from medley.pairs import TrainingPair, read_pairs, write_pairs
from medley.pipeline.data import assemble_pairs
from medley.recipe import parse_recipe
from small import PASSAGES, medley, write_collection, write_recipe

QUERY = "first treatment of type 2 diabetes"
ANSWER = (
    "Metformin is the first treatment of type 2 diabetes in adults who can take it without harm to the kidney"
)
OTHER_ANSWER = (
    "In most adults with type 2 diabetes treatment begins with metformin, unless the kidneys are failing"
)
HARD = "Insulin is a treatment of type 1 diabetes in children."
FAR = "Steel bridges last a century."
BARE = GuardSettings()
BM25 = GuardSettings(retriever="bm25")


def row(*negatives: str, positive: str = ANSWER, query: str = QUERY, **provenance: Any) -> TrainingPair:
    return TrainingPair(query, positive, negatives, provenance=provenance)


def removed(pair: TrainingPair) -> dict[str, str]:
    """Text -> signal of what the guard took from a row."""
    return {entry["text"]: entry["signal"] for entry in pair.provenance.get("guard", {}).get("removed", ())}


# Origins ------------------------------------------------------------------------------------------------------


def full_row() -> TrainingPair:
    """Two judged negatives, one without a record, two mined, one perturbed, two generated."""
    return TrainingPair(
        "q", "p", ("j1", "j2", "own", "m1", "m2", "x1", "g1", "g2"),
        provenance={
            "query_id": "7",
            "judged_negatives": ["d1", "d2"],
            "mined": {"retriever": "bm25", "ids": ["d3", "d4"], "scores": [2.0, 1.0], "ranks": [1, 2]},
            "perturbed": {"kind": "number", "changes": [1, 2, 3]},
            "generated": [{"kind": "sibling", "model": "m"}, {"kind": "partial", "model": "m"}],
        },
    )  # fmt: skip


def test_origins_come_from_the_records() -> None:
    assert [(n.text, n.label, n.score) for n in negatives_of(full_row())] == [
        ("j1", "judged", None), ("j2", "judged", None), ("own", "unknown", None), ("m1", "mined", 2.0),
        ("m2", "mined", 1.0), ("x1", "perturbed: number", None), ("g1", "generated: sibling", None),
        ("g2", "generated: partial", None),
    ]  # fmt: skip
    one_record = TrainingPair("q", "p", ("a", "b"), provenance={"generated": {"kind": "llm"}})
    assert [n.label for n in negatives_of(one_record)] == ["generated: llm"] * 2
    tampered = replace(full_row(), negatives=("j1", "own"))
    assert [n.origin for n in negatives_of(tampered)] == ["unknown"] * 2


@settings(max_examples=60, deadline=None)
@given(st.sets(st.integers(0, 7)))
def test_records_stay_in_step_whatever_is_removed(gone: set[int]) -> None:
    before, after = negatives_of(full_row()), without_negatives(full_row(), gone)
    assert negatives_of(after) == [n for position, n in enumerate(before) if position not in gone]
    assert after.provenance["query_id"] == "7" and full_row().provenance["mined"]["ids"] == ["d3", "d4"]
    if "mined" in after.provenance:
        mined = after.provenance["mined"]
        assert len(mined["ids"]) == len(mined["scores"]) == len(mined["ranks"]) > 0


# Duplicates ---------------------------------------------------------------------------------------------------


def test_a_duplicate_of_any_positive_of_the_query_goes() -> None:
    pairs = [
        row(OTHER_ANSWER.upper() + "!", HARD),
        row(FAR, positive=OTHER_ANSWER, query=QUERY.title() + "?"),
        row(ANSWER, query="another query", positive=FAR),
    ]
    guarded = guard_negatives(pairs, BARE, seed=0)
    assert [pair.negatives for pair in guarded.pairs] == [(HARD,), (FAR,), (ANSWER,)]
    assert removed(guarded.pairs[0]) == {OTHER_ANSWER.upper() + "!": "duplicate"}
    assert guarded.counts["dropped"] == {"duplicate": 1} and guarded.counts["kept"] == 3
    assert guarded.pairs[1:] == pairs[1:], "rows without evidence stay as they are"


def test_the_query_itself_and_judged_positives_outside_the_pairs_go() -> None:
    judged = [TrainingPair(QUERY, HARD)]
    guarded = guard_negatives([row(QUERY + ".", HARD, FAR)], BARE, seed=0, judged=judged)
    assert guarded.pairs[0].negatives == (FAR,)


def test_near_duplicates_and_passages_that_hold_the_positive_go() -> None:
    longer = (
        f"Some words before. {ANSWER} And a great many other words that come after it in a longer passage."
    )
    guarded = guard_negatives([row(ANSWER + " today", longer, HARD)], BARE, seed=0)
    assert removed(guarded.pairs[0]) == {ANSWER + " today": "near_duplicate", longer: "near_duplicate"}
    strict = guard_negatives(
        [row(ANSWER + " today")], BARE.model_copy(update={"near_duplicate": 1.0}), seed=0
    )
    assert strict.pairs[0].negatives == (), "all of the positive's words stand in it"
    name = row("The spleen filters blood and stores it.", positive="The spleen filters")
    assert guard_negatives([name], BARE, seed=0).pairs[0].negatives, "a short positive is in many passages"


def test_a_near_duplicate_is_measured_as_jaccard_or_containment() -> None:
    words = [f"w{i}" for i in range(20)]
    positive = KnownPositives("q", [" ".join(words)])
    changed = " ".join([*words[:-1], "new"])  # 17 of 18 shingles are shared, of 19 in all
    assert positive.duplicate(changed, 0.94) is not None
    found = positive.duplicate(changed, 0.9)
    assert found is not None and found.value == pytest.approx(17 / 18)
    assert positive.duplicate(changed, 0.95) is None and positive.duplicate(changed, None) is None


def test_perturbed_and_judged_negatives_may_be_near_a_positive_but_not_equal() -> None:
    near = ANSWER + " today"
    for record in ({"perturbed": [{"kind": "number"}]}, {"judged_negatives": ["d1"]}):
        assert guard_negatives([row(near, **record)], BARE, seed=0).pairs[0].negatives == (near,)
        assert guard_negatives([row(ANSWER + "!", **record)], BARE, seed=0).pairs[0].negatives == ()


# A retriever --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny(tiny_model_folder: Path) -> Retriever:
    return build_retriever(
        str(tiny_model_folder), RetrieverSettings(max_length=64, dtype="float32"), instruction="Own"
    )


def test_signals_are_those_of_a_plain_loop(tiny: Retriever) -> None:
    pairs = [row(HARD, FAR), row(FAR, positive=OTHER_ANSWER), row(HARD, query="bridges", positive=FAR)]
    vector = {text: encode_passages(tiny, [text])[0] for text in (ANSWER, OTHER_ANSWER, HARD, FAR)}

    def expected(pair: TrainingPair, negative: str) -> dict[str, tuple[float, float]]:
        query = encode_queries(tiny, [pair.query])[0]
        known = [p.positive for p in pairs if p.query == pair.query]
        closeness = max(
            (query @ vector[negative] + vector[p] @ vector[negative]) / (query @ vector[p] + 1) for p in known
        )
        similarity = max(vector[p] @ vector[negative] for p in known)
        return {
            "margin": (query @ vector[negative], 0.9 * (query @ vector[pair.positive])),
            "closeness": (closeness, 0.7),
            "similarity": (similarity, 0.6),
        }

    for name, limit in (("margin", 0.9), ("closeness", 0.7), ("similarity", 0.6)):
        alone = GuardSettings(
            retriever="tiny", **{"margin": None, "closeness": None, "similarity": None, name: limit}
        )
        guarded = guard_negatives(pairs, alone, seed=0, retriever=tiny)
        for before, after in zip(pairs, guarded.pairs, strict=True):
            entries = iter(after.provenance["guard"]["kept"])
            for negative in before.negatives:
                value, at = expected(before, negative)[name]
                if value >= at and value > 0:
                    assert removed(after)[negative] == name
                else:
                    entry = next(entries)
                    assert entry["value"] == pytest.approx(value, abs=1e-4)
                    assert entry["limit"] == pytest.approx(at, abs=1e-4)
    assert guard_negatives(pairs, BARE, seed=0).pairs == pairs


def test_bm25_drops_what_shares_too_much_with_query_and_positive() -> None:
    close = "The first treatment of type 2 diabetes in adults is metformin, if the kidney takes no harm."
    guarded = guard_negatives([row(close, HARD, FAR)], BM25.model_copy(update={"closeness": 0.5}), seed=0)
    assert removed(guarded.pairs[0]).keys() == {close}
    entries = guarded.pairs[0].provenance["guard"]["kept"]
    assert [entry["verdict"] for entry in entries] == ["keep", "keep"]
    assert entries[0]["value"] > entries[1]["value"] == 0.0
    nothing_shared = row("wholly other words", query="zebra", positive="lion")
    assert guard_negatives([nothing_shared], BM25, seed=0).pairs[0].negatives, "no score is no evidence"


def test_only_the_origins_asked_for_are_scored() -> None:
    close = "The first treatment of type 2 diabetes in adults is metformin, if the kidney takes no harm."
    low = BM25.model_copy(update={"closeness": 0.3})
    for record in ({"perturbed": [{"kind": "number"}]}, {"judged_negatives": ["d1"]}):
        assert guard_negatives([row(close, **record)], low, seed=0).pairs[0].negatives == (close,)
    every = low.model_copy(update={"scored": ("perturbed",)})
    assert not guard_negatives([row(close, perturbed=[{"kind": "number"}])], every, seed=0).pairs[0].negatives
    trusted = guard_negatives(
        [row(close, mined={"ids": ["d1"], "scores": [1.0]})],
        low,
        seed=0,
        judged=[row(close, judged_negatives=["d1"])],
    )
    assert trusted.pairs[0].negatives == (close,), "people judged it not relevant"


TEXTS = st.sampled_from(
    [ANSWER, ANSWER.lower() + ".", OTHER_ANSWER, HARD, FAR, QUERY, ANSWER + " now", "metformin"]
)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from([QUERY, QUERY.upper(), "bridges"]), TEXTS, st.lists(TEXTS, max_size=4, unique=True)),
             min_size=1, max_size=5),
    st.sampled_from([BARE, BM25, BM25.model_copy(update={"closeness": 0.2})]),
)  # fmt: skip
def test_what_holds_for_any_rows(rows: list[tuple[str, str, list[str]]], chosen: GuardSettings) -> None:
    pairs = [TrainingPair(query, positive, tuple(negatives)) for query, positive, negatives in rows]
    guarded = guard_negatives(pairs, chosen, seed=0)
    positives = {(normal_form(pair.query), normal_form(pair.positive)) for pair in pairs}
    for before, after in zip(pairs, guarded.pairs, strict=True):
        assert (before.query, before.positive) == (after.query, after.positive)
        assert list(after.negatives) == [text for text in before.negatives if text in after.negatives]
        assert set(before.negatives) == set(after.negatives) | removed(after).keys()
        assert not {(normal_form(after.query), normal_form(text)) for text in after.negatives} & positives
        if "guard" in after.provenance:
            assert len(after.provenance["guard"]["kept"]) == len(after.negatives)
    assert guarded.counts["negatives"] - guarded.counts["kept"] == sum(guarded.counts["dropped"].values())
    again = guard_negatives(guarded.pairs, chosen, seed=0)
    assert again.counts["dropped"].keys() <= {"margin", "closeness"}, (
        "BM25 weighs words anew when texts are gone"
    )
    for first, second in zip(guarded.pairs, again.pairs, strict=True):
        assert removed(first).items() <= removed(second).items(), "an earlier guard's verdicts stay on record"


# The judge ----------------------------------------------------------------------------------------------------


@pytest.fixture
def server() -> Iterator[ChatServer]:
    with serving() as running:
        running.script = grading({})
        yield running


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


def test_wrong_calls_are_refused(tiny: Retriever) -> None:
    with pytest.raises(ModelError, match="some/model"):
        guard_negatives([row(HARD)], GuardSettings(retriever="some/model"), seed=0)
    with pytest.raises(ModelError, match="bm25"):
        guard_negatives([row(HARD)], BM25, seed=0, retriever=tiny)
    with pytest.raises(InputError, match="judge"):
        guard_negatives([row(HARD)], GuardSettings(judge=True), seed=0)


# The command and the recipe -----------------------------------------------------------------------------------


def test_the_command_writes_pairs_and_prints_counts(server: ChatServer, tmp_path: Path) -> None:
    path, out = tmp_path / "pairs.jsonl", tmp_path / "guarded.jsonl"
    write_pairs(path, [row(ANSWER + "!", HARD, OTHER_ANSWER, FAR)])
    done = medley("guard", "--pairs", path, "--out", out)
    assert done.code == 0, done.err
    assert done.json()["dropped"] == {"duplicate": 1} and len(read_pairs(out)[0].negatives) == 3
    server.script = grading({OTHER_ANSWER: 3})
    done = medley("guard", "--pairs", path, "--out", out, "--retriever", "none", "--judge", "all",
                  "--llm-url", server.url, "--llm-model", "m")  # fmt: skip
    assert done.code == 0, done.err
    assert [pair.positive for pair in read_pairs(out)] == [ANSWER, OTHER_ANSWER]
    only = medley("guard", "--pairs", path, "--out", out, "--similarity", "0.01")
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
