"""The scorer on a real retriever, and instructions through a run: chosen, trained under, merged, exported, reported."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from fake_run import make_run
from medley.collections import load_collection
from medley.encoder import RetrieverSettings, build_retriever, encode_passages, encode_queries, open_retriever
from medley.errors import ModelError
from medley.expert import read_expert
from medley.merge.compatible import check_compatible
from medley.merge.pool import PoolVectors, build_pool, score_vectors
from medley.pairs import TrainingPair
from medley.pipeline.prompting import dev_set
from medley.pipeline.training import under_instructions
from medley.prompts.scoring import Scorer
from medley.report import write_report
from medley.report.formats import Prompt
from medley.report.prompts import lineage_chart
from small import medley, write_collection, write_recipe

INSTRUCTIONS = ["Given a question, retrieve passages", "Find evidence", "", "Which passage answers this?"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prompts")
    write_collection(folder / "coll")
    return folder


@pytest.mark.parametrize("attention", ["causal", "bidirectional"])
def test_scores_are_those_of_one_candidate_after_another(
    place: Path, tiny_model_folder: Path, attention: str, tmp_path: Path
) -> None:
    settings = RetrieverSettings(max_length=48, dtype="float32", attention=attention)  # type: ignore[arg-type]
    retriever = build_retriever(str(tiny_model_folder), settings)
    pools = [build_pool(load_collection(f"{place}/coll:{split}")) for split in ("dev", "test")]
    scorer = Scorer(retriever, [dev_set(pool) for pool in pools], store=tmp_path)
    got = scorer.scores(INSTRUCTIONS)
    assert got.shape == (4, 7) and scorer.encoded == 28
    for instruction, scores_Q, mean in zip(INSTRUCTIONS, got, scorer.means(INSTRUCTIONS), strict=True):
        vectors = [
            PoolVectors(
                encode_queries(retriever, pool.queries, instruction=instruction),
                encode_passages(retriever, pool.passages),
            )
            for pool in pools
        ]
        naive = score_vectors(pools, vectors)
        assert mean == pytest.approx(naive.score, abs=1e-5)
        np.testing.assert_allclose(scores_Q, np.concatenate(list(naive.per_query.values())), atol=1e-5)
    assert scorer.encoded == 28, "what is known is not encoded again"
    rows = np.array([6, 1, 4])
    fresh = Scorer(retriever, [dev_set(pool) for pool in pools], store=tmp_path)
    np.testing.assert_allclose(fresh.scores(INSTRUCTIONS, rows), got[:, rows], atol=1e-12)
    assert fresh.encoded == 12
    weights = fresh.weights(rows)
    assert weights.sum() == pytest.approx(1) and weights[[0, 2]].sum() == pytest.approx(0.5)


def test_passages_are_encoded_once_whatever_the_instruction(
    place: Path, tiny_model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import medley.encoder

    encoded: list[int] = []
    real = medley.encoder.encode_passages
    monkeypatch.setattr(
        medley.encoder, "encode_passages", lambda r, passages, **more: (encoded.append(len(passages)), real(r, passages, **more))[1]
    )  # fmt: skip
    retriever = build_retriever(str(tiny_model_folder), RetrieverSettings(max_length=48))
    pool = build_pool(load_collection(f"{place}/coll:dev"))
    for instruction in ("one", "another"):
        own = replace(retriever, instruction=instruction)
        Scorer(own, [dev_set(pool)], store=tmp_path).scores(INSTRUCTIONS)
    assert encoded == [12]


def test_training_pairs_are_put_under_the_instruction_that_was_chosen() -> None:
    pairs = [TrainingPair(f"q{i}", f"p{i}", instruction="own") for i in range(30)]
    kept = {"instruction": "seed", "seed_instruction": "seed", "drawn_from": []}
    assert under_instructions(pairs, kept, seed=1) == pairs
    chosen = under_instructions(pairs, {**kept, "instruction": "better"}, seed=1)
    assert {pair.instruction for pair in chosen} == {"better"}
    drawn = under_instructions(pairs, {**kept, "drawn_from": ["a", "b"]}, seed=1)
    assert {pair.instruction for pair in drawn} == {"a", "b"} and [p.query for p in drawn] == [
        p.query for p in pairs
    ]


@pytest.mark.slow
def test_experts_whose_templates_differ_are_refused_unless_told(
    place: Path, tiny_model_folder: Path, tmp_path: Path
) -> None:
    pairs = place / "pairs.jsonl"
    rows = [{"query": f"what is thing {i}", "positive": f"thing {i} is a part"} for i in range(4)]
    pairs.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name in ("a", "b"):
        done = medley(
            "train",
            "--base",
            tiny_model_folder,
            "--pairs",
            pairs,
            "--out",
            tmp_path / name,
            "--batch-size",
            "4",
        )
        assert done.code == 0, done.err
    description = json.loads((tmp_path / "b" / "medley.json").read_text())
    description["template"]["query"] = "Instruct: {instruction}\nQuery: "
    (tmp_path / "b" / "medley.json").write_text(json.dumps(description))
    content: dict[str, Any] = {
        "base": str(tiny_model_folder), "experts": {n: str(tmp_path / n) for n in "ab"}, "method": "task_arithmetic",
        "weights": {"a": 0.5, "b": 0.5}, "retriever": {"dtype": "float32"},
    }  # fmt: skip
    file = tmp_path / "merge.yaml"
    file.write_text(yaml.safe_dump(content))
    refused = medley("merge", file, "--out", tmp_path / "merged")
    assert refused.code == 2 and "differ in template" in refused.err and "`templates: first`" in refused.err
    assert not (tmp_path / "merged").exists()
    experts = [read_expert(tmp_path / name) for name in "ab"]
    check_compatible(experts, settled={"template"})
    with pytest.raises(ModelError, match="differ in template"):
        check_compatible(experts)
    file.write_text(yaml.safe_dump({**content, "templates": "first"}))
    told = medley("merge", file, "--out", tmp_path / "merged")
    assert told.code == 0, told.err
    assert open_retriever(str(tmp_path / "merged")).template == experts[0].description["template"] or (
        json.loads((tmp_path / "merged/medley.json").read_text())["template"]
        == experts[0].description["template"]
    )


@pytest.mark.slow
def test_before_and_after_training_and_the_choice_is_in_the_model(
    place: Path, tiny_model_folder: Path, tmp_path: Path
) -> None:
    recipe = write_recipe(
        tmp_path / "r.yaml", tiny_model_folder, place / "coll",
        **{"prompts.method": "edit", "prompts.when": "both", "prompts.alpha": 0.999, "condition": "SHN+PO"},
        **{"merge.dev": [f"{place}/coll:dev", f"{place}/coll:train_a"], "leaks": "allow"},
    )  # fmt: skip
    done = medley("run", recipe, "--out", tmp_path / "run")
    assert done.code == 0, done.err
    stages = tmp_path / "run" / "stages"
    after = json.loads((stages / "merge/instruction/prompt.json").read_text())
    before = json.loads((stages / "prompts/all/prompt.json").read_text())
    assert (
        after["method"] == before["method"] == "edit" and after["seed_instruction"] == before["instruction"]
    )
    assert after["proof"]["queries"] == 3 and len(after["candidates"]) > 5
    model = open_retriever(str(tmp_path / "run" / "model"))
    assert model.instruction == after["instruction"]
    assert model.model.prompts["query"] == model.query_prompt()
    merged = json.loads((tmp_path / "run" / "results.json").read_text())["variants"]["merged"]["model"]
    assert merged["instruction"] == after["instruction"], "evaluated under it"
    expert = json.loads((stages / "train/a/adapter/medley.json").read_text())
    assert expert["instruction"] == json.loads((stages / "prompts/a/prompt.json").read_text())["instruction"]
    pairs = [json.loads(line) for line in (stages / "synthesize/a/pairs.jsonl").open()]
    assert pairs, "SHN generates"
    page = (tmp_path / "run" / "report.html").read_text()
    assert "had no part in choosing" in page and "lines lead from parent to child" in page
    again = medley("status", tmp_path / "run", "--json").json()
    assert {row["state"] for row in again} == {"done"}


@pytest.mark.slow
def test_tune_prompt_writes_choice_and_model(place: Path, tiny_model_folder: Path, tmp_path: Path) -> None:
    from medley.encoder import save_retriever

    model = tmp_path / "model"
    made = build_retriever(
        str(tiny_model_folder), RetrieverSettings(max_length=48, dtype="float32"), instruction="Find it"
    )
    save_retriever(made, model, card="x", extra={"run": "mine"})
    library = tmp_path / "mine.yaml"
    library.write_text(
        "version: 7\ninstructions: [Find the passage, Which text answers this question, 'Retrieve evidence']\n"
    )
    done = medley(
        "tune-prompt", model, "--collection", f"{place}/coll:dev", "--collection", f"{place}/coll:train_a",
        "--library", library, "--out", tmp_path / "prompt.json", "--model-out", tmp_path / "tuned", "--alpha", "0.9999",
        "--vectors", tmp_path / "vectors",
    )  # fmt: skip
    assert done.code == 0, done.err
    choice = json.loads((tmp_path / "prompt.json").read_text())
    assert done.out.strip() == choice["instruction"] and choice["seed_instruction"] == "Find it"
    assert choice["candidates"][0]["instruction"] == "Find it" and choice["library_version"] == 7
    assert len(choice["candidates"]) == 4 and choice["dev"] == [f"{place}/coll:dev", f"{place}/coll:train_a"]
    assert choice["proof"]["queries"] == 3 and choice["proof"]["no_instruction"] is not None
    assert "that were not used to choose" in done.err and len(list((tmp_path / "vectors").iterdir())) == 1
    tuned = open_retriever(str(tmp_path / "tuned"))
    assert tuned.instruction == choice["instruction"] and tuned.model.prompts["query"] == tuned.query_prompt()
    assert json.loads((tmp_path / "tuned" / "medley.json").read_text())["run"] == "mine"
    for arguments, said in (
        (["--method", "gepa"], "needs a language model"),
        (["--method", "best"], "method: input should be"),
        (["--model-out", str(tmp_path / "tuned")], "is there already"),
    ):
        wrong = medley(
            "tune-prompt",
            model,
            "--collection",
            f"{place}/coll:dev",
            "--out",
            tmp_path / "p.json",
            *arguments,
        )
        assert wrong.code == 2 and said in wrong.err and len(wrong.err.strip().splitlines()) == 1
        assert not (tmp_path / "p.json").exists()


PROMPT = {
    "instruction": "seed", "seed_instruction": "seed", "method": "gepa", "dev": ["demo/medicine:dev"],
    "candidates": [
        {"instruction": "seed", "score": 0.4, "queries": 100, "finished": True, "origin": "seed", "parent": None},
        {"instruction": "child", "score": 0.45, "queries": 100, "finished": True, "origin": "gepa: m", "parent": 0},
        {"instruction": "grand<child>", "score": 0.47, "queries": 100, "finished": True, "origin": "gepa: m", "parent": 1},
        {"instruction": "hopeless", "score": 0.1, "queries": 32, "finished": False, "origin": "gepa: m", "parent": 0},
    ],
    "proof": {
        "verdict": "no significant difference", "queries": 90, "best": 0.431, "seed": 0.42, "no_instruction": 0.41,
        "random_mean": 0.405, "random_spread": 0.012, "random_low": 0.38, "random_high": 0.43, "random_count": 20,
        "versus_seed": {"difference": 0.011, "p_value": 0.21, "ci_low": -0.01, "ci_high": 0.03, "wins": 3},
    },
    "ended": "the budget of 16 reflections is spent", "complete": True,
    "rejected": [{"instruction": "rank by ndcg", "reason": "names a metric"}], "drawn_from": [],
}  # fmt: skip


def test_the_report_shows_candidates_lineage_and_proof(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    (run / "stages/merge/instruction").mkdir(parents=True)
    (run / "stages/merge/instruction/prompt.json").write_text(json.dumps(PROMPT))
    page = write_report(run).read_text()
    text = " ".join(page.split())
    assert "On 90 queries that had no part in choosing: <b>no significant difference</b>" in text
    assert (
        "best minus seed +.011, 95% interval −.010 to +.030" in text and "The seed instruction stays." in text
    )
    for cell in (".431", ".420", ".410", ".405", ".012", ".380", ".430"):
        assert f'<td class="n">{cell}</td>' in text
    assert "1 proposals not kept" in text and "names a metric" in text and "grand&lt;child&gt;" in text
    assert "4 candidates, 1 of them dropped early; the budget of 16 reflections is spent." in text


def test_the_picture_draws_a_line_from_each_parent() -> None:
    prompt = Prompt.model_validate(PROMPT)
    drawn = lineage_chart(prompt, prompt.candidates[2])
    assert drawn.count('class="whisker merged"') == 2, "the best one's line of descent"
    assert drawn.count("<circle") == 4 and drawn.count("<polygon") == 1
    assert "2 changes from where it began" in drawn and "grand<child>" not in drawn
