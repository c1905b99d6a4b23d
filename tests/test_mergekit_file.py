"""mergekit's files: gradients, filters and slices give mergekit's own numbers; what has no counterpart is named."""

from __future__ import annotations

import numpy as np
import pytest
import yaml

from medley.errors import RecipeError
from medley.merge.checkpoint import Checkpoint
from medley.merge.model import merge_model
from medley.merge.settings import read_merge_file

GRADIENT = """
merge_method: task_arithmetic
base_model: BASE
models:
  - model: ONE
    parameters:
      weight:
        - {filter: self_attn, value: [0.0, 1.0]}
        - {filter: mlp, value: 0.3}
        - {value: [0.9, 0.2, 0.4]}
  - model: TWO
    parameters: {weight: [0.7, 0.1]}
parameters: {normalize: false, lambda: [1.0, 0.5]}
dtype: float32
"""
SLICES = """
merge_method: slerp
base_model: BASE
slices:
  - sources:
      - {model: BASE, layer_range: [0, 1]}
      - {model: ONE, layer_range: [0, 1]}
    parameters: {t: 0.2}
  - sources:
      - {model: BASE, layer_range: [1, 2]}
      - {model: ONE, layer_range: [1, 2]}
parameters:
  t: [{filter: mlp, value: 0.6}, {value: 0.4}]
dtype: float32
"""
PARTLY = """
merge_method: ties
base_model: BASE
models:
  - {model: BASE}
  - {model: ONE, parameters: {weight: 0.5, density: 0.4}}
  - {model: TWO, parameters: {weight: 0.5}}
dtype: float32
"""
BASELESS = """
merge_method: linear
models:
  - {model: ONE, parameters: {weight: 0.5}}
  - {model: TWO, parameters: {weight: 0.3}}
parameters: {normalize: false}
dtype: float32
"""


def written(folder, text, base, folders):
    path = folder / "config.yml"
    path.write_text(
        text.replace("BASE", str(base)).replace("ONE", str(folders[0])).replace("TWO", str(folders[1]))
    )
    return path


@pytest.mark.parametrize(
    "text", [GRADIENT, SLICES, PARTLY, BASELESS], ids=["gradient", "slices", "partly", "baseless"]
)
def test_files_with_gradients_filters_and_slices_merge_as_mergekit_does(
    tmp_path, base_folder, checkpoints, text
):
    from mergekit.config import MergeConfiguration
    from mergekit.merge import run_merge
    from mergekit.options import MergeOptions

    path = written(tmp_path, text, base_folder, checkpoints)
    config = MergeConfiguration.model_validate(yaml.safe_load(path.read_text()))
    options = MergeOptions(quiet=True, copy_tokenizer=False, write_model_card=False)
    run_merge(config, str(tmp_path / "theirs"), options)
    file = read_merge_file(path)
    merge_model(file.model_copy(update={"output": "checkpoint"}), tmp_path / "ours")
    found, expected = Checkpoint(tmp_path / "ours", name="o"), Checkpoint(tmp_path / "theirs", name="t")
    for name, stored in expected.tensors.items():
        np.testing.assert_allclose(
            found.whole(found.tensors[name]), expected.whole(stored), atol=1e-6, err_msg=name
        )


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"modules": {}}, "'modules' has no counterpart"),
        ({"tokenizer_source": "union"}, "tokenizer_source 'union'"),
        ({"slices": [{"sources": [{"model": "a", "layer_range": [1, 2]}]}]}, "slices must put"),
        ({"slices": [{"sources": [{"model": "a", "layer_range": [0, 2]}, {"model": "b", "layer_range": [2, 4]}]}]},
         "slices must put"),
        ({"models": [{"parameters": {}}]}, "models.0.model: this key is required"),
        ({"models": []}, "Exactly one of"),
    ],
)  # fmt: skip
def test_what_has_no_counterpart_is_named(tmp_path, change, words):
    path = tmp_path / "config.yml"
    path.write_text(yaml.safe_dump({"merge_method": "linear"} | change))
    with pytest.raises(RecipeError, match=words):
        read_merge_file(path)
