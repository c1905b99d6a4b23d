"""Raw text by the shard: documents from any number of files, one by one, from any place in the middle.

A source of documents is a file or a folder of files (all below it, by path). JSON Lines, plain or gzipped, and Parquet
hold a document a row: `text` (or `contents`), and `title` and `sections` (a list of `heading` and `text`) if it has
such. A `.txt` or `.md` file is one document; Markdown brings its title and sections along. A corpus that is already
open is a shard too. Only one document, or one row group of Parquet, is in memory at a time.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medley.collections import Passage
from medley.errors import CollectionError
from medley.files import json_kind, parse_json_line
from medley.progress import say
from medley.text_file import as_path, check_file, lines_of, open_file, read_text

ROWS = (".jsonl", ".jsonl.gz", ".json.gz", ".parquet")
WHOLE = (".txt", ".md", ".markdown")
HEADING = re.compile(r"^#{1,6}[ \t]+(.+?)[ \t]*#*$", re.MULTILINE)

Shard = Path | Sequence[Passage]


@dataclass(frozen=True)
class Document:
    """A text with its title; `sections` are its headings and what stands under each."""

    text: str
    title: str = ""
    sections: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Place:
    """Where reading goes on: the shard, rows of it that are done, and bytes of it where it can be entered by byte."""

    shard: int = 0
    row: int = 0
    offset: int = 0


def shards_of(source: Path) -> list[Path]:
    """The files of a source, in order. Raises CollectionError where there is none of a known kind."""
    if as_path(str(source), CollectionError).is_file():
        if not source.name.endswith((*ROWS, *WHOLE)):
            raise CollectionError(
                f"{source}: is no kind of text that is known; give {', '.join((*ROWS, *WHOLE))}."
            )
        return [source]
    files = [f for f in sorted(source.rglob("*")) if f.is_file() and f.name.endswith((*ROWS, *WHOLE))]
    if not files:
        raise CollectionError(
            f"{source}: no such file, or a folder without one; give {', '.join((*ROWS, *WHOLE))}."
        )
    return files


def read_documents(shards: Sequence[Shard], start: Place = Place()) -> Iterator[tuple[Document, Place]]:
    """Each document from `start` on, with the place after it.

    Rows without any text are left out, and of several text files those that cannot be read (one that is no UTF-8 must
    not cost the others); both are counted and told. Raises CollectionError with file:line for a row that cannot be
    read, and where no file can.
    """
    empty = unreadable = 0
    for number in range(start.shard, len(shards)):
        shard = shards[number]
        first = start if number == start.shard else Place(number)
        try:
            for document, place in _documents(shard, first):
                if document.text.strip():
                    yield document, place
                else:
                    empty += 1
        except CollectionError as problem:
            unreadable += 1
            if not _is_whole(shard) or unreadable == len(shards):
                raise
            say(f"left out: {problem}")
    if unreadable:
        say(f"{unreadable:,} of {len(shards):,} files cannot be read and are left out")
    if empty:
        say(f"{empty:,} documents without any text are left out")


def _is_whole(shard: Shard) -> bool:
    return isinstance(shard, Path) and shard.name.endswith(WHOLE)


def _documents(shard: Shard, first: Place) -> Iterator[tuple[Document, Place]]:
    if not isinstance(shard, Path):
        return _corpus(shard, first)
    if shard.suffix == ".parquet":
        return _parquet(shard, first)
    return _whole(shard, first) if _is_whole(shard) else _lines(shard, first)


def _corpus(corpus: Sequence[Passage], start: Place) -> Iterator[tuple[Document, Place]]:
    for row in range(start.row, len(corpus)):
        passage = corpus[row]
        yield Document(passage.text, passage.title), Place(start.shard, row + 1)


def _lines(path: Path, start: Place) -> Iterator[tuple[Document, Place]]:
    packed = path.suffix == ".gz"
    with open_file(path, CollectionError) as stream:
        offset, done = (0, 0) if packed else (start.offset, start.row)
        stream.seek(offset)
        for row, raw in enumerate(lines_of(stream, path, CollectionError), start=done + 1):
            offset += len(raw)
            if row > start.row and raw.strip():
                where = f"{path}:{row}"
                document = _from_row(parse_json_line(raw, where, CollectionError), where)
                yield document, Place(start.shard, row, offset)


def _parquet(path: Path, start: Place) -> Iterator[tuple[Document, Place]]:
    import pyarrow
    import pyarrow.parquet

    check_file(path, CollectionError)
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            first = 0
            for group in range(file.num_row_groups):
                after = first + file.metadata.row_group(group).num_rows
                if after > start.row:
                    for row, values in enumerate(file.read_row_group(group).to_pylist(), start=first + 1):
                        if row > start.row:
                            yield _from_row(values, f"{path}: row {row}"), Place(start.shard, row)
                first = after
    except (pyarrow.ArrowException, OSError, ValueError) as problem:
        reason = str(problem).strip().splitlines()[0].rstrip(".")
        raise CollectionError(f"{path}: cannot be read as Parquet ({reason}); write it again.") from problem


def _whole(path: Path, start: Place) -> Iterator[tuple[Document, Place]]:
    if start.row:
        return
    text = read_text(path, CollectionError)
    place = Place(start.shard, 1)
    yield (from_markdown(text) if path.suffix != ".txt" else Document(text)), place


def from_markdown(text: str) -> Document:
    """A Markdown text: what stands under its first heading of the first level is its title, the others its sections."""
    sections = markdown_sections(text)
    if sections and re.match(r"\s*#[ \t]", text):
        title, lead = sections[0]
        rest = text[HEADING.search(text).end() :]  # type: ignore[union-attr]
        return Document(rest.strip(), title, tuple(sections[1:]) or ((title, lead),))
    return Document(text, "", tuple(sections))


def markdown_sections(text: str) -> list[tuple[str, str]]:
    """Each heading of a Markdown text with what stands under it up to the next heading; empty ones too."""
    headings = list(HEADING.finditer(text))
    starts = [*(heading.start() for heading in headings), len(text)]
    return [
        (heading[1], text[heading.end() : after].strip())
        for heading, after in zip(headings, starts[1:], strict=True)
    ]


def _from_row(row: Mapping[str, Any], where: str) -> Document:
    text = row.get("text", row.get("contents"))
    title = row.get("title") or ""
    given = row.get("sections") or []
    if not isinstance(given, list):
        raise CollectionError(f"{where}: sections is {json_kind(given)}; write a list of objects.")
    if text is None and given:
        text = "\n".join(str(section.get("text", "")) for section in given if isinstance(section, Mapping))
    if not isinstance(text, str) or not isinstance(title, str):
        raise CollectionError(f"{where}: has no `text` (or `contents`) that is a string; give each row one.")
    sections = []
    for section in given:
        if not isinstance(section, Mapping) or not all(
            isinstance(section.get(key), str) for key in ("heading", "text")
        ):
            raise CollectionError(f"{where}: a section is not an object with `heading` and `text`.")
        sections.append((section["heading"], section["text"]))
    return Document(text, title, tuple(sections) or tuple(markdown_sections(text)))
