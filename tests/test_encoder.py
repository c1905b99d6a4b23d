"""The encoder: a text's vector depends on nothing but the text, and the saved folder gives it everywhere."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from medley.collections import Passage
from medley.encoder import (
    RetrieverSettings,
    build_retriever,
    encode_passages,
    encode_queries,
    open_retriever,
    save_retriever,
)
from medley.errors import ModelError
from medley.template import TEMPLATES, Template

TEXTS = ["the lazy dog", "insulin lowers blood glucose and metformin reduces it too", "x", "what is the fox"]
ARCHITECTURES = ("qwen3", "llama", "mistral", "gemma", "phi3")


def settings(**changes) -> RetrieverSettings:
    return RetrieverSettings(dtype="float32", max_length=48, **changes)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("attention", ["causal", "bidirectional"])
@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_a_vector_never_depends_on_its_batch(tiny_models, architecture, attention, pooling):
    folder = str(tiny_models[architecture])
    retriever = build_retriever(folder, settings(attention=attention, pooling=pooling), device="cpu")
    alone = np.concatenate([encode_queries(retriever, [text]) for text in TEXTS])
    for side in ("right", "left"):
        retriever.model.tokenizer.padding_side = side
        np.testing.assert_allclose(encode_queries(retriever, TEXTS), alone, atol=1e-5)
        np.testing.assert_allclose(encode_queries(retriever, TEXTS[::-1])[::-1], alone, atol=1e-5)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_attention_direction_is_real_and_survives_saving(tiny_models, architecture, tmp_path):
    for attention, sees_later in (("causal", False), ("bidirectional", True)):
        retriever = build_retriever(
            str(tiny_models[architecture]), settings(attention=attention), device="cpu"
        )
        save_retriever(retriever, tmp_path / attention, card="test")
        for model in (retriever.model, open_retriever(str(tmp_path / attention), device="cpu").model):
            features = model.preprocess(["the lazy dog"])
            changed = {k: v.clone() if hasattr(v, "clone") else v for k, v in features.items()}
            changed["input_ids"][0, -2] = 99
            first, second = (
                model[0](f)["token_embeddings"][0, 0].detach().numpy() for f in (features, changed)
            )
            assert (abs(first - second).max() > 1e-6) == sees_later


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_tokenizer_itself_appends_one_eos_also_when_it_cuts(tiny_models, architecture, tmp_path):
    from transformers import AutoTokenizer

    retriever = build_retriever(str(tiny_models[architecture]), settings(), device="cpu")
    save_retriever(retriever, tmp_path / "model", card="test")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    for text in ("dog", "dog " * 500, ""):
        ids = tokenizer(text, truncation=True)["input_ids"]
        assert ids[-1] == tokenizer.eos_token_id and ids.count(tokenizer.eos_token_id) == 1
        assert len(ids) <= 48
    again = build_retriever(str(tmp_path / "model"), settings(), device="cpu")
    assert again.model.tokenizer("dog")["input_ids"].count(tokenizer.eos_token_id) == 1, "not appended twice"


def test_saved_folder_gives_the_same_vectors_in_plain_sentence_transformers(tiny_model_folder, tmp_path):
    retriever = build_retriever(
        str(tiny_model_folder), settings(template="e5"), instruction="Find the passage", device="cpu"
    )
    save_retriever(retriever, tmp_path / "model", card="test")
    code = (
        "import sys, numpy as np; from sentence_transformers import SentenceTransformer\n"
        "m = SentenceTransformer(sys.argv[1], device='cpu'); t = sys.argv[3:]\n"
        "np.save(sys.argv[2], np.concatenate([m.encode_query(t), m.encode_document(t)]))\n"
        "assert 'medley' not in sys.modules and m.prompts['query'] == 'Instruct: Find the passage\\nQuery: '\n"
    )
    subprocess.run([sys.executable, "-c", code, tmp_path / "model", tmp_path / "v.npy", *TEXTS], check=True)
    expected = np.concatenate([encode_queries(retriever, TEXTS), encode_passages(retriever, TEXTS)])
    np.testing.assert_allclose(np.load(tmp_path / "v.npy"), expected, atol=1e-6)


def test_instruction_and_title_change_the_vector(tiny_model_folder):
    retriever = build_retriever(str(tiny_model_folder), settings(), instruction="one", device="cpu")
    same = encode_queries(retriever, ["dog"], instruction="one")
    np.testing.assert_array_equal(encode_queries(retriever, ["dog"]), same)
    assert abs(encode_queries(retriever, ["dog"], instruction="two") - same).max() > 1e-4
    titled = encode_passages(retriever, [Passage("1", "dog", "fox")])
    np.testing.assert_array_equal(titled, encode_passages(retriever, ["fox dog"]))
    assert abs(titled - encode_passages(retriever, ["dog"])).max() > 1e-4


def test_identity_covers_what_decides_a_vector(tiny_model_folder, tmp_path):
    import torch

    def identity(**changes):
        instruction = changes.pop("instruction", "one")
        return build_retriever(
            str(tiny_model_folder), settings(**changes), instruction=instruction
        ).identity()

    base = identity()
    assert base == identity()
    others = [
        identity(instruction="two"), identity(attention="causal"), identity(pooling="mean"),
        identity(template="plain"), identity(normalize=False),
    ]  # fmt: skip
    retriever = build_retriever(str(tiny_model_folder), settings(), instruction="one")
    with torch.no_grad():
        next(retriever.model.parameters())[0, 0] += 0.01
    others.append(retriever.identity())
    assert len({base, *others}) == len(others) + 1


def test_identity_stays_when_a_model_is_used(tiny_model_folder):
    retriever = build_retriever(str(tiny_model_folder), settings())
    fresh = retriever.identity()
    encode_passages(retriever, ["a fox", "a long sentence about a dog " * 20])
    assert retriever.identity() == fresh


@pytest.mark.parametrize("name", ["bert", "t5"])
def test_a_base_that_is_no_decoder_is_refused(tmp_path, name):
    from transformers import CONFIG_MAPPING

    CONFIG_MAPPING[name]().save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=f"is a {name} model, which is no decoder-only"):
        build_retriever(str(tmp_path), settings())


def test_missing_models_are_named(tmp_path):
    with pytest.raises(ModelError, match="no such model folder"):
        build_retriever(str(tmp_path / "none"), settings())
    with pytest.raises(ModelError, match=r"has no config.json"):
        open_retriever(str(tmp_path))


def test_templates_join_as_the_papers_write_them():
    assert TEMPLATES["bmretriever"].query_prefix("Find") + "q" == "Find\nQuery: q"
    assert TEMPLATES["bmretriever"].document + "p" == "Represent this passage\npassage: p"
    assert TEMPLATES["e5"].query_prefix("Find") + "q" == "Instruct: Find\nQuery: q"
    assert TEMPLATES["plain"].query_prefix("Find") == ""
    assert Template(query="<{instruction}> ").query_prefix("a {b}") == "<a {b}> "


def test_nothing_to_encode_is_no_error(tiny_model_folder):
    retriever = build_retriever(str(tiny_model_folder), settings())
    assert encode_queries(retriever, []).shape == (0, 32)
