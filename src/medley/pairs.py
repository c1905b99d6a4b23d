"""Training pairs: what a contrastive loss learns from, and readers of the layouts that other tools write.

A pairs file is JSON Lines, Parquet, CSV, TSV or a saved data set (pair_files.py) with `query`, `positive`,
`negatives` (list), `instruction`, `source` and `provenance`; only the first two are required. Three foreign layouts are
recognised by their keys:
sentence-transformers triplets (`anchor`/`query`, `positive`, `negative`, `negative_1`, ...), Tevatron (`query`,
`positive_passages`, `negative_passages`) and FlagEmbedding (`query`, `pos`, `neg`, `prompt`). `positive` and
`negative` hold a text or a list of them. A row with several positives is as many pairs, which keep the number of their
row: so every stage meets one layout, several rows with one query, and a positive of one of them is known to all.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from medley.collections import Collection
from medley.errors import PairsError
from medley.files import parse_json_line, write_jsonl, writing
from medley.fingerprint import fingerprint
from medley.pair_files import LISTS, pair_rows


@dataclass(frozen=True)
class TrainingPair:
    """One row of training data.

    `provenance` says where the row and each of its negatives come from, as plain JSON; a generated row keeps
    the index of the row it came from under `row`. The field `row` is where this pair itself was read from: its row
    of the file, from 0, which the other positives of that row share; it is not written.
    """

    query: str
    positive: str
    negatives: tuple[str, ...] = ()
    instruction: str = ""
    source: str = ""
    provenance: Mapping[str, Any] = field(default_factory=dict)
    row: int | None = field(default=None, compare=False, repr=False)

    def with_negatives(self, negatives: Iterable[str], provenance: Mapping[str, Any]) -> TrainingPair:
        """The same pair with more negatives, each once, and its provenance extended."""
        distinct = tuple(dict.fromkeys((*self.negatives, *negatives)))
        return replace(self, negatives=distinct, provenance={**self.provenance, **provenance})

    def as_row(self) -> dict[str, Any]:
        """The row as a pairs file holds it."""
        row = asdict(self) | {"negatives": list(self.negatives), "provenance": dict(self.provenance)}
        del row["row"]
        return row


def read_pairs(path: Path) -> list[TrainingPair]:
    """Read a pairs file in any known layout: a pair for each positive of each row.

    Raises PairsError with file:line for a row without query or positive, with an empty text, or with a negative
    that equals one of its positives.
    """
    return list(iter_pairs(path))


def iter_pairs(path: Path) -> Iterator[TrainingPair]:
    """The pairs of a file one by one, checked as `read_pairs` does; JSON Lines are never in memory as a whole."""
    number = -1
    for number, (where, row) in enumerate(pair_rows(path)):
        yield from pairs_from_row(row, where, number)
    if number < 0:
        raise PairsError(f"{path}: holds no rows; a pairs file needs at least one.")


def numbered(pairs: Iterable[TrainingPair]) -> Iterator[tuple[int, TrainingPair]]:
    """Each pair with the number of its row: in the file that it was read from or, if in none, its place here."""
    for place, pair in enumerate(pairs):
        yield place if pair.row is None else pair.row, pair


@dataclass(frozen=True)
class StreamedPairs:
    """A pairs file that can be read from the start again and again, row by row; checked each time."""

    path: Path

    def __iter__(self) -> Iterator[TrainingPair]:
        return iter_pairs(self.path)


def pairs_from_row(row: Mapping[str, Any], where: str, number: int | None = None) -> list[TrainingPair]:
    """Understand one row in any known layout and check it: a pair for each of its positives, each text once.

    `where` is the row's file:line for messages, `number` its place in the file.
    """
    name = "query" if "query" in row else "anchor"
    if row.get(name) is None:
        raise _without(row, "query", where)
    query = _passage_text(row[name], name, where)
    positives = _texts(row, ("positive_passages", "pos", "positive", "positives"), where)
    if not positives:
        raise _without(row, "positive", where)
    negatives = _texts(row, ("negative_passages", "neg", "negatives", *_negative_columns(row)), where)
    own = {_plain(text) for text in positives.values()}
    for name, text in negatives.items():
        if _plain(text) in own:
            other = "the positive" if len(own) == 1 else "a positive of its row"
            raise PairsError(f"{where}: {name} equals {other}; remove it.")
    provenance = row.get("provenance") or {}
    if isinstance(provenance, str):  # Parquet has no free-form objects: there it is JSON text
        provenance = parse_json_line(provenance.encode(), f"{where}: provenance", PairsError)
    if not isinstance(provenance, Mapping):
        raise PairsError(f"{where}: provenance must be a JSON object.")
    return [
        TrainingPair(
            query,
            positive,
            tuple(negatives.values()),
            str(row.get("instruction") or row.get("prompt") or ""),
            str(row.get("source") or ""),
            provenance,
            number,
        )
        for positive in dict.fromkeys(positives.values())
    ]


def _without(row: Mapping[str, Any], key: str, where: str) -> PairsError:
    found = ", ".join(sorted(row)) or "none"
    return PairsError(f"{where}: no key {key!r} (found: {found}); write query, positive and negatives.")


def _texts(row: Mapping[str, Any], keys: Iterable[str], where: str) -> dict[str, str]:
    """The texts under some keys by a name for messages. A table's columns may be empty where a row has fewer."""
    texts: dict[str, str] = {}
    for key in keys:
        value, kind = row.get(key), "negative" if key.startswith("neg") else "positive"
        if value is None or (value == "" and key.startswith("negative")):
            continue
        if isinstance(value, (list, tuple)):
            if not value and kind == "positive":
                raise PairsError(f"{where}: {key} is empty; a row needs a positive.")
            for index, item in enumerate(value):
                name = f"{kind} {index}" if f"{kind} {index}" not in texts else f"{key} {index}"
                texts[name] = _passage_text(item, name, where)
        elif key in LISTS:
            raise PairsError(f"{where}: {key} must be a list of strings (found: {value!r:.60}).")
        else:
            texts[key] = _passage_text(value, key, where)
    return texts


