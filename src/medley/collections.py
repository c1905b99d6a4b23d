"""Collections: a corpus, queries and relevance judgements for one split, from a BEIR folder, MTEB or the hub.

A collection is named by `SPEC` or `SPEC:SPLIT`, where SPEC is a folder in BEIR layout, `demo/<name>` (bundled),
an MTEB retrieval task name (`SciFact`) or a hub id in BEIR layout (`mteb/scifact`). A BEIR folder holds
`corpus.jsonl` (`_id`, `title`, `text`), `queries.jsonl` (`_id`, `text`) and `qrels/<split>.tsv` (qrels.py; a score of
0 is an explicit human negative).
A split can be sliced by its queries, in file order: `train[:80%]` to train on, `train[80%:]` to choose on.
Opening a folder validates every line once and keeps ids and byte offsets, not texts: passages are read on demand.
"""

from __future__ import annotations

import os
import re
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from medley.errors import CollectionError
from medley.files import json_kind, parse_json_line, read_jsonl, write_jsonl, write_text
from medley.fingerprint import fingerprint, fingerprint_file, fingerprint_texts
from medley.qrels import HEADER, Judgements, read_qrels
from medley.text_file import as_path, check_file, lines_of, open_file

BUNDLED = Path(__file__).parent / "bundled"
SLICE = re.compile(r"(?P<split>[^\[\]:/]+)\[(?P<start>\d+%?)?:(?P<stop>\d+%?)?\]")


@dataclass(frozen=True)
class Passage:
    """One passage of a corpus."""

    id: str
    text: str
    title: str = ""

    @property
    def full_text(self) -> str:
        """What an encoder reads: title, space, text where there is a title (BMRetriever)."""
        return f"{self.title} {self.text}".strip()


@dataclass(frozen=True)
class Collection:
    """A corpus with the queries and judgements of one split.

    `queries` holds only queries that the split judges, in file order. `identity` is a content fingerprint.
    `leaves_out_own`: a passage with the query's own id is no answer and is left out of rankings (ArguAna, where
    queries are passages of the corpus).
    `dangling` counts the split's judgements of queries or passages that are not there, which are left out.
    """

    name: str
    split: str
    corpus: Sequence[Passage]
    queries: Mapping[str, str]
    judgements: Judgements
    identity: str
    leaves_out_own: bool = False
    dangling: int = 0

    def positives(self, query_id: str) -> list[str]:
        """Ids of the passages judged relevant (score above 0) for a query, by descending score, then id."""
        scores = self.judgements[query_id]
        return sorted((p for p, score in scores.items() if score > 0), key=lambda p: (-scores[p], p))


class FolderCorpus(Sequence[Passage]):
    """The passages of a `corpus.jsonl`, validated once and then read by byte offset: memory holds ids only."""

    def __init__(self, path: Path, *, keep_empty: bool = False) -> None:
        self.path = path
        self._keep_empty = keep_empty
        self.ids: list[str] = []
        self._offsets = array("q")
        self._validate()

    def _validate(self) -> None:
        check_file(
            self.path, CollectionError, missing="no such file; a collection folder needs a corpus.jsonl"
        )
        seen: set[str] = set()
        offset = 0
        with open_file(self.path, CollectionError) as stream:
            for line_number, raw in enumerate(lines_of(stream, self.path, CollectionError), start=1):
                if raw.strip():
                    passage = self._passage(raw, line_number)
                    if passage.id in seen:
                        raise CollectionError(
                            f"{self.path}:{line_number}: duplicate passage id {passage.id!r}; ids must be unique."
                        )
                    seen.add(passage.id)
                    self.ids.append(passage.id)
                    self._offsets.append(offset)
                offset += len(raw)
        if not self.ids:
            raise CollectionError(f"{self.path}: holds no passages; add at least one line.")

    def _passage(self, raw: bytes, line_number: int) -> Passage:
        where = f"{self.path}:{line_number}"
        row = parse_json_line(raw, where, CollectionError)
        title = row.get("title") or ""
        if not isinstance(title, str):
            raise CollectionError(f"{where}: title is {json_kind(title)}; it must be a string.")
        if "text" not in row:
            raise CollectionError(
                f"{where}: no key `text` (found: {', '.join(row)}); give every passage one."
            )
        text = row["text"]
        if not isinstance(text, str):
            raise CollectionError(f"{where}: text is {json_kind(text)}; it must be a string.")
        if not self._keep_empty and not text.strip() and not title.strip():
            raise CollectionError(
                f"{where}: the passage is empty; give it a text, remove the line, "
                "or keep it with `empty_passages: keep` (--keep-empty)."
            )
        return Passage(_id(row, where), text, title)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int | slice) -> Passage | list[Passage]:  # type: ignore[override]
        if isinstance(index, slice):
            return [self._read(position) for position in range(*index.indices(len(self)))]
        return self._read(range(len(self))[index])

    def __iter__(self) -> Iterator[Passage]:
        with self.path.open("rb") as stream:
            for line_number, raw in enumerate(stream, start=1):
                if raw.strip():
                    yield self._passage(raw, line_number)

    def _read(self, position: int) -> Passage:
        with self.path.open("rb") as stream:
            stream.seek(self._offsets[position])
            return self._passage(stream.readline(), position + 1)


