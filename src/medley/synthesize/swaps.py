"""Entity swaps in one text: which of its terms change, into which siblings, at every place where they stand.

From a text, the query's stems and a `Lexicon` to changes. Only terms that the query names are swapped, the
rarest first: the text then is about something else than the query. A sibling must fit the words around every
mention, and one that the text already mentions is never used.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from medley.synthesize.entities import Chunk, Lexicon, content_chunks, stems_of
from medley.synthesize.rewrite import WORD, Change, is_plural, like_case, plural, singular
from medley.synthesize.words import DETERMINERS, FUNCTION_WORDS, PREPOSITIONS, TO_VERB

NEAR_TITLES = 2
"""So many of the nearest passages (itself the first) may lend their subject to this one."""
_ABBREVIATED = re.compile(r"\s*\([A-Z][A-Za-z0-9-]{1,9}s?\)")
_OBJECTS = (DETERMINERS | {"it", "them", "him", "us", "me", "you", "both", "many", "more"}) - {"no", "any"}


@dataclass(frozen=True)
class _Mention:
    """A place where a term stands, with the content words right before and after it in the same run."""

    start: int
    surface: str
    word_before: str
    word_after: str
    verb: bool


def entity_changes(
    text: str,
    query_stems: frozenset[str],
    lexicon: Lexicon,
    *,
    rng: random.Random,
    at_most: int,
    title_end: int = 0,
) -> list[Change]:
    """Swap up to `at_most` terms that text and query share for siblings, all mentions alike.

    The first `title_end` characters are a heading of their own. Empty when no shared term has a sibling that
    fits.
    """
    changes: list[Change] = []
    near = [index for index, _ in lexicon.near(text[:title_end], text[title_end:])]
    chunks = [*content_chunks(text[:title_end])]
    chunks += [replace(chunk, start=chunk.start + title_end) for chunk in content_chunks(text[title_end:])]
    mentioned = _mentions(chunks, query_stems, near, lexicon)
    avoided = {form for word in WORD.findall(text) for form in _forms(word.lower())} | query_stems
    order = sorted(mentioned, key=lambda name: (-_rarity(name, query_stems, lexicon), name))
    swapped = 0
    for name in order:
        if swapped == at_most:
            break
        mentions = mentioned[name]
        if any(
            mention.verb or _ABBREVIATED.match(text, mention.start + len(mention.surface))
            for mention in mentions
        ):
            continue  # an abbreviation would go on naming the old term
        sibling = _choose(name, mentions, avoided, near, lexicon=lexicon, rng=rng)
        if sibling is None:
            continue
        swapped += 1
        avoided |= {form for word in WORD.findall(sibling) for form in _forms(word.lower())}
        changes += [Change(m.start, m.surface, _inflected(sibling, name, m.surface)) for m in mentions]
    return changes


def _forms(word: str) -> set[str]:
    return {word, singular(word), plural(word)}


def _rarity(name: str, query_stems: frozenset[str], lexicon: Lexicon) -> float:
    """How much of the query's mass a term carries."""
    return sum(lexicon.idf(stem) for stem in sorted(set(stems_of(name)) & query_stems))


def _mentions(
    chunks: Sequence[Chunk], query_stems: frozenset[str], near: Sequence[int], lexicon: Lexicon
) -> dict[str, list[_Mention]]:
    """The longest known terms of a text that share a stem with the query, with their places."""
    subjects = {title.lower() for title in _near_subjects(near, lexicon)}
    found: dict[str, list[_Mention]] = {}
    for chunk in chunks:
        for start, end in _terms_in(chunk, lexicon, subjects):
            name = _known(chunk.text[start:end], lexicon, subjects)
            if name is not None and set(stems_of(name)) & query_stems:
                found.setdefault(name, []).append(_mention(chunk, start, end, lexicon))
    return found


def _terms_in(chunk: Chunk, lexicon: Lexicon, subjects: set[str]) -> Iterator[tuple[int, int]]:
    """(start, end) within a chunk of its longest known terms, from the left."""
    words = list(WORD.finditer(chunk.text))
    index = 0
    while index < len(words):
        for length in range(min(lexicon.longest, len(words) - index), 0, -1):
            start, end = words[index].start(), words[index + length - 1].end()
            if _known(chunk.text[start:end], lexicon, subjects) is not None:
                yield start, end
                index += length
                break
        else:
            index += 1


