"""Labelled positives: whatever layout says them, none of them is a negative of its query anywhere."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chat import LLM, Scripted
from medley.collections import Passage
from medley.encoder import Retriever, RetrieverSettings, build_retriever
from medley.guard.decide import guard_negatives
from medley.guard.settings import GuardSettings
from medley.mine import MiningSettings, mine_negatives
from medley.pairs import TrainingPair, read_pairs, write_pairs
from medley.positives import PositiveKeys
from medley.synthesize import GenerationSettings, collected, generate_negatives
from medley.synthesize.perturb import PerturbationSettings, perturb_negatives
from medley.train.batches import keys_of
from medley.train.collate import Collator, batch_texts
from medley.train.settings import TrainSettings

WORDS = (
    "insulin",
    "type",
    "diabetes",
    "caf\u00e9",
    "treated",
    "daily",
    "\u7cd6\u5c3f\u75c5",
    "\u0926\u093f\u0932",
    "beats",
    "1",
)
TEXTS = st.lists(st.sampled_from(WORDS), min_size=2, max_size=6).map(" ".join)
QUERIES = st.sampled_from(("diabetes treated", "insulin caf\u00e9", "beats daily"))
LAYOUTS = ("tevatron", "flagembedding", "list", "rows")


def plain(text: str) -> str:
    """A text without differences of Unicode form and white space."""
    return " ".join(unicodedata.normalize("NFC", text).split())


def lines(query: str, positives: list[str], negatives: list[str], layout: str) -> list[dict[str, Any]]:
    """A query with its positives and negatives as a layout writes it."""
    if layout == "tevatron":
        passages = [
            [{"docid": str(i), "title": "", "text": t} for i, t in enumerate(own)]
            for own in (positives, negatives)
        ]
        return [
            {
                "query_id": "1",
                "query": query,
                "positive_passages": passages[0],
                "negative_passages": passages[1],
            }
        ]
    if layout == "flagembedding":
        return [{"query": query, "pos": positives, "neg": negatives}]
    if layout == "list":
        return [{"query": query, "positive": positives, "negative": negatives}]
    return [{"query": query, "positive": text, "negatives": negatives} for text in positives]


@st.composite
def files(draw: st.DrawFn) -> list[dict[str, Any]]:
    """The rows of a file: several layouts, queries that recur, other forms of the same text."""
    rows: list[dict[str, Any]] = []
    for _ in range(draw(st.integers(1, 5))):
        query, positives = draw(QUERIES), draw(st.lists(TEXTS, min_size=1, max_size=3, unique_by=plain))
        spread = draw(st.sampled_from(("%s", " %s ", "%s")))
        positives = [
            spread % draw(st.sampled_from((text, unicodedata.normalize("NFD", text)))) for text in positives
        ]
        own = {plain(text) for text in positives}
        negatives = [text for text in draw(st.lists(TEXTS, max_size=2)) if plain(text) not in own]
        rows += lines(query, positives, negatives, draw(st.sampled_from(LAYOUTS)))
    return rows


@pytest.fixture(scope="module")
def retriever() -> Retriever:
    return build_retriever("tiny", RetrieverSettings())


def labelled(rows: list[dict[str, Any]]) -> dict[str, set[str]]:
    """For each query all its positives, read without Medley's reader."""
    found: dict[str, set[str]] = {}
    for row in rows:
        positives = row.get("pos") or [p["text"] for p in row.get("positive_passages", ())] or row["positive"]
        positives = [positives] if isinstance(positives, str) else positives
        found.setdefault(plain(row["query"]), set()).update(map(plain, positives))
    return found


def false_negatives(pairs: list[TrainingPair], known: dict[str, set[str]]) -> list[tuple[str, str]]:
    return [(p.query, text) for p in pairs for text in p.negatives if plain(text) in known[plain(p.query)]]


@settings(max_examples=25, deadline=None)
@given(files(), st.integers(0, 3))
def test_no_labelled_positive_is_a_negative_of_its_query(rows: list[dict[str, Any]], seed: int) -> None:
    known = labelled(rows)
    with TemporaryDirectory() as folder:
        path = Path(folder) / "pairs.jsonl"
        path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
        given_pairs = read_pairs(path)
        everything = [text for own in known.values() for text in own]
        corpus = [Passage(str(i), unicodedata.normalize("NFD", text)) for i, text in enumerate(everything)]
        free = MiningSettings(margin=None, per_query=4)
        mined = mine_negatives(given_pairs, corpus, free, seed=seed).pairs
        assert false_negatives(mined, known) == []
        assert {(plain(p.query), plain(p.positive)) for p in mined} == {
            (query, text) for query, own in known.items() for text in own
        }
        write_pairs(path, mined)
        assert read_pairs(path) == mined
    alone = mine_negatives(given_pairs, None, free, seed=seed).pairs
    guarded = guard_negatives(given_pairs, GuardSettings(), seed=seed).pairs
    keys = PositiveKeys(given_pairs)
    cleaned = list(keys.cleaned(given_pairs))
    perturbed = list(perturb_negatives(cleaned, corpus, PerturbationSettings(per_query=2), seed=seed).pairs)
    chat = Scripted(lambda prompt, sampling: everything[(sampling.seed or 0) % len(everything)] + " .")
    asked = GenerationSettings(per_query=2, max_bad=1.0)
    written = collected(generate_negatives(cleaned, chat, asked, llm=LLM, seed=seed, positives=keys)).pairs
    for made in (alone, guarded, perturbed, list(written)):
        assert false_negatives(made, known) == []


@settings(max_examples=12, deadline=None)
@given(files())
def test_no_labelled_positive_is_a_negative_in_a_batch(
    retriever: Retriever, rows: list[dict[str, Any]]
) -> None:
    known = labelled(rows)
    with TemporaryDirectory() as folder:
        path = Path(folder) / "pairs.jsonl"
        path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
        pairs = read_pairs(path)
    collator = Collator(retriever, pairs, TrainSettings(negatives=4), keys_of(pairs))
    batch = batch_texts(retriever, pairs, negatives=4)
    prompt = len(retriever.document_prompt)
    passages = [batch.texts[place][prompt:] for place in batch.passages]
    features = collator([{"row": number} for number in range(len(pairs))])
    hidden = features["text_hidden"].tolist()
    for number, pair in enumerate(pairs):
        seen = set(range(len(passages))) - set(hidden[number]) - {batch.positives[number]}
        assert not {plain(passages[column]) for column in seen} & known[plain(pair.query)]
