"""Merge files: Medley's and mergekit's own are read, and a mistake is answered with the nearest key."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from medley.errors import RecipeError
from medley.merge.settings import read_merge_file

GOOD = {
    "base": "tiny",
    "experts": {"med": "experts/med", "search": "someone/search-lora"},
    "method": "linear",
    "weights": {"med": 0.6, "search": [0.2, 0.8]},
    "segments": 2,
    "parameters": {"normalize": True},
    "keep": {"from": "med", "tensors": ["embed_tokens"]},
    "search": {"strategy": "surrogate", "encodings": 12, "grid": [0, 0.5, 1], "dev": ["data/nfcorpus:dev"]},
}


def written(folder: Path, value: object) -> Path:
    path = folder / "MERGE.yaml"
    path.write_text(value if isinstance(value, str) else yaml.safe_dump(value))
    return path


def test_a_full_file_is_read_and_paths_count_from_it(tmp_path):
    (tmp_path / "experts" / "med").mkdir(parents=True)
    file = read_merge_file(written(tmp_path, GOOD))
    assert file.experts == {"med": str(tmp_path / "experts" / "med"), "search": "someone/search-lora"}
    assert file.weights == {"med": 0.6, "search": (0.2, 0.8)}
    assert file.keep is not None
    assert file.keep.source == "med"
    assert file.search is not None
    assert file.search.grid == (0.0, 0.5, 1.0)


@pytest.mark.parametrize("segments", [1, 3, [8, 16], "layers"])
def test_segments_by_number_cuts_or_layer(tmp_path, segments):
    file = read_merge_file(written(tmp_path, GOOD | {"segments": segments, "weights": {}}))
    assert file.segments == (tuple(segments) if isinstance(segments, list) else segments)


def test_the_example_of_the_design_is_read(tmp_path):
    text = """
base: path-or-hub-id
experts: {med-real: path, search: path}
method: linear
weights: {med-real: 0.6, search: [0.2, 0.8]}
segments: 2
parameters: {normalize: false, density: 0.5, lambda: 1.0}
keep: {from: med-real, tensors: [embed_tokens]}
output: weights
search: {strategy: surrogate, encodings: 12, grid: [0, 0.1, 0.2], dev: [data/nfcorpus:dev]}
"""
    file = read_merge_file(written(tmp_path, text))
    assert file.parameters.given() == {"normalize": False, "density": 0.5, "lambda": 1.0}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"metod": "linear"}, ["metod", "'method'"]),
        ({"method": "tie"}, ["tie", "'ties'"]),
        ({"parameters": {"densty": 0.5}}, ["parameters.densty", "'density'"]),
        ({"search": {"strategies": "grid"}}, ["search.strategies", "'strategy'"]),
        ({"search": {"strategy": "best"}}, ["search.strategy", "surrogate"]),
        ({"weights": {"med": 1, "serch": 1}}, ["serch", "'search'"]),
        ({"weights": {"med": 1}}, ["weights", "'search'"]),
        ({"keep": {"from": "meds", "tensors": ["x"]}}, ["keep.from", "'med'"]),
        ({"keep": {"form": "med", "tensors": ["x"]}}, ["keep.form", "'from'"]),
        ({"output": "adapter", "method": "ties"}, ["output", "adapter"]),
        ({"experts": {}}, ["experts"]),
        ({"base": None}, ["base"]),
        ({"merge_method": "linear"}, ["base"]),
    ],
)
def test_mistakes_name_the_key_and_the_nearest_one(tmp_path, change, words):
    with pytest.raises(RecipeError) as caught:
        read_merge_file(written(tmp_path, GOOD | change))
    message = str(caught.value)
    assert "\n" not in message
    assert all(word in message for word in words), message


@pytest.mark.parametrize("text", ["- a\n- b", "a: [", ""])
def test_what_is_no_mapping_is_refused(tmp_path, text):
    with pytest.raises(RecipeError, match=r"MERGE\.yaml"):
        read_merge_file(written(tmp_path, text))
    with pytest.raises(RecipeError, match="no such file"):
        read_merge_file(tmp_path / "none.yaml")


def test_mergekits_own_files_are_read(tmp_path):
    text = """
models:
  - model: org/base
  - model: org/expert-one
    parameters: {weight: 0.84, density: 0.3}
  - model: org/expert-two
    parameters: {weight: 0.41, density: 0.2}
merge_method: dare_ties
base_model: org/base
parameters: {normalize: false, int8_mask: true}
dtype: bfloat16
"""
    file = read_merge_file(written(tmp_path, text))
    assert (file.base, file.method, file.dtype) == ("org/base", "dare_ties", "bfloat16")
    assert file.experts == {"expert-one": "org/expert-one", "expert-two": "org/expert-two"}
    assert file.weights == {"expert-one": 0.84, "expert-two": 0.41}
    parameters = file.parameters.in_order(list(file.experts)).given()
    assert parameters == {"normalize": False, "int8_mask": True, "density": (0.3, 0.2)}


def test_mergekit_slices_are_refused_by_name(tmp_path):
    with pytest.raises(RecipeError, match="slices"):
        read_merge_file(written(tmp_path, {"slices": [], "merge_method": "slerp", "base_model": "x"}))
