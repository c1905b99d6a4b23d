"""Training pairs: what a contrastive loss learns from, and readers of the layouts that other tools write.

A pairs file is JSON Lines (plain or .gz) or Parquet with `query`, `positive`, `negatives` (list), `instruction`,
`source` and `provenance`; only the first two are required. Three foreign layouts are recognised by their keys:
sentence-transformers triplets (`anchor`/`query`, `positive`, `negative`, `negative_1`, ...), Tevatron (`query`,
`positive_passages`, `negative_passages`) and FlagEmbedding (`query`, `pos`, `neg`, `prompt`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from medley.collections import Collection
from medley.errors import PairsError
from medley.files import parse_json_line, read_jsonl, write_jsonl, writing
from medley.fingerprint import fingerprint


@dataclass(frozen=True)
class TrainingPair:
    """One row of training data.

    `provenance` says where the row and each of its negatives come from, as plain JSON; a generated row keeps
    the index of the row it came from under `row`.
    """

    query: str
    positive: str
    negatives: tuple[str, ...] = ()
    instruction: str = ""
    source: str = ""
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def with_negatives(self, negatives: Iterable[str], provenance: Mapping[str, Any]) -> TrainingPair:
        """The same pair with more negatives, each once, and its provenance extended."""
        distinct = tuple(dict.fromkeys((*self.negatives, *negatives)))
        return replace(self, negatives=distinct, provenance={**self.provenance, **provenance})

    def as_row(self) -> dict[str, Any]:
        """The row as a pairs file holds it."""
        return {**asdict(self), "negatives": list(self.negatives), "provenance": dict(self.provenance)}


def read_pairs(path: Path) -> list[TrainingPair]:
    """Read a pairs file in any known layout.

    Raises PairsError with file:line for a row without query or positive, with an empty text, or with a negative
    that equals its positive.
    """
    return list(iter_pairs(path))


def iter_pairs(path: Path) -> Iterator[TrainingPair]:
    """The rows of a pairs file one by one, checked as `read_pairs` does; JSON Lines are never in memory as a whole."""
    empty = True
    for where, row in _rows(path):
        empty = False
        yield pair_from_row(row, where)
    if empty:
        raise PairsError(f"{path}: holds no rows; a pairs file needs at least one.")


@dataclass(frozen=True)
class StreamedPairs:
    """A pairs file that can be read from the start again and again, row by row; checked each time."""

    path: Path

    def __iter__(self) -> Iterator[TrainingPair]:
        return iter_pairs(self.path)


def _rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    if path.suffix == ".parquet" or path.is_dir():
        yield from _dataset_rows(path)
    else:
        for line_number, row in read_jsonl(path, PairsError):
            yield f"{path}:{line_number}", row


def _dataset_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Rows of a Parquet file, or of a folder that `datasets.Dataset.save_to_disk` wrote."""
    if not path.exists():
        raise PairsError(f"{path}: no such file; check the path.")
    try:
        if path.is_dir():
            import datasets

            rows: Iterable[dict[str, Any]] = datasets.load_from_disk(str(path))
        else:
            import pyarrow.parquet

            rows = pyarrow.parquet.read_table(path).to_pylist()
        for index, row in enumerate(rows):
            yield f"{path}: row {index}", row
    except (OSError, ValueError, FileNotFoundError) as problem:
        if isinstance(problem, PairsError):
            raise
        raise PairsError(f"{path}: cannot be read as a data set ({problem}); write it again.") from problem


def pair_from_row(row: Mapping[str, Any], where: str) -> TrainingPair:
    """Understand one row in any known layout and check it; `where` is its file:line for messages."""
    keys = ", ".join(sorted(row)) or "none"
    if "positive_passages" in row:
        row = _from_tevatron(row, where)
    elif "pos" in row:
        row = _from_flag_embedding(row, where)
    elif "negatives" not in row:
        row = _from_triplet(row)
    query = _text(row, "query", where, keys)
    positive = _text(row, "positive", where, keys)
    negatives = row.get("negatives") or []
    if not isinstance(negatives, (list, tuple)) or not all(isinstance(text, str) for text in negatives):
        raise PairsError(f"{where}: negatives must be a list of strings.")
    for index, text in enumerate(negatives):
        if not text.strip():
            raise PairsError(f"{where}: negative {index} is empty; remove it.")
        if text.strip() == positive.strip():
            raise PairsError(f"{where}: negative {index} equals the positive; remove it.")
    provenance = row.get("provenance") or {}
    if isinstance(provenance, str):  # Parquet has no free-form objects: there it is JSON text
        provenance = parse_json_line(provenance.encode(), f"{where}: provenance", PairsError)
    if not isinstance(provenance, Mapping):
        raise PairsError(f"{where}: provenance must be a JSON object.")
    return TrainingPair(
        query,
        positive,
        tuple(negatives),
        str(row.get("instruction") or ""),
        str(row.get("source") or ""),
        provenance,
    )


def _text(row: Mapping[str, Any], key: str, where: str, keys: str) -> str:
    value = row.get(key)
    if value is None:
        raise PairsError(f"{where}: no key {key!r} (found: {keys}); write query, positive and negatives.")
    if not isinstance(value, str) or not value.strip():
        raise PairsError(f"{where}: {key} is empty or not a string; give it a text or remove the line.")
    return value


def _from_triplet(row: Mapping[str, Any]) -> dict[str, Any]:
    negatives = [row[key] for key in sorted(row, key=_column_order) if re.fullmatch(r"negative(_\d+)?", key)]
    return {
        **row,
        "query": row.get("query", row.get("anchor")),
        "negatives": [text for text in negatives if text],
    }


def _column_order(key: str) -> tuple[int, str]:
    number = key.rpartition("_")[2]
    return (int(number) if number.isdigit() else -1, key)


def _from_tevatron(row: Mapping[str, Any], where: str) -> dict[str, Any]:
    positives = [_passage_text(passage, where) for passage in row["positive_passages"]]
    if not positives:
        raise PairsError(f"{where}: positive_passages is empty; a row needs a positive.")
    negatives = [_passage_text(passage, where) for passage in row.get("negative_passages") or []]
    return {**row, "positive": positives[0], "negatives": negatives}


def _passage_text(passage: Any, where: str) -> str:
    if not isinstance(passage, Mapping) or not isinstance(passage.get("text"), str):
        raise PairsError(f"{where}: a passage is not an object with a text; write docid, title and text.")
    return f"{passage.get('title') or ''} {passage['text']}".strip()


def _from_flag_embedding(row: Mapping[str, Any], where: str) -> dict[str, Any]:
    if not isinstance(row["pos"], list) or not row["pos"]:
        raise PairsError(f"{where}: pos must be a list with at least one text.")
    return {
        **row,
        "positive": row["pos"][0],
        "negatives": row.get("neg") or [],
        "instruction": row.get("instruction") or row.get("prompt") or "",
    }


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
        for positive_id in collection.positives(query_id):
            positive = texts[positive_id]
            negatives = [p for p in judged if texts[p].strip() != positive.strip()]
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
