"""What is bundled: the demo collections are what their README says, and the tiny base is a small honest decoder."""

from __future__ import annotations

import itertools
import json
import re

import pytest

from medley.collections import BUNDLED, Collection, load_collection
from medley.leaks.find import blocking, find_leaks
from medley.overlap import normal_form
from medley.pairs import pairs_from_collection

NAMES = ("medicine", "general")
TRAIN = {
    "medicine": ("train_conditions", "train_care"),
    "general": ("train_science", "train_technology"),
}
TINY = BUNDLED / "tiny"
RUN_OF_WORDS = 6
CROSSINGS = {("cond-q017", "cond-051"), ("care-q057", "care-030")}
"""Training query and positive where the positive also answers a test query of another topic; must not grow."""


def rows(name: str, file: str) -> list[dict[str, str]]:
    text = (BUNDLED / "demo" / name / file).read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def splits(name: str) -> dict[str, Collection]:
    found = sorted((BUNDLED / "demo" / name / "qrels").glob("*.tsv"))
    return {path.stem: load_collection(f"demo/{name}:{path.stem}") for path in found}


def words(text: str) -> list[str]:
    return re.findall(r"[a-z0-9]+", text.lower())


def test_together_they_are_large_enough():
    assert sum(len(rows(name, "corpus.jsonl")) for name in NAMES) >= 320
    assert sum(len(rows(name, "queries.jsonl")) for name in NAMES) >= 480


@pytest.mark.parametrize("name", NAMES)
def test_every_split_loads_and_every_query_is_in_exactly_one(name):
    found = splits(name)
    assert set(found) == {*TRAIN[name], "dev", "test"}
    judged = [query for collection in found.values() for query in collection.queries]
    assert sorted(judged) == sorted(row["_id"] for row in rows(name, "queries.jsonl"))


@pytest.mark.parametrize("name", NAMES)
def test_splits_are_by_topic(name):
    topic_of = {row["_id"]: row["topic"] for row in rows(name, "queries.jsonl")}
    topics = {split: {topic_of[query] for query in c.queries} for split, c in splits(name).items()}
    for (first, ours), (second, theirs) in itertools.combinations(topics.items(), 2):
        assert not ours & theirs, f"{first} and {second} share topics"


def test_what_answers_a_test_query_in_full_is_no_training_positive():
    crossings = set()
    for name in NAMES:
        found = splits(name)
        answers = {
            passage
            for split in ("dev", "test")
            for scores in found[split].judgements.values()
            for passage, grade in scores.items()
            if grade == 2
        }
        for split in TRAIN[name]:
            for query in found[split].queries:
                crossings |= {(query, p) for p in found[split].positives(query) if p in answers}
    assert crossings <= CROSSINGS


@pytest.mark.parametrize("name", NAMES)
def test_styles_are_varied_and_every_query_is_judged_in_full(name):
    styles = [row["style"] for row in rows(name, "queries.jsonl")]
    assert len(set(styles)) >= 4
    assert min(styles.count(style) for style in set(styles)) >= 30
    for collection in splits(name).values():
        for query, scores in collection.judgements.items():
            grades = list(scores.values())
            assert 2 in grades, f"{query} has no passage that answers it fully"
            assert grades.count(0) >= 2, f"{query} has fewer than two explicit zeros"
            assert set(grades) <= {0, 1, 2}


@pytest.mark.parametrize("name", NAMES)
def test_no_text_occurs_twice(name):
    for file in ("corpus.jsonl", "queries.jsonl"):
        texts = [normal_form(row["text"]) for row in rows(name, file)]
        assert len(set(texts)) == len(texts)


def test_no_query_copies_six_words_of_a_passage():
    runs: dict[tuple[str, ...], str] = {}
    for name in NAMES:
        for row in rows(name, "corpus.jsonl"):
            tokens = words(f"{row['title']} {row['text']}")
            for start in range(len(tokens) - RUN_OF_WORDS + 1):
                runs[tuple(tokens[start : start + RUN_OF_WORDS])] = row["_id"]
    copies = []
    for name in NAMES:
        for row in rows(name, "queries.jsonl"):
            tokens = words(row["text"])
            for start in range(len(tokens) - RUN_OF_WORDS + 1):
                run = tuple(tokens[start : start + RUN_OF_WORDS])
                if run in runs:
                    copies.append((row["_id"], runs[run], " ".join(run)))
    assert copies == []


def test_no_training_query_recurs_in_dev_or_test():
    held_out = [load_collection(f"demo/{name}:{split}") for name in NAMES for split in ("dev", "test")]
    for name, train_splits in TRAIN.items():
        for split in train_splits:
            pairs = pairs_from_collection(load_collection(f"demo/{name}:{split}"))
            for collection in held_out:
                assert blocking(find_leaks(pairs, collection, threshold=0.6)) == []


def test_tiny_is_a_small_qwen3_decoder():
    from safetensors import safe_open

    weights = TINY / "model.safetensors"
    assert weights.stat().st_size <= 16_000_000
    config = json.loads((TINY / "config.json").read_text(encoding="utf-8"))
    assert (config["model_type"], config["architectures"]) == ("qwen3", ["Qwen3ForCausalLM"])
    with safe_open(weights, framework="pt") as tensors:
        kinds = {tensors.get_slice(name).get_dtype() for name in tensors.keys()}  # noqa: SIM118 (no mapping)
    assert kinds == {"BF16"}
    card = (TINY / "README.md").read_text(encoding="utf-8").lower()
    for subject in ("licen", "seed", "loss", "data"):
        assert subject in card, f"the model card says nothing about {subject}"


def test_tiny_has_a_byte_level_tokenizer_that_appends_the_end_itself():
    from tokenizers import Tokenizer

    settings = json.loads((TINY / "tokenizer_config.json").read_text(encoding="utf-8"))
    description = json.loads((TINY / "tokenizer.json").read_text(encoding="utf-8"))
    assert description["model"]["type"] == "BPE"
    assert "ByteLevel" in json.dumps(description["pre_tokenizer"])
    tokenizer = Tokenizer.from_file(str(TINY / "tokenizer.json"))
    for text in ("What lowers blood glucose?", "", "naïve 東京 \U0001f600"):
        encoded = tokenizer.encode(text)
        assert encoded.tokens[-1] == settings["eos_token"]
        assert encoded.tokens.count(settings["eos_token"]) == 1
        assert tokenizer.decode(encoded.ids).strip() == text
