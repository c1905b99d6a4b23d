"""Vectors by text: encoded once whatever shares them, found again, never another model's."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from medley.collections import Passage, in_memory
from medley.encoder import Retriever, RetrieverSettings, build_retriever
from medley.errors import ModelError
from medley.search import embedder_of, rank_with_retriever
from medley.search import store as module
from medley.search.store import stored_vectors


class Encoder:
    """Vectors that tell which text they are of, and a note of every text that was encoded."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def __call__(self, chunks):
        for chunk in chunks:
            self.seen += chunk
            yield np.array([self.vector(text) for text in chunk], dtype=np.float32)

    @staticmethod
    def vector(text: str) -> list[float]:
        return [len(text), sum(map(ord, text)), hash(text) % 1000]


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    calls=st.lists(st.lists(st.text(max_size=3), max_size=12), max_size=5),
    rows=st.integers(1, 5),
    chunk=st.integers(1, 4),
)
def test_each_text_is_encoded_once_and_found_in_any_order(calls, rows, chunk, tmp_path_factory, monkeypatch):
    monkeypatch.setattr(module, "SEGMENT_ROWS", rows)
    monkeypatch.setattr(module, "CHUNK", chunk)
    folder, encode = tmp_path_factory.mktemp("store"), Encoder()
    for texts in calls:
        found = stored_vectors(folder, "document\0", texts, encode)
        assert len(found) == len(texts)
        if texts:
            expected = np.array([encode.vector(text) for text in texts], dtype=np.float32)
            assert found.shape == expected.shape
            np.testing.assert_array_equal(found[:], expected)
            np.testing.assert_array_equal(found[1:3], expected[1:3])
            np.testing.assert_array_equal(found[np.array([len(texts) - 1, 0])], expected[[-1, 0]])
    assert sorted(encode.seen) == sorted({text for texts in calls for text in texts})


def test_role_and_prompt_keep_vectors_apart(tmp_path):
    first, second = Encoder(), Encoder()
    stored_vectors(tmp_path, "query\0Find ", ["a"], first)
    stored_vectors(tmp_path, "document\0Find ", ["a"], second)
    stored_vectors(tmp_path, "query\0Fin", ["d a"], second)
    assert first.seen == ["a"] and second.seen == ["a", "d a"]


def test_killed_work_goes_on_after_the_last_whole_segment(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "SEGMENT_ROWS", 4)
    monkeypatch.setattr(module, "CHUNK", 2)
    texts = [f"text {i}" for i in range(11)]

    def dies(chunks):
        for number, vectors in enumerate(Encoder()(chunks)):
            if number == 3:
                raise KeyboardInterrupt
            yield vectors

    with pytest.raises(KeyboardInterrupt):
        stored_vectors(tmp_path, "", texts, dies)
    (keys,) = tmp_path.glob("*.keys.npy")
    keys_only = keys.with_name("00ff.vectors.npy")  # vectors whose keys were never written are no segment
    np.save(keys_only, np.zeros((4, 3), np.float32))
    again = Encoder()
    found = stored_vectors(tmp_path, "", texts, again)
    assert again.seen == texts[4:]
    np.testing.assert_array_equal(found[:], np.array([again.vector(t) for t in texts], np.float32))


def test_a_damaged_segment_is_named(tmp_path):
    stored_vectors(tmp_path, "", ["a", "b"], Encoder())
    (path,) = tmp_path.glob("*.vectors.npy")
    np.save(path, np.zeros((1, 3), np.float32))
    with pytest.raises(ModelError, match=r"vectors.npy: was changed after it was written; remove the folder"):
        stored_vectors(tmp_path, "", ["b"], Encoder())[:]


@pytest.mark.parametrize("part", ["keys", "vectors"])
@pytest.mark.parametrize("damage", ["cut", "empty", "text", "other", "number"])
def test_a_file_that_is_cut_or_no_array_is_named(tmp_path, part, damage):
    stored_vectors(tmp_path, "", ["a", "b"], Encoder())
    (path,) = tmp_path.glob(f"*.{part}.npy")
    arrays = {"other": np.zeros((2, 5)), "number": np.float32(1)}
    if damage in arrays:
        np.save(path, arrays[damage])
    else:
        path.write_bytes({"cut": path.read_bytes()[:-3], "empty": b"", "text": b"no array"}[damage])
    with pytest.raises(ModelError, match=rf"{path}: .*; remove the folder and encode again\.$") as refusal:
        stored_vectors(tmp_path, "", ["b"], Encoder())[:]
    assert "\n" not in str(refusal.value)