def _passage_text(passage: Any, name: str, where: str) -> str:
    """A text, or a passage as Tevatron writes one: an object with a text and mostly a title."""
    if isinstance(passage, Mapping) and isinstance(passage.get("text"), str):
        passage = f"{passage.get('title') or ''} {passage['text']}".strip()
    if not isinstance(passage, str) or not passage.strip():
        gone = "it" if name.startswith("neg") else "the line"
        raise PairsError(f"{where}: {name} is empty or not a string; give it a text or remove {gone}.")
    return passage


def _negative_columns(row: Mapping[str, Any]) -> list[str]:
    """The keys `negative`, `negative_1`, ... in their order."""
    found = [match for key in row if (match := re.fullmatch(r"negative(?:_(\d+))?", key))]
    return [match[0] for match in sorted(found, key=lambda match: int(match[1] or -1))]


def _plain(text: str) -> str:
    """A text without what no reader sees: the way its accents are encoded, and the kind of its white space."""
    return " ".join(unicodedata.normalize("NFC", text).split())


def pairs_from_collection(
    collection: Collection, *, instruction: str = "", source: str = "", with_judged_negatives: bool = True
) -> list[TrainingPair]:
    """One pair per query and relevant passage; passages judged 0 become the pair's negatives.

    Such human negatives are the best there are; their ids are kept in the provenance.
    """
    wanted = {passage_id for scores in collection.judgements.values() for passage_id in scores}
    texts = {passage.id: passage.full_text for passage in collection.corpus if passage.id in wanted}
    pairs = []
    for query_id, query in collection.queries.items():
        scores = collection.judgements[query_id]
        judged = sorted(p for p, score in scores.items() if score <= 0) if with_judged_negatives else []
        relevant = {_plain(texts[positive_id]) for positive_id in collection.positives(query_id)}
        negatives = [p for p in judged if _plain(texts[p]) not in relevant]
        for positive_id in collection.positives(query_id):
            positive = texts[positive_id]
            provenance: dict[str, Any] = {
                "collection": collection.name, "split": collection.split, "query_id": query_id,
                "positive_id": positive_id,
            }  # fmt: skip
            if negatives:
                provenance["judged_negatives"] = negatives
            pairs.append(
                TrainingPair(
                    query, positive, tuple(texts[p] for p in negatives), instruction, source or collection.name,
                    provenance,
                )
            )  # fmt: skip
    if not pairs:
        raise PairsError(
            f"{collection.name}:{collection.split}: no relevant judgement, hence no training pairs."
        )
    return pairs


def write_pairs(path: Path, pairs: Iterable[TrainingPair], *, force: bool = True) -> int:
    """Write a pairs file (JSON Lines, .jsonl.gz or .parquet); return the number of rows.

    Without `force` never over a file.
    """
    if path.suffix == ".parquet":
        import pyarrow
        import pyarrow.parquet

        rows = [{**pair.as_row(), "provenance": json.dumps(dict(pair.provenance))} for pair in pairs]
        with writing(path, force=force) as temporary:
            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), temporary)
        return len(rows)
    return write_jsonl(path, (pair.as_row() for pair in pairs), force=force)


def fingerprint_pairs(pairs: Iterable[TrainingPair]) -> str:
    """Content fingerprint of pairs, in order."""
    return fingerprint([pair.as_row() for pair in pairs])
