"""What could stand in for what: siblings of terms, learned from a corpus without any model.

From passages and a table of general classes (siblings.txt) to a `Lexicon`. Two terms of a corpus are siblings
when they are coordinated somewhere (`atenolol and propranolol`), end in the same telling suffix (`-itis`,
`-pril`), share their head noun (`breast cancer`, `prostate cancer`), are named like genes, or are both short
titles.
"""

from __future__ import annotations

import functools
import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from medley.collections import Passage
from medley.errors import InputError
from medley.synthesize.rewrite import WORD, is_plural, plural, singular
from medley.synthesize.words import DETERMINERS, FUNCTION_WORDS, PREPOSITIONS, SUFFIXES, TO_VERB
from medley.text_file import read_text

TABLE = Path(__file__).with_name("siblings.txt")
_GENE = re.compile(r"[A-Z]{1,6}[A-Za-z]{0,3}-?\d{1,4}[A-Za-z]?$")


@dataclass(frozen=True)
class Chunk:
    """A run of content words in a text: what a noun phrase looks like without a parser."""

    text: str
    start: int
    before: str
    after: str
    separator: str
    """What stands between the previous chunk and this one."""

    @property
    def words(self) -> list[str]:
        """Its words."""
        return self.text.split(" ")


@dataclass(frozen=True)
class Lexicon:
    """Terms of a corpus, their siblings and where they occur.

    `siblings` maps a term in lower case to {sibling as it is written: strength in (0, 1]}; `group_of` names
    the group of a term whose `groups` members are built alike (suffix, head noun, gene); `documents` maps a
    word stem to the indices of the passages that hold it and its log frequency there; `size` is the number of
    passages.
    """

    siblings: Mapping[str, Mapping[str, float]]
    groups: Mapping[str, Sequence[str]]
    group_of: Mapping[str, str]
    documents: Mapping[str, Mapping[int, float]]
    norms: Sequence[float]
    bigrams: Set[str]
    verbs: Set[str]
    titles: Mapping[int, str]
    longest: int

    @property
    def size(self) -> int:
        """Number of passages."""
        return len(self.norms)

    def idf(self, stem: str) -> float:
        """Inverse document frequency of a stem: log(1 + N / (1 + df)); 0.7 where each has it."""
        return math.log(1 + self.size / (1 + len(self.documents.get(stem, ()))))

    def near(self, title: str, text: str, limit: int = 30) -> list[tuple[int, float]]:
        """(index, similarity) of the passages most like a text, best first: cosine of log tf times idf, title
        words counted three times. Stems of more than a fifth of a large corpus are passed over.
        """
        scores: dict[int, float] = defaultdict(float)
        weights = _weights(title, text)
        norm = math.sqrt(sum((weight * self.idf(stem)) ** 2 for stem, weight in weights.items())) or 1.0
        for stem, weight in weights.items():
            postings = self.documents.get(stem, {})
            if len(postings) <= max(200, self.size // 5):
                query_weight = weight * self.idf(stem) ** 2 / norm
                for index, held in postings.items():
                    scores[index] += query_weight * held / self.norms[index]
        return sorted(scores.items(), key=lambda item: (-item[1], item[0]))[:limit]


def _weights(title: str, text: str) -> dict[str, float]:
    """Log term frequency of each stem of a passage."""
    counts = Counter(stems_of(text))
    for stem in stems_of(title):
        counts[stem] += 3
    return {stem: math.log1p(count) for stem, count in counts.items()}


def stems_of(text: str) -> list[str]:
    """Stems of a text's content words, in order (Snowball, English)."""
    words = [word.lower() for word in WORD.findall(text)]
    kept = [word for word in words if word not in FUNCTION_WORDS and len(word) > 1]
    return [_stem(word) for word in kept]


@functools.lru_cache(maxsize=200_000)
def _stem(word: str) -> str:
    return str(_stemmer().stemWord(word))


@functools.lru_cache(maxsize=1)
def _stemmer() -> Any:
    import Stemmer

    return Stemmer.Stemmer("english")


def read_classes(path: Path) -> list[list[str]]:
    """The classes of a table (its head says the format), each with plural members added as a class of their
    own.

    Raises InputError with file:line for a class of fewer than two members.
    """
    text = read_text(
        path, InputError, missing="no such file; give a table of classes or leave the setting out"
    )
    classes: list[list[str]] = []
    for line_number, line in enumerate(text.splitlines(), start=1):
        if not line.strip() or line.startswith("#"):
            continue
        members = [member.strip() for member in line.split(",") if member.strip()]
        if len(members) < 2:
            raise InputError(
                f"{path}:{line_number}: a class needs at least two members, separated by commas."
            )
        fixed = [member.rstrip("*") for member in members if member.endswith("*")]
        countable = [member for member in members if not member.endswith("*")]
        classes += [group for group in (fixed, countable, [plural(m) for m in countable]) if len(group) > 1]
    return classes


def build_lexicon(passages: Sequence[Passage], *, table: Path = TABLE, limit: int = 20_000) -> Lexicon:
    """Learn siblings from passages (at most `limit` of them, evenly spread) and add the general classes."""
    step = max(1, math.ceil(len(passages) / limit))
    chosen = passages[::step]
    siblings: dict[str, dict[str, float]] = defaultdict(dict)
    for members in read_classes(table):
        _relate(siblings, members, 1.0)
    documents: dict[str, dict[int, float]] = defaultdict(dict)
    phrases: Counter[str] = Counter()
    verbs: set[str] = set()
    bigrams: set[str] = set()
    lists: list[list[str]] = []
    for index, passage in enumerate(chosen):
        for stem, weight in _weights(passage.title, passage.text).items():
            documents[stem][index] = weight
        for text in (passage.title, passage.text):
            chunks = list(content_chunks(text))
            lists += _coordinated(chunks)
            phrases.update(chunk.text for chunk in chunks if _is_noun_phrase(chunk))
            verbs.update(
                singular(chunk.words[0].lower()) for chunk in chunks if chunk.before.lower() in TO_VERB
            )
            bigrams.update(f"{a} {b}".lower() for chunk in chunks for a, b in pairwise(chunk.words))
    nouns = {phrase for phrase in phrases if singular(phrase.split(" ")[-1].lower()) not in verbs}
    for members in lists:
        if all(member in nouns for member in members):
            _relate(siblings, members, 0.8)
    groups = _alike(nouns)
    titles = _subjects(chosen)
    longest = max(
        (term.count(" ") + 1 for term in [*siblings, *titles.values(), *_group_of(groups)]), default=1
    )
    return Lexicon(
        siblings=dict(siblings), groups=groups, group_of=_group_of(groups), documents=dict(documents),
        norms=_norms(documents, len(chosen)), bigrams=bigrams, verbs=verbs, titles=titles,
        longest=min(longest, 4),
    )  # fmt: skip


def _norms(documents: Mapping[str, Mapping[int, float]], size: int) -> list[float]:
    """Length of each passage's vector of log tf times idf."""
    sums = [0.0] * size
    for postings in documents.values():
        idf = math.log(1 + size / (1 + len(postings)))
        for index, weight in postings.items():
            sums[index] += (weight * idf) ** 2
    return [math.sqrt(value) or 1.0 for value in sums]


def _relate(siblings: dict[str, dict[str, float]], members: Sequence[str], strength: float) -> None:
    """Make every member a sibling of every other of the same number; the strongest reason counts."""
    for term in members:
        known = siblings[term.lower()]
        for other in members:
            if other.lower() == term.lower():
                continue
            if strength < 1 and (is_plural(term) != is_plural(other) or _overlap(term, other)):
                continue
            known[other] = max(strength, known.get(other, 0.0))


def _overlap(term: str, other: str) -> bool:
    """Whether one is part of the other, so that a swap would repeat words."""
    mine, theirs = set(term.lower().split()), set(other.lower().split())
    return mine <= theirs or theirs <= mine


def content_chunks(text: str) -> Iterator[Chunk]:
    """Runs of content words, unbroken by punctuation, with the function words around them."""
    words = list(WORD.finditer(text))
    run: list[re.Match[str]] = []
    before, previous_end = "", 0
    for index, word in enumerate(words):
        gap = text[words[index - 1].end() : word.start()] if index else ""
        broken = gap != " "
        if run and (broken or word[0].lower() in FUNCTION_WORDS):
            yield _chunk(text, run, before, "." if broken else word[0], previous_end)
            previous_end = run[-1].end()
            run = []
        if word[0].lower() in FUNCTION_WORDS:
            before = word[0]
            continue
        if not run:
            before = "." if broken else words[index - 1][0]
        run.append(word)
    if run:
        yield _chunk(text, run, before, ".", previous_end)


def _chunk(text: str, run: Sequence[re.Match[str]], before: str, after: str, previous_end: int) -> Chunk:
    start, end = run[0].start(), run[-1].end()
    return Chunk(text[start:end], start, before, after, text[previous_end:start])


def _is_noun_phrase(chunk: Chunk) -> bool:
    """A run of up to three words after a determiner, preposition or list comma, mostly a noun phrase."""
    if len(chunk.words) > 3 or not re.search(r"[A-Za-z]{2}", chunk.words[-1]):
        return False
    if re.search(r"(ly|ing|ed)$", chunk.words[-1]) and not chunk.words[-1][:1].isupper():
        return False
    if any(re.search(r"(ing|ly)$", word) for word in chunk.words[:-1]):
        return False
    listed = re.fullmatch(r",?\s*(and|or)?\s*", chunk.separator) is not None and bool(chunk.separator.strip())
    return chunk.before.lower() in DETERMINERS | PREPOSITIONS or listed


def _coordinated(chunks: Sequence[Chunk]) -> list[list[str]]:
    """Enumerations `A, B and C` or `A and B` of terms of one or two words, as lists of their members."""
    found: list[list[str]] = []
    current: list[str] = []
    for chunk in chunks:
        joined = re.fullmatch(r"\s*,\s*|\s*,?\s+(?:and|or)\s+", chunk.separator)
        fits = len(chunk.words) <= 2 and not re.search(r"(ly|ing)$", chunk.words[-1])
        if joined and current and fits and len(chunk.words) == len(current[-1].split(" ")):
            current.append(chunk.text)
            if joined[0].strip() != "," and chunk.after not in TO_VERB:
                found.append(current)
                current = []
        else:
            current = [chunk.text] if fits else []
    return found


def _alike(nouns: Set[str]) -> dict[str, list[str]]:
    """Groups of terms that share a telling suffix, a head noun, or the shape of a gene's name."""
    groups: dict[str, set[str]] = defaultdict(set)
    for phrase in nouns:
        words = phrase.split(" ")
        if len(words) > 1 and len(words[-1]) > 3:
            groups[words[-1].lower()].add(phrase)
        elif _GENE.fullmatch(phrase):
            groups["gene"].add(phrase)
        else:
            fitting = [s for s in SUFFIXES if phrase.lower().endswith(s) and len(phrase) >= len(s) + 3]
            if fitting:
                written = phrase.lower() if phrase[1:].islower() else phrase
                groups["-" + max(fitting, key=len)].add(written)
    return {name: sorted(members) for name, members in sorted(groups.items()) if len(members) > 1}


def _group_of(groups: Mapping[str, Sequence[str]]) -> dict[str, str]:
    return {member.lower(): name for name, members in groups.items() for member in members}


def _subjects(passages: Sequence[Passage]) -> dict[int, str]:
    """Titles of up to four words (up to a colon or bracket) by the passage's index: what the passage is
    about.
    """
    named = ((index, short_title(passage.title)) for index, passage in enumerate(passages))
    return {index: name for index, name in named if name}


def short_title(title: str) -> str:
    """A title up to its first colon or bracket where that has at most four words and so names a subject, else
    "".
    """
    name = re.split(r"[:(,]", title)[0].strip()
    if not 0 < len(name.split()) <= 4:
        return ""
    first = name.split()[0]
    return name if first[1:] != first[1:].lower() else name[0].lower() + name[1:]