@pytest.fixture(scope="module")
def retriever(tiny_model_folder: Path) -> Retriever:
    return build_retriever(
        str(tiny_model_folder),
        RetrieverSettings(max_length=32, dtype="float32"),
        instruction="Find",
        device="cpu",
    )


def test_tasks_that_share_passages_share_vectors_and_models_do_not(retriever, tmp_path):
    passages = [
        Passage(f"p{i}", f"the {word} jumps over") for i, word in enumerate(["fox", "dog", "glucose", "x"])
    ]
    one = in_memory("one", "test", passages, {"q": "fox"}, {"q": {"p0": 1}})
    two = in_memory(
        "two", "test", [*passages[::-1], Passage("new", "insulin")], {"q": "dog"}, {"q": {"p1": 1}}
    )
    alone = {c.name: rank_with_retriever(retriever, c, 5) for c in (one, two)}
    seen: list[int] = []
    hook = retriever.model.register_forward_pre_hook(
        lambda _, inputs: seen.append(len(inputs[0]["input_ids"]))
    )
    try:
        stored = {c.name: rank_with_retriever(retriever, c, 5, store=tmp_path) for c in (one, two)}
        assert sum(seen) == 4 + 1 + 1 + 1, "passages of one, its query, two's new passage, its query"
        rank_with_retriever(retriever, two, 5, store=tmp_path)
        assert sum(seen) == 7, "again: nothing"
        rank_with_retriever(retriever, two, 5, store=tmp_path, instruction="Other")
        assert sum(seen) == 8, "another instruction: the query only"
    finally:
        hook.remove()
    for name, rankings in alone.items():
        for query, ranking in rankings.items():
            assert [p for p, _ in stored[name][query]] == [p for p, _ in ranking]
            assert [s for _, s in stored[name][query]] == pytest.approx([s for _, s in ranking], abs=1e-6)
    assert len(list(tmp_path.iterdir())) == 1
    import torch

    with torch.no_grad():
        next(retriever.model.parameters())[0, 0] += 0.01
    rank_with_retriever(retriever, one, 5, store=tmp_path)
    assert len(list(tmp_path.iterdir())) == 2, "changed weights are another model"


def test_an_embedder_says_what_decides_its_vectors(retriever):
    embedder = embedder_of(retriever)
    assert embedder.query_prompt("Look") == "Look\nQuery: " and embedder.query_prompt(None) == "Find\nQuery: "
    assert embedder.document_prompt == "Represent this passage\npassage: "


@pytest.mark.slow
def test_ray_gives_the_same_vectors(tmp_path):
    ray = pytest.importorskip("ray")
    from medley.encoder import open_retriever, save_retriever
    from medley.search.embedder import passage_vectors
    from medley.search.ray_engine import ray_engine

    settings = RetrieverSettings(max_length=32, dtype="float32")
    save_retriever(build_retriever("tiny", settings, instruction="Find"), tmp_path / "m", card="test")
    retriever = open_retriever(str(tmp_path / "m"))
    words = "the quick brown fox jumps over the lazy dog and insulin lowers glucose".split()  # noqa: SIM905
    passages = [Passage(f"p{i}", " ".join(words[i % 7 : i % 7 + 1 + i % 6]) + f" {i}") for i in range(5_000)]
    collection = in_memory("c", "test", passages, {"q": "fox"}, {"q": {"p0": 1}})
    try:
        distributed = ray_engine(open_retriever, workers=2)(str(tmp_path / "m"), retriever)
        here = passage_vectors(embedder_of(retriever), collection, None)
        np.testing.assert_array_equal(passage_vectors(distributed, collection, None), here)
        stored = passage_vectors(distributed, collection, tmp_path / "store")
        np.testing.assert_array_equal(stored[:], here)
        elsewhere = ray_engine(partial(open_retriever, dtype="bfloat16"), workers=1)(
            str(tmp_path / "m"), retriever
        )
        with pytest.raises(ModelError, match="is another model on a worker than here"):
            passage_vectors(elsewhere, collection, None)
    finally:
        ray.shutdown()


def test_ray_is_asked_for_by_name_where_it_is_missing(tmp_path):
    import importlib.util

    from medley.errors import InputError
    from medley.search.ray_engine import ray_engine

    if importlib.util.find_spec("ray") is not None:
        pytest.skip("Ray is installed")
    with pytest.raises(InputError, match=r"pip install 'medley-retrieval\[ray\]'"):
        ray_engine(lambda name: None)
