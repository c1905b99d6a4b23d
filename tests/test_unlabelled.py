"""Unlabelled text: documents from any shard and any place in it, pairs that never overlap, a store that resumes."""

from __future__ import annotations

import gzip
import json
import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from medley.collections import Passage
from medley.documents import Document, Place, from_markdown, read_documents, shards_of
from medley.errors import CollectionError, PairsError
from medley.train.pair_store import PairStore, SeenKeys, gather_pairs
from medley.train.settings import PretrainSettings
from medley.train.unlabelled import pairs_of, two_spans

WORDS = (
    "amber",
    "birch",
    "cedar",
    "delta",
    "ember",
    "fjord",
    "grove",
    "heron",
    "islet",
    "jetty",
    "knoll",
    "lotus",
)


def text_of(number: int) -> str:
    draw = random.Random(number)
    return " ".join(
        f"{' '.join(draw.choices(WORDS, k=6))} {number}-{sentence}.".capitalize() for sentence in range(8)
    )


def rows(first: int, last: int) -> list[dict[str, str]]:
    return [{"text": text_of(n), "title": f"Title of {n}"} for n in range(first, last)]


@pytest.fixture
def shards(tmp_path: Path) -> list[Path]:
    """Sixty documents in JSON Lines, gzipped ones, Parquet with three row groups, and a Markdown file."""
    import pyarrow
    import pyarrow.parquet

    folder = tmp_path / "texts"
    folder.mkdir()
    plain = "".join(json.dumps(row) + "\n\n" for row in rows(0, 20))
    (folder / "a.jsonl").write_text(plain)
    with gzip.open(folder / "b.jsonl.gz", "wt") as stream:
        stream.write("".join(json.dumps(row) + "\n" for row in rows(20, 40)))
    pyarrow.parquet.write_table(
        pyarrow.Table.from_pylist(rows(40, 60)), folder / "c.parquet", row_group_size=7
    )
    (folder / "d.md").write_text(f"# A guide to knots\n\nOn knots.\n\n## The bowline\n\n{text_of(99)}\n")
    (folder / "ignored.csv").write_text("no")
    return shards_of(folder)


def settings(**changes) -> PretrainSettings:
    return PretrainSettings(**({"documents": ["x"], "max_pairs": None} | changes))


def test_reading_can_go_on_after_any_document(shards):
    whole = list(read_documents(shards))
    assert [d.title for d, _ in whole] == [*(f"Title of {n}" for n in range(60)), "A guide to knots"]
    for index, (_, place) in enumerate(whole):
        assert [d for d, _ in read_documents(shards, place)] == [d for d, _ in whole[index + 1 :]]


def test_markdown_brings_title_and_sections():
    document = from_markdown("# Knots\nOn knots.\n## Bowline ##\nA loop.\n\n## Hitch\n")
    assert document == Document(
        "On knots.\n## Bowline ##\nA loop.\n\n## Hitch", "Knots", (("Bowline", "A loop."), ("Hitch", ""))
    )
    pairs = {pair.query: pair.positive for pair in pairs_of(document, settings(spans=False), seed=1)}
    assert pairs == {"Knots": document.text, "Knots: Bowline": "A loop."}
    assert from_markdown("no heading").title == ""


def test_what_cannot_be_read_is_told_with_its_place(tmp_path):
    broken = tmp_path / "x.jsonl"
    broken.write_text('{"text": "fine"}\n{"titel": "no text"}\n')
    with pytest.raises(CollectionError, match=r"x\.jsonl:2: has no `text`"):
        list(read_documents([broken], Place(0, 1, 17)))
    with pytest.raises(CollectionError, match="no such file"):
        shards_of(tmp_path / "nothing")
    (tmp_path / "x.csv").write_text("a")
    with pytest.raises(CollectionError, match="no kind of text"):
        shards_of(tmp_path / "x.csv")


@given(
    st.lists(st.text("ab cd", min_size=1, max_size=30).filter(str.strip), min_size=2, max_size=30),
    st.integers(40, 200),
    st.integers(0, 9),
)
def test_spans_are_whole_sentences_and_never_overlap(sentences, longest, seed):
    numbered = [f"{index} {sentence.strip()}." for index, sentence in enumerate(sentences)]
    first, second = two_spans(" ".join(numbered), random.Random(seed), max_characters=longest)
    for span in (first, second):
        assert span in " ".join(numbered) and span[-1] == "."
        assert len(span) <= max(longest, max(map(len, numbered)))
    text = " ".join(numbered)
    assert text.index(first) + len(first) <= text.index(second)


def test_one_sentence_gives_no_spans_and_other_scripts_are_cut_too():
    assert two_spans("Only one sentence", random.Random(1), max_characters=80) is None
    assert two_spans("第一句。第二句。", random.Random(1), max_characters=80) == ("第一句。", "第二句。")