def _mention(chunk: Chunk, start: int, end: int, lexicon: Lexicon) -> _Mention:
    before = WORD.findall(chunk.text[:start])
    after = WORD.findall(chunk.text[end:])
    led = chunk.before.lower() if not before else ""
    named = led in DETERMINERS or led in PREPOSITIONS
    ruling = not after and chunk.after.lower() in _OBJECTS and not named
    ruling = ruling or led in TO_VERB or bool(after and after[0].endswith("ly"))
    verb = ruling and singular(chunk.text[start:end].lower()) in lexicon.verbs
    return _Mention(
        chunk.start + start,
        chunk.text[start:end],
        before[-1].lower() if before else "",
        after[0].lower() if after else "",
        verb,
    )


def _near_subjects(near: Sequence[int], lexicon: Lexicon) -> list[str]:
    return [lexicon.titles[index] for index in near[:NEAR_TITLES] if index in lexicon.titles]


def _known(surface: str, lexicon: Lexicon, subjects: set[str]) -> str | None:
    """The lexicon's key for a surface form, its number ignored; None where it has no siblings."""
    low = surface.lower()
    if low in FUNCTION_WORDS or not re.fullmatch(r"[\w\s'’-]+", low):
        return None
    lemma = singular(low)
    for form in dict.fromkeys((lemma, low, plural(lemma))):
        if form in lexicon.siblings or form in lexicon.group_of or form in subjects:
            return form
    return None


def _choose(
    name: str,
    mentions: Sequence[_Mention],
    avoided: set[str] | frozenset[str],
    near: Sequence[int],
    *,
    lexicon: Lexicon,
    rng: random.Random,
) -> str | None:
    """A sibling by strength of relation and by how many near passages mention it; ties by chance."""
    options = dict(lexicon.siblings.get(name, {}))
    for other in lexicon.groups.get(lexicon.group_of.get(name, ""), ()):
        if is_plural(other) == is_plural(name) and not set(other.lower().split()) >= set(name.split()):
            options.setdefault(other, 0.6)
    subjects = _near_subjects(near, lexicon)
    if name in {subject.lower() for subject in subjects}:
        for subject in subjects:
            if is_plural(subject) == is_plural(name):
                options.setdefault(subject, 0.6)
    scored = []
    strongest = max(options.values(), default=0.0)
    for sibling, strength in sorted(options.items()):
        if strongest == 1 and strength < 1:
            continue  # a class written by people beats what a corpus suggests
        words = [word.lower() for word in WORD.findall(sibling)]
        new_words = [word for word in words if word not in name.split(" ")]
        if not new_words or any(_forms(word) & avoided for word in new_words):
            continue
        if not set(stems_of(sibling)).isdisjoint(avoided) or not _fits(words, mentions, lexicon):
            continue
        shared = [set(near).intersection(lexicon.documents.get(stem, ())) for stem in stems_of(sibling)]
        together = len(set.intersection(*shared)) if shared else 0
        if strength < 1 and not together:
            continue
        scored.append((strength + 0.5 * min(together, 3) + 0.4 * rng.random(), sibling))
    return max(scored)[1] if scored else None


def _fits(words: Sequence[str], mentions: Sequence[_Mention], lexicon: Lexicon) -> bool:
    """Whether at most half of the mentions stand beside a word unknown beside the sibling."""
    strange = 0
    for mention in mentions:
        before = not mention.word_before or any(
            f"{mention.word_before} {form}" in lexicon.bigrams for form in _forms(words[0])
        )
        after = not mention.word_after or any(
            f"{form} {mention.word_after}" in lexicon.bigrams for form in _forms(words[-1])
        )
        strange += not (before and after)
    return 2 * strange <= len(mentions) if len(mentions) > 1 else not strange


def _inflected(sibling: str, name: str, surface: str) -> str:
    """The sibling in a mention's number and case."""
    new = sibling
    if surface.lower() != name:
        new = plural(sibling) if is_plural(surface) else singular(sibling)
    return like_case(new, surface)
