"""A finished retriever, or an expert, that would be used otherwise than it was made is refused with both values."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from medley.any_model import open_model
from medley.encoder import RetrieverSettings, build_retriever, encode_queries, open_retriever, save_retriever
from medley.errors import ModelError
from medley.expert import open_expert, read_expert, save_expert
from medley.merge.opening import open_merge
from medley.merge.settings import MergeFile
from medley.template import Template
from medley.traits import published_traits
from small import medley, training_rows, write_collection, write_lines, write_recipe
from test_expert import make_expert, train_randomly

TEXTS = ["insulin lowers glucose", "the lazy dog"]
PROMPT = "Instruct: Given a web search query, retrieve relevant passages\nQuery:"
PUBLISHED = RetrieverSettings(
    attention="causal", max_length=64, dtype="float32",
    template=Template(query=PROMPT, query_without_instruction=PROMPT),
)  # fmt: skip
FLOAT32 = RetrieverSettings(dtype="float32", max_length=64)


@pytest.fixture(scope="module")
def finished(tiny_model_folder, tmp_path_factory) -> Path:
    """A sentence-transformers folder as others publish it: causal, last token, a prompt of its own."""
    folder = tmp_path_factory.mktemp("finished") / "st"
    build_retriever(str(tiny_model_folder), PUBLISHED, device="cpu").model.save_pretrained(str(folder))
    return folder


def peft_folder(base: Path | str, folder: Path, seed: int = 0) -> Path:
    """A sentence-transformers model with mean pooling that is a LoRA adapter on a base, as the library saves it."""
    settings = RetrieverSettings(
        pooling="mean", attention="causal", template="plain", max_length=32, dtype="float32"
    )
    retriever = build_retriever(str(base), settings, device="cpu")
    train_randomly(retriever, seed=seed).model.save_pretrained(str(folder))
    assert (folder / "adapter_config.json").is_file() and (folder / "1_Pooling").is_dir()
    return folder


def test_what_a_folder_says_is_what_the_open_model_does(finished, tmp_path):
    opened = open_retriever(str(finished), device="cpu")
    assert published_traits(str(finished)) == opened.traits()
    config = json.loads((finished / "config.json").read_text())
    shutil.copytree(finished, tmp_path / "m")
    (tmp_path / "m" / "config.json").write_text(
        json.dumps({k: v for k, v in config.items() if k != "is_causal"})
    )
    traits = published_traits(str(tmp_path / "m"))
    assert traits is not None and traits.attention == "causal"  # the architecture's own


def test_a_finished_retriever_is_not_trained_as_something_else(finished, tmp_path):
    pairs = write_lines(tmp_path / "pairs.jsonl", training_rows("train_a"))
    done = medley("train", "--base", finished, "--pairs", pairs, "--out", tmp_path / "e")
    assert done.code == 2 and not (tmp_path / "e").exists()
    says = done.err.splitlines()[-1]
    assert "attention causal" in says and "attention bidirectional" in says
    assert "Given a web search query" in says and "template bmretriever" in says
    collection = write_collection(tmp_path / "c")
    recipe = write_recipe(tmp_path / "recipe.yaml", finished, collection)
    for more in ((), ("--plan",)):
        done = medley("run", recipe, "--out", tmp_path / "r", *more)
        assert done.code == 2 and "attention causal" in done.err and not (tmp_path / "r" / "stages").exists()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"pooling": "mean"}, ("pooling last", "pooling mean")),
        ({"attention": "bidirectional"}, ("attention causal", "attention bidirectional")),
        ({"max_length": 32}, ("max length 64", "max length 32")),
        ({"normalize": False}, ("similarity cosine", "similarity dot")),
        ({"template": "e5"}, ("Given a web search", "template e5")),
    ],
)
def test_every_trait_is_compared_and_agreement_is_allowed(finished, change, words):
    with pytest.raises(ModelError) as caught:
        build_retriever(str(finished), PUBLISHED.model_copy(update=change), device="cpu")
    assert all(word in str(caught.value) for word in words) and "\n" not in str(caught.value)
    agreeing = build_retriever(str(finished), PUBLISHED, device="cpu")
    as_published = encode_queries(open_retriever(str(finished), device="cpu"), TEXTS)
    np.testing.assert_allclose(encode_queries(agreeing, TEXTS), as_published, atol=1e-6)


def test_modules_after_the_pooling_are_named(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "m")
    modules = json.loads((tmp_path / "m" / "modules.json").read_text())
    dense = {
        "idx": 3,
        "name": "3",
        "path": "3_Dense",
        "type": "sentence_transformers.base.modules.dense.Dense",
    }
    (tmp_path / "m" / "modules.json").write_text(json.dumps([*modules, dense]))
    with pytest.raises(ModelError, match="further modules Dense"):
        build_retriever(str(tmp_path / "m"), PUBLISHED)


def test_medleys_own_model_is_a_base_under_its_own_settings(tiny_model_folder, tmp_path):
    mine = build_retriever(str(tiny_model_folder), FLOAT32, instruction="Find it", device="cpu")
    save_retriever(mine, tmp_path / "m", card="")
    again = build_retriever(str(tmp_path / "m"), FLOAT32, instruction="Find another", device="cpu")
    assert again.query_prompt() == "Find another\nQuery: "
    with pytest.raises(ModelError, match=r"pooling last.*pooling mean"):
        build_retriever(str(tmp_path / "m"), FLOAT32.model_copy(update={"pooling": "mean"}))
    pairs = write_lines(tmp_path / "pairs.jsonl", training_rows("train_a"))
    done = medley("train", "--base", tmp_path / "m", "--pairs", pairs, "--out", tmp_path / "e")
    assert done.code == 0, done.err
    settings = read_expert(tmp_path / "e").settings
    assert settings is not None and settings.max_length == 64  # not the default of 512


def test_an_expert_that_was_trained_otherwise_than_its_base_was_published(
    finished, tiny_model_folder, tmp_path
):
    expert = make_expert(tiny_model_folder, tmp_path / "e", FLOAT32)
    with pytest.raises(ModelError, match=r"attention causal.*attention bidirectional"):
        open_expert(expert, str(finished))
    done = medley(
        "evaluate", expert, "--base", finished, "--task", f"{write_collection(tmp_path / 'c')}:test"
    )
    assert done.code == 2 and "attention causal" in done.err
    file = {
        "base": str(finished),
        "experts": {"e": str(expert)},
        "weights": {"e": 1.0},
        "method": "task_arithmetic",
    }
    with pytest.raises(ModelError, match=r"attention causal.*attention bidirectional"):
        open_merge(MergeFile.model_validate(file))
    stated = {"attention": "bidirectional", "template": "bmretriever"}
    merge = open_merge(MergeFile.model_validate(file | {"retriever": stated}))
    assert merge.base.traits().attention == "bidirectional"
    assert merge.base.query_prompt() == "Find it\nQuery: "


def test_foreign_adapters_keep_their_pooling_or_are_refused(tiny_model_folder, tmp_path):
    """Two plain sentence-transformers adapters with mean pooling became a last-token model, without a word."""
    experts = {str(seed): str(peft_folder(tiny_model_folder, tmp_path / str(seed), seed)) for seed in (1, 2)}
    file = {
        "base": str(tiny_model_folder),
        "experts": experts,
        "weights": {"1": 0.5, "2": 0.5},
        "method": "task_arithmetic",
    }
    with pytest.raises(
        ModelError, match=r"pooling mean, attention causal, max length 32.*pooling last"
    ) as caught:
        open_merge(MergeFile.model_validate(file))
    assert "`retriever`" in str(caught.value)
    stated = {"pooling": "mean", "attention": "causal", "template": "plain", "max_length": 32}
    assert open_merge(MergeFile.model_validate(file | {"retriever": stated})).base.traits().pooling == "mean"


def test_experts_of_another_length_are_named(tiny_model_folder, tmp_path):
    one = make_expert(tiny_model_folder, tmp_path / "one", FLOAT32)
    two = make_expert(
        tiny_model_folder, tmp_path / "two", FLOAT32.model_copy(update={"max_length": 32}), seed=1
    )
    file = {"base": str(tiny_model_folder), "experts": {"one": str(one), "two": str(two)}, "method": "linear",
            "weights": {"one": 1, "two": 1}}  # fmt: skip
    with pytest.raises(ModelError, match=r"'one' and 'two' differ in max_length \(64 and 32\)"):
        open_merge(MergeFile.model_validate(file))
    assert open_merge(MergeFile.model_validate(file | {"retriever": {"max_length": 32}}))


def test_an_adapter_folder_is_a_model_wherever_one_is_asked_for(tiny_model_folder, tmp_path):
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    base = tmp_path / "base"
    shutil.copytree(tiny_model_folder, base)
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(base), LoraConfig(r=2, target_modules=["q_proj"])
    )
    model.save_pretrained(tmp_path / "plain")
    path = tmp_path / "plain" / "adapter_config.json"
    path.write_text(
        json.dumps(json.loads(path.read_text()) | {"base_model_name_or_path": "../base"})
    )  # beside it
    own = make_expert(base, tmp_path / "own", FLOAT32, seed=1)
    foreign = peft_folder(base, tmp_path / "st")
    task = f"{write_collection(tmp_path / 'c')}:test"
    pairs = write_lines(tmp_path / "pairs.jsonl", training_rows("train_a"))
    for folder in (tmp_path / "plain", own, foreign):
        assert medley("evaluate", folder, "--task", task).code == 0
    for command in ("mine", "guard"):
        out = tmp_path / f"{command}.jsonl"
        done = medley(command, "--pairs", pairs, "--out", out, "--retriever", own)
        assert done.code == 0 and out.is_file(), done.err
    assert open_model(str(foreign)).traits().pooling == "mean"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"base_model_name_or_path": "./gone"}))
    done = medley("evaluate", tmp_path / "plain", "--task", task)
    assert done.code == 2 and "names the base ./gone" in done.err and "--base" in done.err
    assert medley("evaluate", tmp_path / "plain", "--base", base, "--task", task).code == 0


def test_a_base_row_is_the_published_base(finished, tmp_path):
    """Where all settings agree the run is allowed, and its base encodes as the published model does."""
    from medley.pipeline.models import variant_retriever
    from medley.recipe import load_recipe

    collection = write_collection(tmp_path / "c")
    how = PUBLISHED.model_dump(mode="json")
    recipe = load_recipe(write_recipe(tmp_path / "recipe.yaml", finished, collection, retriever=how))
    (tmp_path / "prompt.json").write_text(json.dumps({"instruction": "Find the passage"}))
    base = variant_retriever(recipe, "base", {"prompts/all": tmp_path})
    expected = encode_queries(open_retriever(str(finished), dtype="float32"), TEXTS)
    np.testing.assert_allclose(encode_queries(base, TEXTS), expected, atol=1e-6)


def test_what_no_folder_says_is_told(tiny_model_folder, tmp_path, capsys):
    open_model(str(tiny_model_folder))
    assert "is a language model, no retriever" in capsys.readouterr().err
    retriever = train_randomly(build_retriever(str(tiny_model_folder), FLOAT32, device="cpu"))
    save_expert(retriever, tmp_path / "e", base=str(tiny_model_folder), base_identity="x", settings=FLOAT32)
    (tmp_path / "e" / "medley.json").unlink()
    open_model(str(tmp_path / "e"))
    assert "does not say how text becomes a vector" in capsys.readouterr().err