def test_pairs_depend_on_the_document_alone():
    document = Document(text_of(3), "T", (("Dose", "Two a day."),))
    first = list(pairs_of(document, settings(), seed=1))
    list(pairs_of(Document(text_of(4), "other"), settings(), seed=1))
    assert (
        first == list(pairs_of(document, settings(), seed=1)) != list(pairs_of(document, settings(), seed=2))
    )
    assert [pair.source for pair in first] == ["titles", "sections", "spans"]
    assert len(list(pairs_of(document, settings(titles=False, spans=False), seed=1))) == 1
    headless = Document("Body. More.", "", (("Introduction", "Body."), ("Side effects", "More.")))
    assert [p.query for p in pairs_of(headless, settings(spans=False), seed=1)] == ["Side effects"]


def test_each_text_counts_once(tmp_path):
    corpus = [Passage("1", "One here. Two here.", "Title"), Passage("2", "one here; two here!", "TITLE"),
              Passage("3", "Another text.", "title."), Passage("4", "One here. Two here.", "Other title")]  # fmt: skip
    store = gather_pairs([corpus], settings(), tmp_path, seed=1)
    assert sorted(pair.query for pair in store) == ["One here.", "Title"]
    with pytest.raises(PairsError, match="give 1 pairs"):
        gather_pairs([corpus], settings(spans=False), tmp_path, seed=1)


class KilledError(Exception):
    pass


class KilledAt(list):
    """A corpus whose reader dies at a row."""

    def __init__(self, passages, row):
        super().__init__(passages)
        self.row = row

    def __getitem__(self, row):
        if row == self.row:
            raise KilledError
        return super().__getitem__(row)


@pytest.mark.parametrize("max_pairs", [None, 15])
@pytest.mark.parametrize("row", [1, 13, 39])
def test_a_killed_reader_goes_on_in_the_middle_of_a_shard(shards, tmp_path, row, max_pairs):
    corpus = [Passage(str(n), text_of(n), f"Title of {n % 30}") for n in range(100, 140)]
    given = settings(max_pairs=max_pairs)
    whole = gather_pairs([*shards, corpus], given, tmp_path / "whole", seed=5)
    for died in (row, min(row + 5, 39)):
        with pytest.raises(KilledError):
            gather_pairs([*shards, KilledAt(corpus, died)], given, tmp_path / "again", seed=5, checkpoint_s=0)
        with (tmp_path / "again" / "pairs.jsonl").open("ab") as stream:
            stream.write(b'{"half a li')
    again = gather_pairs([*shards, corpus], given, tmp_path / "again", seed=5)
    assert list(again) == list(whole) == [whole[index] for index in range(len(whole))]
    assert (tmp_path / "again/pairs.jsonl").read_bytes() == (tmp_path / "whole/pairs.jsonl").read_bytes()
    assert len(whole) == (max_pairs or 61 + 61 + 1 + 0 + 40), (
        "titles, spans, a section; the corpus repeats titles"
    )
    assert not (tmp_path / "again" / "state.safetensors").exists()


def test_the_draw_is_fair_and_another_seed_draws_others(shards, tmp_path):
    everything = {pair.query for pair in gather_pairs(shards, settings(), tmp_path / "all", seed=1)}
    draws = [
        {pair.query for pair in gather_pairs(shards, settings(max_pairs=30), tmp_path / str(seed), seed=seed)}
        for seed in range(8)
    ]
    assert all(len(drawn) == 30 for drawn in draws)
    titles = {f"Title of {n}" for n in range(60)}
    counts = [sum(f"Title of {n}" in drawn for drawn in draws) for n in range(60)]
    assert len({frozenset(drawn & titles) for drawn in draws}) == 8
    assert sum(counts[:30]) == pytest.approx(sum(counts[30:]), abs=40), "early documents are not preferred"
    assert len(set.union(*(drawn & titles for drawn in draws))) > 50 and titles < everything


def test_other_documents_or_settings_fill_a_folder_anew(shards, tmp_path):
    first = gather_pairs(shards, settings(), tmp_path, seed=1, content="a")
    assert (
        isinstance(first[0:2], list) and first[-1] == list(first)[-1] == PairStore(tmp_path)[len(first) - 1]
    )
    assert len(gather_pairs(shards, settings(spans=False), tmp_path, seed=1, content="a")) < len(first)
    assert len(gather_pairs(shards[:1], settings(), tmp_path, seed=1, content="b")) < len(first)


@given(st.lists(st.integers(0, 40)))
def test_seen_keys_are_a_set(keys):
    seen, expected = SeenKeys(), set()
    for key in keys:
        assert (key in seen) == (key in expected)
        seen.add(key)
        expected.add(key)
        if len(expected) % 3 == 0:
            seen = SeenKeys(seen.all())
    assert seen.all().tolist() == sorted(expected)


def test_pretraining_must_read_something():
    with pytest.raises(ValidationError, match="name `collections` or `documents`"):
        PretrainSettings(titles=True)
