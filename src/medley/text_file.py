"""Text files that people bring: opened, unpacked, cut into lines, decoded, within bounds, or refused in one sentence.

A byte order mark says how a text is encoded and is no part of it; without one a text is UTF-8.
"""

from __future__ import annotations

import codecs
import contextlib
import gzip
import stat
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, cast

from medley.errors import InputError

MAX_LINE_BYTES = 64 * 2**20
"""Longest line that is read. A file of one endless line, which a few packed bytes can stand for, is refused."""
_MARKS = {
    codecs.BOM_UTF8: "UTF-8",
    codecs.BOM_UTF32_LE: "UTF-32",  # before UTF-16, whose mark it begins with
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}
"""Byte order marks, and the encoding that each says."""


def as_path(name: str, error: type[InputError] = InputError) -> Path:
    """The path that a name stands for, with `~` filled in. Raises `error` for what no file can be called."""
    try:
        path = Path(name).expanduser()
        path.exists()
    except (OSError, RuntimeError) as problem:  # too long, not to be entered, no such home
        reason = problem.strerror if isinstance(problem, OSError) else problem
        raise error(f"{name}: cannot be looked up ({reason}); check the path.") from problem
    return path


def check_file(
    path: Path, error: type[InputError] = InputError, *, missing: str = "no such file; check the path"
) -> None:
    """Raise `error` in one sentence where `path` is not a file that can be read again and again."""
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError, ValueError) as problem:  # ValueError: NUL in a path
        raise error(f"{path}: {missing}.") from problem
    except OSError as problem:
        raise error(
            f"{path}: cannot be read ({problem.strerror}); check the path and who may read it."
        ) from None
    if stat.S_ISDIR(mode):
        raise error(f"{path}: is a folder where a file is needed; check the path.")
    if not stat.S_ISREG(mode):
        raise error(
            f"{path}: is a pipe or a device, and files are read more than once; save it as a file first."
        )


@contextlib.contextmanager
def open_file(path: Path, error: type[InputError] = InputError) -> Iterator[IO[bytes]]:
    """A file to read bytes from, unpacked where its name ends in .gz. Raises `error` for what cannot be read."""
    check_file(path, error)
    try:
        with cast(IO[bytes], gzip.open(path)) if path.suffix == ".gz" else path.open("rb") as stream:
            yield stream
    except (gzip.BadGzipFile, EOFError, zlib.error) as problem:
        raise error(f"{path}: not a complete gzip file ({problem}); compress it again.") from problem
    except OSError as problem:
        raise error(
            f"{path}: cannot be read ({problem.strerror}); check the disk and who may read it."
        ) from problem


def lines_of(stream: IO[bytes], path: Path, error: type[InputError] = InputError) -> Iterator[bytes]:
    """Every line of an open file, with its end. Raises `error` for one past MAX_LINE_BYTES, and for UTF-16."""
    number = 0
    while raw := stream.readline(MAX_LINE_BYTES + 1):
        number += 1
        if number == 1 and (encoding := encoding_of(raw)) not in (None, "UTF-8"):
            raise error(f"{path}: is {encoding}; save the file as UTF-8.")
        if len(raw) > MAX_LINE_BYTES:
            raise error(
                f"{path}:{number}: the line is longer than {MAX_LINE_BYTES // 2**20} MiB; is this the right file?"
            )
        yield raw


def read_lines(path: Path, error: type[InputError] = InputError) -> Iterator[tuple[int, str]]:
    """Yield (line number from 1, line with its end) of a text file, plain or gzipped, one line in memory at a time."""
    with open_file(path, error) as stream:
        for number, raw in enumerate(lines_of(stream, path, error), start=1):
            yield number, decoded(raw, f"{path}:{number}", error, of=" of the line")


def read_text(
    path: Path, error: type[InputError] = InputError, *, missing: str = "no such file; check the path"
) -> str:
    """A text file as a whole: UTF-8, or what its byte order mark says."""
    check_file(path, error, missing=missing)
    with open_file(path, error) as stream:
        return decoded(stream.read(), str(path), error)


def encoding_of(raw: bytes) -> str | None:
    """The encoding that a byte order mark says; None without one, which means UTF-8."""
    return next((name for mark, name in _MARKS.items() if raw.startswith(mark)), None)


def decoded(raw: bytes, where: str, error: type[InputError] = InputError, *, of: str = "") -> str:
    """Bytes as text, by their byte order mark, which is no part of it. Raises `error` naming the first bad byte."""
    encoding = encoding_of(raw) or "UTF-8"
    try:
        return raw.decode("utf-8-sig" if encoding == "UTF-8" else encoding)
    except UnicodeDecodeError as problem:
        start = problem.start + (len(codecs.BOM_UTF8) if raw.startswith(codecs.BOM_UTF8) else 0)
        raise error(f"{where}: byte {start}{of} is not {encoding}; save the file as UTF-8.") from problem