def load_corpus(spec: str, *, keep_empty: bool = False) -> Sequence[Passage]:
    """The passages of the collection that a spec names, or of a corpus.jsonl by its path.

    A folder needs its corpus.jsonl only; a split is ignored. Raises CollectionError as `load_collection` does.
    """
    file = Path(os.path.expandvars(spec)).expanduser()
    if file.suffix == ".jsonl" or file.is_file():
        return FolderCorpus(file, keep_empty=keep_empty)
    folder = find_folder(split_spec(spec)[0])
    if folder is not None:
        return FolderCorpus(folder / "corpus.jsonl", keep_empty=keep_empty)
    return load_collection(spec, keep_empty=keep_empty).corpus


def load_collection(spec: str, *, default_split: str = "test", keep_empty: bool = False) -> Collection:
    """Open the collection that `SPEC` or `SPEC:SPLIT` names (see the module's head).

    `keep_empty` admits passages without any text, which some classic collections hold.
    Raises CollectionError when nothing has that name, a file is malformed, or ids do not fit together.
    """
    name, split = split_spec(spec, default_split)
    folder = find_folder(name)
    if folder is not None:
        return read_folder(folder, split, keep_empty=keep_empty)
    from medley.mteb_tasks import (
        load_mteb_task,  # imports mteb (3 s), only where a task or hub id is asked for
    )

    return load_mteb_task(name, split)


def split_spec(spec: str, default_split: str = "test") -> tuple[str, str]:
    """Split `SPEC:SPLIT` at its last colon; a colon that is part of an existing path stays with the path."""
    if sliced := re.fullmatch(rf"(?P<name>.+?):(?P<whole>{SLICE.pattern})", spec):
        return sliced["name"], sliced["whole"]
    name, colon, split = spec.rpartition(":")
    if (
        not colon
        or not name
        or "/" in split
        or "\\" in split
        or as_path(os.path.expandvars(spec), CollectionError).exists()
    ):
        return spec, default_split
    return name, split


def find_folder(name: str) -> Path | None:
    """The BEIR folder that a name stands for, with `~` and `$VARIABLES` expanded; None for a task or hub id.

    Raises CollectionError for a path that plainly means a folder but is none, or an unset variable.
    """
    expanded = str(as_path(os.path.expandvars(name), CollectionError))
    if "$" in expanded:
        raise CollectionError(
            f"{name}: the environment variable is not set; export it or write the path out."
        )
    path = Path(expanded)
    if (path / "corpus.jsonl").is_file():
        return path
    if name.startswith("demo/"):
        bundled = BUNDLED / name
        if bundled.is_dir():
            return bundled
        known = ", ".join(
            f"demo/{folder.name}" for folder in sorted((BUNDLED / "demo").iterdir()) if folder.is_dir()
        )
        raise CollectionError(f"{name}: no such bundled collection; there are {known}.")
    if path.is_dir():
        raise CollectionError(
            f"{path}: the folder has no corpus.jsonl; a collection needs one (BEIR layout)."
        )
    if expanded.startswith((".", "/", "~")) or expanded.count("/") > 1:
        raise CollectionError(f"{path}: no such folder; check the path of the collection.")
    return None


def read_folder(
    folder: Path, split: str, *, keep_empty: bool = False, corpus: Sequence[Passage] | None = None
) -> Collection:
    """Read and validate one split of a BEIR folder; `corpus` is that of another split, opened before."""
    if not isinstance(corpus, FolderCorpus):
        corpus = FolderCorpus(folder / "corpus.jsonl", keep_empty=keep_empty)
    texts, unusable = _read_queries(folder / "queries.jsonl")
    sliced = SLICE.fullmatch(split)
    qrels_path = folder / "qrels" / f"{sliced['split'] if sliced else split}.tsv"
    if not as_path(str(qrels_path), CollectionError).is_file():
        splits = ", ".join(sorted(file.stem for file in (folder / "qrels").glob("*.tsv"))) or "none"
        raise CollectionError(f"{qrels_path}: no such split; this collection has: {splits}.")
    judgements, dangling = read_qrels(
        qrels_path, known_queries={*texts, *unusable}, known_passages=set(corpus.ids)
    )
    for query_id in judgements:
        if query_id in unusable:
            raise CollectionError(unusable[query_id])
    if sliced:
        judgements = _slice(judgements, sliced, f"{folder}:{split}")
    return Collection(
        name=folder.name,
        split=split,
        corpus=corpus,
        queries=MappingProxyType({query_id: text for query_id, text in texts.items() if query_id in judgements}),
        judgements=MappingProxyType(judgements),
        identity=fingerprint(
            [fingerprint_file(folder / "corpus.jsonl"), fingerprint_file(folder / "queries.jsonl"), split,
             fingerprint_file(qrels_path)]
        ),
        dangling=dangling,
    )  # fmt: skip


