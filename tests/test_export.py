"""The gate: a saved model encodes in plain sentence-transformers as it was scored, or it is not saved at
all."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from medley.encoder import RetrieverSettings, build_retriever, encode_queries, open_retriever, save_retriever
from medley.errors import ModelError, RecipeError
from medley.expert import open_expert, read_expert
from medley.lowrank import attach, fold
from medley.merge.concatenated import ConcatenatedAdapter
from medley.merge.export import Probe, ProbeVectors, encode_probe, export, judge, min_cosine, model_card
from medley.merge.model import apply_merge, merge_model, open_merge, search_merge
from medley.merge.pool import build_pool, score_candidate
from medley.merge.settings import parse_merge_file
from test_expert import FLOAT32, make_expert
from test_merge_search import make_collection

PROBE = Probe(("insulin", "what is a stroke"), ("the tram line", "metformin lowers glucose"))
WEIGHTS = np.array([[0.6], [0.4]])
TEXTS = ["insulin lowers glucose", "the lazy dog"]


@pytest.fixture(scope="module")
def expert_folders(tiny_model_folder, tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("experts")
    return {
        "med": make_expert(tiny_model_folder, root / "med", seed=1),
        "search": make_expert(tiny_model_folder, root / "search", seed=2, target_modules="all-linear"),
    }


@pytest.fixture
def merge_file(tiny_model_folder, expert_folders):
    return parse_merge_file(
        {
            "base": str(tiny_model_folder),
            "experts": {name: str(path) for name, path in expert_folders.items()},
            "weights": {"med": 0.6, "search": 0.4},
        },
        "MERGE.yaml",
    )


def changed(file, **change):
    """The same merge file with other values, checked again."""
    return parse_merge_file(file.model_dump(by_alias=True, exclude_none=True) | change, "MERGE.yaml")


@pytest.mark.slow
def test_the_probe_s_texts_lie_in_the_folder_that_is_being_written(merge_file, tmp_path, monkeypatch):
    from medley.merge import export as exporting

    places, real = [], exporting.subprocess.run

    def run(*arguments, cwd, **more):
        places.append(Path(cwd))
        return real(*arguments, cwd=cwd, **more)

    monkeypatch.setattr(exporting.subprocess, "run", run)
    merge_model(merge_file, tmp_path / "model", probe=PROBE)
    assert [place.parent.name.partition("-")[0] for place in places] == [".model.writing"], (
        "swept after a kill"
    )
    assert not [path for path in (tmp_path / "model").iterdir() if path.name.startswith(".gate")]


def test_a_merged_model_opens_in_plain_sentence_transformers_as_scored(merge_file, tmp_path):
    report = merge_model(merge_file, tmp_path / "out" / "model", probe=PROBE, details={"seed": 13})
    assert report is not None
    assert report.min_cosine_to_scored > 0.999999
    assert report.min_cosine_to_base < 0.999
    assert report.prompts["query"] == "Find it\nQuery: "
    opened = open_retriever(str(tmp_path / "out" / "model"))
    merge = open_merge(merge_file)
    with ConcatenatedAdapter(merge.base, merge.experts) as adapter:
        adapter.set_coefficients(WEIGHTS)
        np.testing.assert_allclose(
            encode_queries(opened, TEXTS), encode_queries(merge.base, TEXTS), atol=1e-5
        )
    card = (tmp_path / "out" / "model" / "README.md").read_text()
    assert "| med | 0.6 |" in card
    assert "seed: 13" in card
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["model"]


@pytest.mark.slow
def test_a_model_that_encodes_otherwise_than_scored_is_not_saved(tiny_model_folder, expert_folders, tmp_path):
    retriever = build_retriever(str(tiny_model_folder), FLOAT32, device="cpu")
    base = encode_probe(retriever, PROBE)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "older").touch()
    fold(retriever, read_expert(expert_folders["med"]).layers)
    scored = encode_probe(retriever, PROBE)
    wrong = ProbeVectors(np.roll(scored.queries, 1, axis=0), scored.passages)
    with pytest.raises(ModelError, match="does not give the vectors that were scored"):
        export(retriever, tmp_path / "model", card="", scored=wrong, base=base, probe=PROBE)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert [path.name for path in (tmp_path / "model").iterdir()] == ["older"]


def test_the_gate_names_what_differs(tiny_model_folder, expert_folders):
    retriever = build_retriever(str(tiny_model_folder), FLOAT32, instruction="Find", device="cpu")
    prompts = {"query": retriever.query_prompt(), "document": retriever.document_prompt}
    base = encode_probe(retriever, PROBE)
    fold(retriever, read_expert(expert_folders["med"]).layers)
    scored = encode_probe(retriever, PROBE)
    assert judge(scored, prompts, retriever, scored=scored, base=base, name="m").min_cosine_to_base < 0.999
    with pytest.raises(ModelError, match="nothing was merged"):
        judge(scored, prompts, retriever, scored=scored, base=scored, name="m")
    with pytest.raises(ModelError, match="query prompt is ''"):
        judge(scored, prompts | {"query": ""}, retriever, scored=scored, base=base, name="m")
    broken = ProbeVectors(scored.queries * np.nan, scored.passages)
    with pytest.raises(ModelError, match="cosine nan"):
        judge(broken, prompts, retriever, scored=scored, base=base, name="m")
    retriever.model.bfloat16()
    with pytest.raises(ModelError, match="dtype float32"):
        judge(base, prompts, retriever, scored=scored, base=base, name="m")


def test_an_attached_adapter_is_not_saved_as_weights(tiny_model_folder, expert_folders, tmp_path):
    retriever = build_retriever(str(tiny_model_folder), FLOAT32, device="cpu")
    attach(retriever, read_expert(expert_folders["med"]).layers)
    scored = encode_probe(retriever, PROBE)
    with pytest.raises(ModelError, match="attached adapter"):
        export(retriever, tmp_path / "model", card="", scored=scored, base=None, probe=PROBE)
    assert not (tmp_path / "model").exists()


@pytest.mark.slow
def test_half_precision_is_a_choice_that_the_gate_judges(merge_file, tmp_path):
    half = merge_file.model_copy(update={"dtype": "bfloat16"})
    try:
        report = merge_model(half, tmp_path / "model", probe=PROBE)
    except ModelError as problem:
        assert "dtype float32" in str(problem)
        assert not (tmp_path / "model").exists()
    else:
        assert report is not None
        assert report.weights_dtype == "bfloat16"
        assert report.min_cosine_to_scored > 0.9999


def test_other_methods_and_adapter_output_go_through_the_same_door(merge_file, tmp_path):
    ties = changed(merge_file, method="ties", parameters={"density": {"med": 0.5, "search": 0.8}})
    merge = open_merge(ties)
    base = encode_probe(merge.base, PROBE)
    scored = apply_merge(merge, WEIGHTS, PROBE)
    assert min_cosine(scored, encode_probe(merge.base, PROBE)) > 0.999999
    assert min_cosine(scored, base) < 0.9999
    assert merge_model(changed(merge_file, output="adapter"), tmp_path / "adapter") is not None
    folded = open_merge(merge_file)
    apply_merge(folded, WEIGHTS, PROBE)
    attached = open_expert(tmp_path / "adapter", device="cpu")
    np.testing.assert_allclose(encode_queries(attached, TEXTS), encode_queries(folded.base, TEXTS), atol=1e-5)


def test_search_then_merge_gives_the_score_that_was_found(merge_file):
    pools = [build_pool(make_collection())]
    searching = changed(merge_file, search={"encodings": 6, "grid": [0, 0.5, 1], "dev": ["demo:dev"]})
    result = search_merge(searching, pools)
    chosen = open_merge(searching)
    apply_merge(chosen, np.array(list(result.best.coefficients.values()))[:, None], PROBE)
    assert score_candidate(chosen.base, pools).score == pytest.approx(result.best.score, abs=1e-6)


@pytest.mark.parametrize("method", ["linear", "ties"])
def test_full_checkpoints_are_searched_too(merge_file, tmp_path, expert_folders, tiny_model_folder, method):
    experts = {"med": str(expert_folders["med"])}
    alone = open_merge(changed(merge_file, experts=experts, weights={"med": 1.0}))
    apply_merge(alone, np.ones((1, 1)), PROBE)
    save_retriever(alone.base, tmp_path / "full", card="")
    value = {
        "base": str(tiny_model_folder),
        "experts": {"full": str(tmp_path / "full"), "search": str(expert_folders["search"])},
        "method": method,
        "instruction": "Find it",
        "search": {
            "strategy": "random" if method == "ties" else "surrogate",
            "encodings": 5,
            "grid": [0, 0.5, 1],
        },
    }
    pools = [build_pool(make_collection())]
    result = search_merge(parse_merge_file(value, "x"), pools)
    assert result.encodings == 5
    if method == "linear":
        with_adapters = value | {"experts": {"full": experts["med"], "search": value["experts"]["search"]}}
        same = search_merge(parse_merge_file(with_adapters, "x"), pools)
        assert [c.coefficients for c in result.candidates[:4]] == [
            c.coefficients for c in same.candidates[:4]
        ]
        assert [c.score for c in result.candidates[:4]] == pytest.approx(
            [c.score for c in same.candidates[:4]]
        )


def test_files_that_do_not_fit_their_experts_are_named(merge_file, tmp_path):
    cases = {
        "weights": {"weights": {}},
        r"keep\.tensors": {"keep": {"from": "med", "tensors": ["embd"]}},
        "segments": {"segments": 9},
        "density": {"parameters": {"density": 0.5}},
    }
    for word, change in cases.items():
        with pytest.raises(RecipeError, match=word):
            merge_model(changed(merge_file, **change), tmp_path / "model")
    other = make_expert_elsewhere(tmp_path)
    with pytest.raises(ModelError, match="another base"):
        open_merge(changed(merge_file, experts={"med": str(other)}, weights={"med": 1.0}))


def make_expert_elsewhere(tmp_path: Path) -> Path:
    from conftest import make_model

    return make_expert(make_model("qwen3", tmp_path / "other-base", seed=9), tmp_path / "other")


def test_min_cosine_and_card():
    vectors = ProbeVectors(np.eye(2, dtype=np.float32), np.eye(2, dtype=np.float32))
    turned = ProbeVectors(np.eye(2, dtype=np.float32), np.array([[1, 1], [0, 1]], dtype=np.float32))
    assert min_cosine(vectors, vectors) == 1.0
    assert min_cosine(vectors, turned) == pytest.approx(1 / np.sqrt(2))
    card = model_card(
        "m",
        base="tiny",
        method="linear",
        experts={"a": "f0"},
        weights={"a": [0.25, 1.0]},
        details={"dev": "x"},
    )
    assert "| a | 0.25, 1 | `f0` |" in card
    assert RetrieverSettings().dtype not in card


def test_a_merge_smaller_than_the_rounding_is_not_saved(tiny_model_folder):
    """bfloat16 can keep a cosine of .99999 to the scored vectors and still have lost the whole merge."""
    retriever = build_retriever(str(tiny_model_folder), FLOAT32, device="cpu")
    angle = np.array([[0.0], [0.01], [0.0141]])  # base, scored, saved: nearly as far off as the merge went
    base, scored, saved = (
        ProbeVectors(v, v) for v in np.stack([np.cos(angle), np.sin(angle)], axis=2)[:, :, :]
    )
    prompts = {"query": retriever.query_prompt(), "document": retriever.document_prompt}
    with pytest.raises(ModelError, match=r"much beside the 5\.0e-05 by which the merge moves them"):
        judge(saved, prompts, retriever, scored=scored, base=base, name="x")
    judge(scored, prompts, retriever, scored=scored, base=base, name="x")
