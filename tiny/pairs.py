"""Raw text and unlabelled text pairs for the bundled model: what to read, what to leave out, what to pair."""

from __future__ import annotations

import gzip
import json
import math
import random
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

EXCLUDED_FILES = ("medquad_answers",)  # its headings are test questions of the collections
BOOK_CHARACTERS = 60_000  # at most so much of each book
STOP_WORDS = frozenset(
    "the of and in to a is for with that was were by on as are be from this".split()  # noqa: SIM905
)
PAIR_WEIGHTS = {"title": 0.27, "definition": 0.08, "spans": 0.18, "sentence": 0.22, "keywords": 0.25}
ANY_INSTRUCTION = (
    "Given a question, retrieve passages that answer it",
    "Given a query, retrieve documents that answer the query",
    "Given a query, retrieve relevant passages",
    "Represent this query for searching relevant passages",
    "Given a search query, retrieve passages that are about it",
)
INSTRUCTIONS = {
    "title": (
        "Given a title, retrieve the passage that it belongs to",
        "Given the title of an article, retrieve its abstract",
        "Given a heading, retrieve the section below it",
        "Given a topic, retrieve passages about it",
    ),
    "definition": (
        "Given a term, retrieve its definition",
        "Given a medical question, retrieve passages that answer it",
        "Given the name of a disease, retrieve a passage that describes it",
    ),
    "spans": (
        "Given a passage, retrieve a passage of the same document",
        "Given a text, retrieve texts on the same subject",
        "Given a question of a patient, retrieve similar questions",
    ),
    "sentence": (
        "Given a claim, retrieve documents that support or refute the claim",
        "Given a scientific claim, retrieve abstracts that support or refute it",
        "Given a sentence, retrieve the passage that it was taken from",
    ),
    "keywords": (
        "Given keywords, retrieve passages that contain them",
        "Given a medical query, retrieve documents that answer the query",
    ),
}


@dataclass
class Chunk:
    """A few consecutive sentences of one document below one title or heading."""

    title: str
    sentences: list[str]
    source: str
    first: bool  # the chunk opens its document or section, so the title describes it


def normalise(text: str) -> str:
    """Lower-case letters and digits, single spaces: the form in which overlaps are sought."""
    return " ".join(re.findall(r"[a-z0-9]+", text.lower()))


def read_documents(data: Path) -> Iterator[tuple[str, str, str]]:
    """Yield (source, title, body) of every document of the raw text."""
    for path in sorted(data.glob("raw/*/*.txt.gz")):
        source = path.name.removesuffix(".txt.gz")
        if source in EXCLUDED_FILES:
            continue
        text = gzip.decompress(path.read_bytes()).decode("utf-8")
        if source == "disease_ontology":
            for line in text.splitlines():
                term, _, definition = line.partition(": ")
                yield source, term.strip(), definition.strip().replace("_", " ")
            continue
        for block in re.split(r"\n\s*\n", text):
            title, _, body = block.strip().partition("\n")
            if source.startswith("classic_books"):
                body = body.partition("-------\n")[2][:BOOK_CHARACTERS]
                title = title.removeprefix("Title: ")
            if len(body) > 20:
                yield source, title.strip(), body.strip()


def is_english(text: str) -> bool:
    """A cheap test: enough of the words are English stop words (short texts pass)."""
    words = re.findall(r"[^\W\d_]+", text[:2000].lower())
    return len(words) < 25 or sum(word in STOP_WORDS for word in words) / len(words) > 0.12


def collection_fingerprints(data: Path) -> tuple[set[str], set[str]]:
    """Normalised titles and text openings of all documents of the test collections."""
    titles, openings = set(), set()
    for path in sorted(data.glob("collections/*/corpus.jsonl")):
        for line in path.open(encoding="utf-8"):
            document = json.loads(line)
            titles.add(normalise(document.get("title", "")))
            openings.add(normalise(document["text"][:400])[:100])
    return titles - {""}, {opening for opening in openings if len(opening) >= 40}


def load_documents(data: Path) -> tuple[list[tuple[str, str, str]], dict[str, Counter[str]]]:
    """Documents that are English and do not occur in a test collection; what was kept or dropped."""
    titles, openings = collection_fingerprints(data)
    counts: dict[str, Counter[str]] = {}
    documents = []
    for source, title, body in read_documents(data):
        count = counts.setdefault(source, Counter())
        if normalise(title) in titles or normalise(body[:400])[:100] in openings:
            count["dropped: in a test collection"] += 1
        elif not is_english(body):
            count["dropped: not English"] += 1
        else:
            count["kept"] += 1
            documents.append((source, title, body))
    return documents, counts


