"""One switch, five conditions: what experts train with under each, on a real run up to the pairs; and written sources."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llm_server import ChatServer, made_up_text, serving
from medley.errors import RecipeError
from medley.llm import Sampling
from medley.origins import negatives_of
from medley.pairs import TrainingPair, read_pairs
from medley.pipeline import plan_steps
from medley.pipeline.data import assemble_pairs
from medley.recipe import load_recipe
from small import PASSAGES, medley, training_rows, write_collection, write_recipe
from test_queries import words_of_its_passage


@pytest.fixture
def server() -> Iterator[ChatServer]:
    with serving() as running:
        running.script = lambda number, body: made_up_text(json.dumps(body["messages"]).encode())
        yield running


@pytest.fixture
def recipe(tmp_path: Path, tiny_model_folder: Path) -> Path:
    write_collection(tmp_path / "coll")
    return write_recipe(
        tmp_path / "small.yaml", tiny_model_folder, tmp_path / "coll", **{"train.negatives": 2}
    )


def pairs_under(recipe: Path, run: Path, *overrides: str) -> list[TrainingPair]:
    """The pairs that expert `a` would be trained on: the run goes as far as the pairs, and is read by its plan."""
    sets = [word for override in overrides for word in ("--set", override)]
    done = medley("run", recipe, "--out", run, "--until", "synthesize", *sets)
    assert done.code == 0, done.err
    settings = load_recipe(recipe, overrides)
    (train,) = (step for step in plan_steps(settings, run) if step.id == "train/a")
    needs = {need: run / "stages" / need for need in train.needs if not need.startswith("prompts/")}
    assert all(folder.is_dir() for folder in needs.values())
    return assemble_pairs(settings.experts["a"].sources, settings.kinds_of(settings.experts["a"]), needs)


def test_each_condition_gives_its_negatives_and_no_others(
    recipe: Path, tmp_path: Path, server: ChatServer
) -> None:
    llm = f"llm={{base_url: '{server.url}', model: m, concurrency: 1}}"
    run = tmp_path / "run"  # one folder: what conditions share is made once
    found = {
        condition: pairs_under(recipe, run, llm, f"negatives.condition={condition}")
        for condition in ("none", "mined", "generated", "mixed", "perturbed")
    }
    assert len(server.bodies) == 8, "both conditions with written negatives have the same ones, paid for once"
    judged = [set(row["negatives"]) for row in training_rows("train_a")]
    corpus = {f"{title} {text}" for title, text in PASSAGES.values()}
    kinds: dict[str, list[list[str]]] = {}
    for condition, pairs in found.items():
        assert [pair.query for pair in pairs] == [row["query"] for row in training_rows("train_a")]
        kinds[condition] = [
            [
                "mined" if text in corpus else "generated" if text.startswith("w") else "perturbed"
                for text in pair.negatives
            ]
            for pair in pairs
        ]
    assert kinds["none"] == [[]] * 4
    assert kinds["mined"] == [["mined"]] * 4
    assert kinds["generated"] == [["generated"]] * 4
    assert kinds["mixed"] == [["mined", "generated"]] * 4
    assert {tuple(row) for row in kinds["perturbed"]} == {("perturbed",), ()}
    for mined, generated, mixed in zip(found["mined"], found["generated"], found["mixed"], strict=True):
        assert mixed.negatives == mined.negatives + generated.negatives
    assert any(set(pair.negatives) <= rows for pair, rows in zip(found["mined"], judged, strict=True)), (
        "mining may find what is judged too; judged ones are not added"
    )
    shown = "".join(body["messages"][0]["content"] for body in server.bodies)
    assert all(pair.negatives[0] in shown for pair in found["mined"]), (
        "the mined negative is shown to the writer"
    )


def test_a_condition_without_a_language_model(recipe: Path, tmp_path: Path) -> None:
    plain = pairs_under(recipe, tmp_path / "run", "negatives.condition=perturbed")
    by_hand = pairs_under(recipe, tmp_path / "by-hand", "negatives.kinds=[generated]")
    assert plain == by_hand and any(pair.negatives for pair in plain)
    mixed = pairs_under(
        recipe, tmp_path / "run", "negatives.condition=mixed", "negatives.generated={by: perturbation}"
    )
    assert [pair.negatives[1:] for pair in mixed] == [pair.negatives for pair in plain]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["negatives.condition=generated"], r"negatives.condition: 'generated' needs a language model; name one at `llm`, or choose 'perturbed'"),
        (["negatives.condition=mixed"], r"'mixed' needs a language model; .* or set negatives.generated.by to perturbation"),
        (["negatives.condition=mined", "negatives.mined=null"], r"condition: 'mined' needs mined negatives, and `mined` is null"),
        (["negatives.condition=perturbed", "negatives.generated=null"], r"'perturbed' needs generated negatives"),
        (["negatives.condition=mined", "negatives.kinds=[judged]"], r"`condition` says which kinds; take out `kinds`"),
        (["negatives.condition=mined", "experts.a.negatives=[judged]"], r"experts.a.negatives: negatives.condition says it for all"),
        (["negatives.condition=mixed", "negatives.generated={by: perturbation}", "train.negatives=1"],
         r"train.negatives: 1 is too few for the condition 'mixed', which needs 2"),
        (["negatives.condition=generated", "negatives.generated={by: perturbation}"], r"that is 'perturbed'"),
        (["negatives.condition=perturbed", "negatives.generated={by: llm}"], r"'perturbed' needs no llm"),
        (["negatives.generated={by: llm}"], r"negatives.generated.by: is llm, and the recipe names none"),
        (["negatives.condition=both"], r"negatives.condition: input should be 'none', 'mined', 'generated', 'mixed' or"),
        (["sources.a={corpus: coll}"], r"sources.a.corpus: queries are written by a language model; name one at `llm`"),
        (["sources.a={corpus: coll, collection: coll}"], r"sources.a: give one of `pairs`, `collection` and `corpus`"),
        (["sources.a={corpus: coll, pairs: p.jsonl, queries: {}}"], r"sources.a: `queries` says how .* without `pairs`"),
        (["sources.a={pairs: p.jsonl, queries: {per_passage: 2}}"], r"sources.a: `queries` says how queries are written"),
    ],
)  # fmt: skip
def test_a_switch_that_cannot_work_is_refused(recipe: Path, overrides: list[str], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        load_recipe(recipe, overrides)


def test_without_a_condition_all_is_as_it_was(recipe: Path) -> None:
    settings = load_recipe(recipe)
    assert settings.kinds_of(settings.experts["a"]) == ("judged", "mined", "generated")
    chosen = load_recipe(recipe, ["negatives.kinds=[judged]", "experts.b.negatives=[mined]"])
    assert [chosen.kinds_of(expert) for expert in chosen.experts.values()] == [("judged",), ("mined",)]
    llm = "llm={base_url: 'http://127.0.0.1:9/v1', model: m}"
    assert not settings.negatives_by_llm and load_recipe(recipe, [llm]).negatives_by_llm
    assert not load_recipe(recipe, [llm, "negatives.condition=perturbed"]).negatives_by_llm


def test_a_source_may_be_a_bare_corpus(recipe: Path, tmp_path: Path, server: ChatServer) -> None:
    def script(number: int, body: dict[str, Any]) -> str:
        prompt = body["messages"][0]["content"]
        if "Passage:\n" in prompt:
            return words_of_its_passage(prompt, Sampling(body["seed"] - 3))
        return made_up_text(prompt.encode())

    server.script = script
    corpus = tmp_path / "bare"
    corpus.mkdir()
    (corpus / "corpus.jsonl").write_bytes((tmp_path / "coll" / "corpus.jsonl").read_bytes())
    overrides = [
        f"llm={{base_url: '{server.url}', model: m, concurrency: 1}}",
        f"sources.a={{corpus: '{corpus}', instruction: Find it, queries: {{passages: 6, consistency: {{top_k: 2}}}}}}",
    ]
    sets = [word for override in overrides for word in ("--set", override)]
    rows = medley("run", recipe, "--out", tmp_path / "run", "--plan", "--json", *sets).json()
    (planned,) = (row for row in rows if row["step"] == "sources/a")
    assert planned["llm_calls"] == 6 and planned["llm_tokens"] > 6 * 150
    assert not server.bodies
    pairs = pairs_under(recipe, tmp_path / "run", *overrides)
    made = read_pairs(tmp_path / "run/stages/sources/a/pairs.jsonl")
    counts = json.loads((tmp_path / "run/stages/sources/a/counts.json").read_text())
    assert counts["rows"] == 6 and counts["made"] == len(made) == len(pairs) >= 3
    assert all(row.instruction == "Find it" and row.source == "a" for row in made)
    assert any(negative.origin == "mined" for negative in negatives_of(read_pairs(
        tmp_path / "run/stages/mine/a/pairs.jsonl")[0]))  # fmt: skip
    asked = len(server.bodies)
    assert asked == 6 + len(made) + 4  # queries, their negatives, and those of the other source
    again = medley("run", recipe, "--out", tmp_path / "run", "--until", "synthesize", *sets)
    assert again.code == 0 and len(server.bodies) == asked
    with (corpus / "corpus.jsonl").open("a") as stream:
        stream.write(json.dumps({"_id": "new", "title": "", "text": "A new passage about tides."}) + "\n")
    rows = {row["step"]: row for row in medley("status", tmp_path / "run", "--json").json()}
    assert rows["sources/a"]["state"] == "stale" and rows["sources/b"]["state"] == "done"


def test_pairs_are_mined_in_the_corpus_beside_them(recipe: Path, tmp_path: Path) -> None:
    query = "first tablet for high sugar in type 2 diabetes"
    rows = [{"query": query, "positive": [" ".join(PASSAGES["p3"]), " ".join(PASSAGES["p4"])]}]
    rows += [{"query": "what wiring is made of", "positive": " ".join(PASSAGES["p7"])}]
    (tmp_path / "p.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    corpus = tmp_path / "own.jsonl"
    hard = "Type 2 diabetes is more frequent in people who are overweight."
    texts = [*(" ".join(PASSAGES[name]) for name in ("p3", "p4")), hard, "Sugar is made from beet."]
    corpus.write_text("\n".join(json.dumps({"_id": str(i), "text": text}) for i, text in enumerate(texts)))
    sets = [
        "--set", f"sources.a={{pairs: '{tmp_path / 'p.jsonl'}', corpus: '{corpus}'}}",
        "--set", "negatives.mined={per_query: 3}", "--set", "negatives.condition=mined", "--set", "negatives.generated=null",
    ]  # fmt: skip
    run = tmp_path / "run"
    done = medley("run", recipe, "--out", run, "--until", "mine", *sets)
    assert done.code == 0, done.err
    mined = read_pairs(run / "stages/mine/a/pairs.jsonl")
    assert len(mined) == 3 and "are mined among" not in done.err
    assert all(set(pair.negatives) == {hard, texts[3]} for pair in mined[:2])
    with corpus.open("a") as stream:
        stream.write("\n" + json.dumps({"_id": "new", "text": "Tides."}))
    rows = {row["step"]: row["state"] for row in medley("status", run, "--json").json()}
    assert rows["mine/a"] == "stale" and rows["sources/a"] == "done"
    alone = [word.replace(f", corpus: '{corpus}'", "") for word in sets]
    done = medley("run", recipe, "--out", tmp_path / "alone", "--until", "mine", *alone)
    assert "negatives are mined among the 3 positives of the pairs" in done.err