def _slice(
    judgements: dict[str, dict[str, int]], sliced: re.Match[str], where: str
) -> dict[str, dict[str, int]]:
    """The judgements of some of the queries, by position or per cent in file order."""

    def position(bound: str | None, default: int) -> int:
        if bound is None:
            return default
        return len(judgements) * int(bound[:-1]) // 100 if bound.endswith("%") else int(bound)

    start, stop = position(sliced["start"], 0), position(sliced["stop"], len(judgements))
    kept = dict(list(judgements.items())[start:stop])
    if not any(grade > 0 for scores in kept.values() for grade in scores.values()):
        raise CollectionError(
            f"{where}: the slice holds no relevant judgement; the split has {len(judgements)} queries."
        )
    return kept


def in_memory(
    name: str, split: str, passages: Sequence[Passage], queries: Mapping[str, str], judgements: Judgements
) -> Collection:
    """Make a collection of values that are already in memory, checked as a folder is."""
    ids = [passage.id for passage in passages]
    if len(set(ids)) < len(ids):
        raise CollectionError(f"{name}: passage ids are not unique; make them so.")
    known = set(ids)
    for query_id, scores in judgements.items():
        if query_id not in queries:
            raise CollectionError(f"{name}: judgement of an unknown query id {query_id!r}; add the query.")
        unknown = sorted(set(scores) - known)
        if unknown:
            raise CollectionError(
                f"{name}: query {query_id!r} judges {unknown[0]!r}, which is in no passage."
            )
    judged = {query_id: text for query_id, text in queries.items() if query_id in judgements}
    return Collection(
        name, split, passages, MappingProxyType(judged), MappingProxyType(dict(judgements)),
        identity=fingerprint([
            fingerprint_texts(part for p in passages for part in (p.id, p.title, p.text)),
            fingerprint_texts(part for item in judged.items() for part in item),
            {query_id: dict(scores) for query_id, scores in judgements.items()},
        ]),
    )  # fmt: skip


def _read_queries(path: Path) -> tuple[dict[str, str], dict[str, str]]:
    """Texts by id; and what is wrong with each query that has none, which matters only to a split that judges it."""
    texts: dict[str, str] = {}
    unusable: dict[str, str] = {}
    for line_number, row in read_jsonl(path, CollectionError):
        where = f"{path}:{line_number}"
        query_id = _id(row, where)
        if query_id in texts or query_id in unusable:
            raise CollectionError(f"{where}: duplicate query id {query_id!r}; ids must be unique.")
        text = row.get("text")
        if isinstance(text, str) and text.strip():
            texts[query_id] = text
        elif isinstance(text, str):
            unusable[query_id] = f"{where}: query {query_id!r} is empty; give it a text or remove the line."
        else:
            found = (
                f"text is {json_kind(text)}" if "text" in row else f"no key `text` (found: {', '.join(row)})"
            )
            unusable[query_id] = f"{where}: query {query_id!r}: {found}; give it a text that is a string."
    return texts, unusable


def _id(row: Mapping[str, object], where: str) -> str:
    value = row.get("_id")
    if not isinstance(value, (str, int)) or isinstance(value, bool) or not str(value).strip():
        raise CollectionError(f"{where}: no usable _id; give every line a string `_id`.")
    if re.search(r"[\t\r\n]", str(value)):
        raise CollectionError(
            f"{where}: the _id {value!r} holds a tab or a line break, which tables of judgements cannot; take it out."
        )
    return str(value)


def write_folder(collection: Collection, folder: Path) -> None:
    """Write a collection as a BEIR folder; a further split of the same corpus may be written into it later."""
    write_jsonl(
        folder / "corpus.jsonl",
        ({"_id": passage.id, "title": passage.title, "text": passage.text} for passage in collection.corpus),
    )
    queries_path = folder / "queries.jsonl"
    queries, unusable = _read_queries(queries_path) if queries_path.exists() else ({}, {})
    for problem in unusable.values():
        raise CollectionError(problem)
    queries.update(collection.queries)
    write_jsonl(queries_path, ({"_id": query_id, "text": text} for query_id, text in queries.items()))
    lines = ["\t".join(HEADER)]
    for query_id, scores in collection.judgements.items():
        lines += [f"{query_id}\t{passage_id}\t{score}" for passage_id, score in scores.items()]
    write_text(folder / "qrels" / f"{collection.split}.tsv", "\n".join(lines) + "\n")
