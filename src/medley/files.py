"""Reading and writing files so that bad input names its line and a killed writer leaves nothing half-written.

Every writer writes to a temporary name in the target's own folder and renames: a reader sees the old file,
the new file, or none. Every reader of JSON Lines reports `file:line` for what it cannot use.
"""

from __future__ import annotations

import contextlib
import errno
import gzip
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from medley.errors import InputError, OutputError


def read_jsonl(path: Path, error: type[InputError] = InputError) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (line number from 1, object) for each non-blank line of a JSON Lines file, plain or gzipped.

    Raises `error` with file:line on a broken line, bytes that are not UTF-8, or a line that is not an object.
    """
    for line_number, raw in _lines(path, error):
        yield line_number, parse_json_line(raw, f"{path}:{line_number}", error)


def parse_json_line(raw: bytes, where: str, error: type[InputError] = InputError) -> dict[str, Any]:
    """Decode one line of a JSON Lines file; `where` is its file:line for the message."""
    try:
        value = json.loads(raw.decode("utf-8"))
    except UnicodeDecodeError as problem:
        raise error(
            f"{where}: byte {problem.start} of the line is not UTF-8; save the file as UTF-8."
        ) from problem
    except json.JSONDecodeError as problem:
        raise error(
            f"{where}: not valid JSON ({problem.msg} at column {problem.colno}); "
            "each line must be one complete JSON object."
        ) from problem
    if not isinstance(value, dict):
        raise error(
            f"{where}: expected a JSON object, found {type(value).__name__}; write one object a line."
        )
    return value


def _lines(path: Path, error: type[InputError]) -> Iterator[tuple[int, bytes]]:
    if not path.is_file():
        raise error(f"{path}: no such file; check the path.")
    opener = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rb") as stream:
            for line_number, raw in enumerate(stream, start=1):
                if raw.strip():
                    yield line_number, raw
    except (gzip.BadGzipFile, EOFError) as problem:
        raise error(f"{path}: not a complete gzip file ({problem}); compress it again.") from problem


def read_json(path: Path, error: type[InputError] = InputError) -> Any:
    """Read one JSON document, or raise `error` naming the file and the place."""
    if not path.is_file():
        raise error(f"{path}: no such file; check the path.")
    try:
        return json.loads(path.read_bytes().decode("utf-8"))
    except UnicodeDecodeError as problem:
        raise error(f"{path}: byte {problem.start} is not UTF-8; save the file as UTF-8.") from problem
    except json.JSONDecodeError as problem:
        raise error(f"{path}:{problem.lineno}: not valid JSON ({problem.msg}).") from problem


@contextlib.contextmanager
def writing(path: Path) -> Iterator[Path]:
    """Give a temporary path beside `path`; rename it over `path` on success, remove it on any failure.

    Works for a file and for a folder. A full disk or a missing permission becomes an OutputError.
    """
    temporary = path.with_name(f".{path.name}.writing-{os.getpid()}")
    with explained_write_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        remove(temporary)
        try:
            yield temporary
            replace(temporary, path)
        finally:
            remove(temporary)


@contextlib.contextmanager
def explained_write_errors(path: Path) -> Iterator[None]:
    """Turn the operating system's refusals to write into one sentence with the path and the remedy."""
    try:
        yield
    except Exception as problem:
        number = _system_error(problem)
        if number in (errno.ENOSPC, errno.EDQUOT):
            raise OutputError(
                f"{path}: the disk is full; free some space and run the same command again (nothing finished is lost)."
            ) from problem
        if number in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise OutputError(
                f"{path}: cannot be written ({os.strerror(number)}); choose another --out."
            ) from problem
        if number in (errno.EEXIST, errno.ENOTDIR):
            raise OutputError(
                f"{path}: a file stands where a folder is needed; choose another --out."
            ) from problem
        raise


def _system_error(problem: Exception) -> int | None:
    """The operating system's error number; safetensors hides it in the text of an error of its own."""
    if isinstance(problem, OSError):
        return problem.errno
    hidden = (
        re.search(r"\(os error (\d+)\)", str(problem))
        if type(problem).__name__ == "SafetensorError"
        else None
    )
    return int(hidden[1]) if hidden else None


def replace(temporary: Path, path: Path) -> None:
    """Put the finished file or folder at its place; a folder that was there before goes away after it."""
    if path.is_dir():
        outgoing = path.with_name(f".{path.name}.outgoing-{os.getpid()}")
        remove(outgoing)
        path.rename(outgoing)
        temporary.rename(path)
        remove(outgoing)
    else:
        temporary.replace(path)


def remove(path: Path) -> None:
    """Remove a file or folder if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def link_tree(source: Path, target: Path) -> None:
    """A second name for every file of a folder: no second copy on disk, and no link that breaks when moved.

    Copies where the file system has no hard links, or the two are not on one.
    """
    try:
        shutil.copytree(source, target, copy_function=os.link)
    except OSError:  # what shutil gathers from os.link is one too
        remove(target)
        shutil.copytree(source, target)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically."""
    with writing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write one JSON document atomically, indented, keys in the order given."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> int:
    """Write JSON Lines atomically (gzipped when the name ends in .gz); return the number of rows."""
    count = 0
    with writing(path) as temporary:
        opener = gzip.open if path.suffix == ".gz" else open
        with opener(temporary, "wt", encoding="utf-8") as stream:
            for row in rows:
                stream.write(json.dumps(row, ensure_ascii=False) + "\n")
                count += 1
    return count
