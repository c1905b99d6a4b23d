"""A few rows of training data to look at, with their negatives and what was changed in perturbed ones.

Input: pairs.jsonl of the sources, mine and synthesize artefacts, whose rows correspond by position; only
the first rows of each are read. Output: texts in parts, each part plain, deleted, inserted or marked.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from medley.pairs import TrainingPair, iter_pairs

ROWS_READ = 2000
"""Rows of each file that samples are drawn from."""
LONGEST = 900
"""Characters of a text that are shown; the middle of what lies between changes goes first."""

Part = tuple[str, str]
"""(`""`, `del`, `ins` or `mark`, text)."""


@dataclass(frozen=True)
class Negative:
    """One negative in parts, and in words where it comes from."""

    origin: str
    parts: tuple[Part, ...]


@dataclass(frozen=True)
class Sample:
    """One row of training data."""

    source: str
    instruction: str
    query: str
    positive: str
    negatives: tuple[Negative, ...]


def draw_samples(stages: Path, sources: Sequence[str], *, count: int, seed: int) -> list[Sample]:
    """Up to `count` rows, the sources in turn, rows with more negatives and rare kinds of change first."""
    queues = [_in_order(list(_samples(stages, name)), seed) for name in sources]
    turns = [sample for turn in _turns(queues) for sample in turn]
    return turns[:count]


def _turns(queues: Sequence[Sequence[Sample]]) -> Iterator[list[Sample]]:
    for turn in range(max(map(len, queues), default=0)):
        yield [queue[turn] for queue in queues if turn < len(queue)]


def _in_order(samples: Sequence[Sample], seed: int) -> list[Sample]:
    """Shuffled, then one of each combination of origins before a second of any; more negatives first."""
    if not samples:
        return []
    shuffled = list(samples)
    random.Random(f"{seed} {samples[0].source}").shuffle(shuffled)
    seen: dict[tuple[str, ...], int] = {}
    ranked: list[tuple[int, int, int, Sample]] = []
    for sample in shuffled:
        origins = tuple(negative.origin for negative in sample.negatives)
        seen[origins] = seen.get(origins, 0) + 1
        ranked.append((-len(origins), seen[origins], len(ranked), sample))
    by_rarity = sorted(ranked, key=lambda entry: (entry[1] > 1, entry[0], entry[1], entry[2]))
    return [sample for *_, sample in by_rarity]


def _samples(stages: Path, name: str) -> Iterator[Sample]:
    rows = _rows(stages / "sources" / name / "pairs.jsonl")
    mined = _rows(stages / "mine" / name / "pairs.jsonl")
    generated = _rows(stages / "synthesize" / name / "pairs.jsonl")
    for index, pair in enumerate(rows):
        negatives = [Negative("judged not relevant", _plain(text)) for text in pair.negatives[:1]]
        if index < len(mined) and mined[index].negatives:
            found = mined[index].provenance.get("mined")
            retriever = (
                Path(str(found["retriever"])).name
                if isinstance(found, Mapping) and "retriever" in found
                else ""
            )
            origin = f"mined by {'BM25' if retriever == 'bm25' else retriever}" if retriever else "mined"
            negatives.append(Negative(origin, _plain(mined[index].negatives[0])))
        if index < len(generated) and generated[index].negatives:
            negatives.append(_generated(generated[index]))
        yield Sample(name, pair.instruction, pair.query, _cut(pair.positive), tuple(negatives))


def _rows(path: Path) -> list[TrainingPair]:
    return list(islice(iter_pairs(path), ROWS_READ)) if path.is_file() else []


def _generated(pair: TrainingPair) -> Negative:
    text = pair.negatives[0]
    record = pair.provenance.get("perturbed")
    if isinstance(record, list):
        record = record[0] if record else None
    if isinstance(record, Mapping) and isinstance(record.get("changes"), list):
        kind = str(record.get("kind") or "text")
        return Negative(
            f"perturbed: {kind}", shortened(changed_parts(pair.positive, text, record["changes"]))
        )
    written = pair.provenance.get("generated")
    if isinstance(written, list):
        written = written[0] if written else None
    model = str(written.get("model") or "") if isinstance(written, Mapping) else ""
    return Negative(f"written by {model}" if model else "generated", _plain(text))


def changed_parts(positive: str, negative: str, changes: Sequence[Mapping[str, Any]]) -> tuple[Part, ...]:
    """The negative as an edit of the positive: what went is `del`, what came is `ins`.

    Where the record has no offsets, or they don't lead from positive to negative, new words are only marked.
    """
    edits = sorted(
        (start, str(change.get("from", "")), str(change.get("to", "")))
        for change in changes
        for start in change.get("at") or ()
        if isinstance(start, int)
    )
    parts: list[Part] = []
    position = 0
    for start, old, new in edits:
        if start < position or positive[start : start + len(old)] != old:
            return _marked(negative, changes)
        parts += [("", positive[position:start]), ("del", old), ("ins", new)]
        position = start + len(old)
    parts = [part for part in (*parts, ("", positive[position:])) if part[1]]
    rebuilt = "".join(text for tag, text in parts if tag != "del")
    return tuple(parts) if edits and rebuilt == negative else _marked(negative, changes)


def _marked(text: str, changes: Sequence[Mapping[str, Any]]) -> tuple[Part, ...]:
    parts: list[Part] = [("", text)]
    for change in changes:
        new = str(change.get("to") or "")
        parts = [piece for part in parts for piece in _split(part, new)] if new else parts
    return tuple(parts)


def _split(part: Part, wanted: str) -> list[Part]:
    if part[0]:
        return [part]
    pieces: list[Part] = []
    for index, rest in enumerate(part[1].split(wanted)):
        if index:
            pieces.append(("mark", wanted))
        if rest:
            pieces.append(("", rest))
    return pieces


def shortened(parts: tuple[Part, ...]) -> tuple[Part, ...]:
    """The same parts with long unchanged stretches cut in their middle, where the whole is too long."""
    if sum(len(text) for _, text in parts) <= LONGEST:
        return parts
    keep = max(LONGEST // (2 * len(parts)), 60)
    return tuple(
        (tag, text if tag or len(text) <= 2 * keep else f"{text[:keep].rstrip()} … {text[-keep:].lstrip()}")
        for tag, text in parts
    )


def _plain(text: str) -> tuple[Part, ...]:
    return (("", _cut(text)),)


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST else text[: LONGEST - 1].rstrip() + "…"