def cut_into_chunks(source: str, title: str, body: str, sentences_per_chunk: int = 12) -> list[Chunk]:
    """Cut a document at its headings and after every few sentences."""
    if source == "disease_ontology":
        return [Chunk(title, [body], source, True)]
    chunks: list[Chunk] = []
    heading, opens, sentences = title, True, []

    def flush() -> None:
        nonlocal opens, sentences
        if sum(map(len, sentences)) > 150:
            chunks.append(Chunk(heading, sentences, source, opens))
            opens = False
        sentences = []

    for line in body.split("\n"):
        line = line.strip()
        if line.startswith(("Learning Outcomes", "By the end of this", "After studying")):
            continue
        if 8 < len(line) < 80 and line[-1] not in '.;:,!?"”' and "openstax" in source:
            flush()
            heading, opens = line, True
            continue
        for sentence in re.split(r"(?<=[.!?])\s+(?=[A-Z0-9\"“(])", line):
            if len(sentence) > 20:
                sentences.append(sentence)
            if len(sentences) >= sentences_per_chunk:
                flush()
    flush()
    return chunks


class PairSampler:
    """Draws batches of (query, passage) texts of one pair type from unlabelled chunks."""

    def __init__(self, chunks: list[Chunk], word_counts: Counter[str], total: int) -> None:
        self.word_counts, self.total = word_counts, total
        definitions = [chunk for chunk in chunks if chunk.source == "disease_ontology"]
        prose = [c for c in chunks if c.source != "disease_ontology" and len(c.sentences) >= 3]
        # Books are far from every search task: keep them a small part.
        prose = [c for i, c in enumerate(prose) if "books" not in c.source or i % 4 == 0]
        titled = [c for c in prose if c.first and len(c.title.split()) >= 3 and "books" not in c.source]
        self.pools = {"title": titled, "definition": definitions}
        self.pools |= dict.fromkeys(("spans", "sentence", "keywords"), prose)

    def keywords(self, text: str, rng: random.Random) -> str:
        """Five to eight words of a text, rare ones more likely."""
        words = sorted({w for w in re.findall(r"[^\W\d_][\w-]+", text) if w.lower() not in STOP_WORDS})
        rarity = [math.log(self.total / (1 + self.word_counts[word.lower()])) for word in words]
        ranked = sorted(range(len(words)), key=lambda i: -max(rarity[i], 0.01) * rng.random() ** 0.5)
        chosen = [words[i] for i in ranked[: rng.randint(3, 8)]]
        rng.shuffle(chosen)
        return " ".join(chosen)

    def pair(self, kind: str, chunk: Chunk, rng: random.Random) -> tuple[str, str]:
        """One query and the passage that it should find."""
        sentences, title = chunk.sentences, chunk.title
        if kind == "definition":
            query, passage = chunk.title, " ".join(sentences)
            if rng.random() < 0.3:
                forms = ("What is {}?", "what causes {}", "Do I have {}?", "{} symptoms")
                query = rng.choice(forms).format(query)
            return query, passage
        start = 0 if rng.random() < 0.4 else rng.randrange(max(1, len(sentences) - 3))
        title_prefix = f"{title} " if rng.random() < 0.5 else ""
        if kind == "title":
            return title, " ".join(sentences[start:])
        if kind == "spans":  # two neighbouring spans, either of them before the other
            middle = rng.randint(1, len(sentences) - 1)
            left, right = sentences[max(0, middle - rng.randint(1, 3)) : middle], sentences[middle:]
            if rng.random() < 0.5:
                left, right = sentences[middle : middle + rng.randint(1, 3)], sentences[:middle]
            return " ".join(left), title_prefix + " ".join(right)
        passage = sentences[start : start + 6]
        if kind == "keywords":
            return self.keywords(" ".join(passage[:4]), rng), title_prefix + " ".join(passage)
        position = rng.randrange(min(5, len(passage)))
        query = passage[position]
        if rng.random() < 0.85:
            passage = passage[:position] + passage[position + 1 :]
        return query, title_prefix + " ".join(passage)

    def batch(self, size: int, rng: random.Random, kind: str | None = None) -> tuple[list[str], list[str]]:
        """Queries and passages of one batch: one pair type, one template, no passage twice."""
        kind = kind or rng.choices(list(PAIR_WEIGHTS), weights=list(PAIR_WEIGHTS.values()))[0]
        pool = self.pools[kind]
        pairs = [self.pair(kind, chunk, rng) for chunk in rng.sample(pool, min(size, len(pool)))]
        queries, passages = map(list, zip(*pairs, strict=True))
        if kind == "definition" and rng.random() < 0.3:
            queries, passages = passages, queries
        queries = [query.rstrip(" .?") if rng.random() < 0.3 else query for query in queries]
        queries = [query.lower() if rng.random() < 0.3 else query for query in queries]
        if rng.random() < 0.15:
            passages = [passage.lower() for passage in passages]
        if rng.random() < 0.5:
            instruction = rng.choice(INSTRUCTIONS[kind] + ANY_INSTRUCTION)
            queries = [f"{instruction}\nQuery: {query}" for query in queries]
            passages = [f"Represent this passage\npassage: {passage}" for passage in passages]
        return queries, passages
