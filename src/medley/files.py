"""Reading and writing files so that bad input names its line and a killed writer leaves nothing half-written.

Every writer writes to a temporary name in the target's own folder and renames: a reader sees the old file,
the new file, or none. Every reader takes a byte order mark for what it is, keeps to bounds that are stated here, and
reports `file:line` for what it cannot use.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import gzip
import json
import os
import re
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from medley.durable import flush, give_umask_mode, sync
from medley.errors import InputError, OutputError
from medley.replaceable import OWN_FILES, check_replaceable, entries, leave_mark
from medley.text_file import decoded, lines_of, open_file, read_text

MAX_DEPTH = 100
"""Deepest nesting of JSON and YAML that is read; what walks through values later is recursive."""
LOOK_AGAIN_S = 0.1
"""Seconds between two tries for a lock that another process holds."""


def read_jsonl(path: Path, error: type[InputError] = InputError) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (line number from 1, object) for each non-blank line of a JSON Lines file, plain or gzipped.

    Raises `error` with file:line on a broken line, bytes that are not UTF-8, or a line that is not an object.
    """
    with open_file(path, error) as stream:
        for number, raw in enumerate(lines_of(stream, path, error), start=1):
            if raw.strip():
                yield number, parse_json_line(raw, f"{path}:{number}", error)


def parse_json_line(raw: bytes, where: str, error: type[InputError] = InputError) -> dict[str, Any]:
    """Decode one line of a JSON Lines file; `where` is its file:line for the message."""
    value = parse_json(
        decoded(raw, where, error, of=" of the line"),
        where,
        error,
        hint="each line must be one complete JSON object",
    )
    if not isinstance(value, dict):
        raise error(f"{where}: expected a JSON object, found {json_kind(value)}; write one object a line.")
    return value


def parse_json(text: str, where: str, error: type[InputError] = InputError, *, hint: str) -> Any:
    """A user's own JSON; `hint` ends the sentence about what is none. Refuses NaN and what later steps stumble over."""
    try:
        value = json.loads(text, parse_constant=_no_number)
    except json.JSONDecodeError as problem:
        raise error(
            f"{where}: not valid JSON ({problem.msg} at column {problem.colno}); {hint}."
        ) from problem
    except (ValueError, RecursionError) as problem:
        raise error(f"{where}: {_unusable(problem)}") from problem
    _check_json(value, text, where, error)
    return value


def _no_number(constant: str) -> float:
    """JSON has no NaN and no Infinity, though Python's own writer writes them."""
    raise ValueError(constant)


def _unusable(problem: ValueError | RecursionError) -> str:
    """What is wrong with JSON that is well-formed and yet no value, as the end of a sentence."""
    if isinstance(problem, RecursionError):
        return f"nested deeper than {MAX_DEPTH} levels; is this the right file?"
    if str(problem).startswith("Exceeds"):  # Python's own bound on the digits of a whole number
        return "holds a number of thousands of digits; write it as a string or take it out."
    return f"{problem} is no JSON; write null where there is no value."


def _check_json(value: Any, text: str, where: str, error: type[InputError]) -> None:
    """Refuse what a later step would stumble over: nesting without end, and halves of characters."""
    if text.count("[") + text.count("{") > MAX_DEPTH:
        level = [value]
        for _ in range(MAX_DEPTH):
            level = [
                child
                for outer in level
                if isinstance(outer, (dict, list))
                for child in (outer.values() if isinstance(outer, dict) else outer)
            ]
        if level:
            raise error(f"{where}: {_unusable(RecursionError())}")
    if "\\ud" in text or "\\uD" in text:  # JSON can write what no text can hold: one half of a surrogate pair
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError as problem:
            raise error(f"{where}: {half_character(problem.object[problem.start])}") from problem


def half_character(half: str) -> str:
    """What to say of a lone surrogate, as the end of a sentence."""
    return (
        f"holds \\u{ord(half):04x}, half of a character (a lone surrogate), as when a text is cut inside an emoji; "
        "take it out."
    )


def json_kind(value: Any) -> str:
    """What a value is called in JSON, with its article."""
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    kinds = {str: "a string", int: "a number", float: "a number", list: "a list", dict: "an object"}
    return kinds.get(type(value), f"a {type(value).__name__}")


def read_json(path: Path, error: type[InputError] = InputError) -> Any:
    """Read one JSON document, or raise `error` naming the file and the place.

    NaN and Infinity are read: configurations of well-known models hold them.
    """
    text = read_text(path, error)
    try:
        value = json.loads(text)
    except json.JSONDecodeError as problem:
        raise error(f"{path}:{problem.lineno}: not valid JSON ({problem.msg}).") from problem
    except (ValueError, RecursionError) as problem:
        raise error(f"{path}: {_unusable(problem)}") from problem
    _check_json(value, text, str(path), error)
    return value


def read_object(path: Path, error: type[InputError] = InputError) -> dict[str, Any]:
    """Read a JSON document that is an object; raises `error` where it is anything else."""
    value = read_json(path, error)
    if not isinstance(value, dict):
        raise error(f"{path}: expected a JSON object, found {json_kind(value)}; is this the right file?")
    return value


@contextlib.contextmanager
def writing(path: Path, *, force: bool = True, own: bool = False) -> Iterator[Path]:
    """Give a temporary path beside `path`; rename it over `path` on success, remove it on any failure.

    Works for a file and for a folder. What is there is replaced by its like only: a file, unless `force` is false;
    a folder that is empty or that Medley wrote (see `check_replaceable`), or any where it is the caller's `own`, as
    a run's artefacts are. Raises OutputError otherwise, and for a full disk or a missing permission.
    """
    temporary = path.with_name(f".{path.name}.writing-{os.getpid()}")
    with explained_write_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        remove(temporary)
        try:
            yield temporary
            folder = temporary.is_dir()
            if not (own and folder and path.is_dir()):
                check_replaceable(path, folder=folder, force=force or folder)
            if folder and not own:
                leave_mark(temporary, {"files": sorted(entries(temporary) - {OWN_FILES})})
            give_umask_mode(temporary)
            if not _is_unfinished(path.parent):
                flush(temporary)
            _replace(temporary, path)
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
        if number == errno.EFBIG:
            raise OutputError(
                f"{path}: is larger than the file system or `ulimit -f` allows; choose another --out or limit."
            ) from problem
        if number in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG):
            raise OutputError(
                f"{path}: cannot be written ({os.strerror(number)}); choose another --out."
            ) from problem
        if number in (errno.EISDIR, errno.ELOOP):
            kind = "a folder" if number == errno.EISDIR else "a symbolic link"
            raise OutputError(f"{path}: {kind} stands where a file is needed; move it away.") from problem
        if number in (errno.EEXIST, errno.ENOTDIR):
            raise OutputError(
                f"{path}: a file stands where a folder is needed; choose another --out."
            ) from problem
        raise


def _system_error(problem: Exception) -> int | None:
    """The operating system's error number; safetensors hides it in the text of an error of its own."""
    if isinstance(problem, OSError):
        # numpy.save says no more than how much of an array found room
        short = problem.errno is None and re.search(r"\d+ requested and \d+ written", str(problem))
        return errno.ENOSPC if short else problem.errno
    hidden = (
        re.search(r"\(os error (\d+)\)", str(problem))
        if type(problem).__name__ == "SafetensorError"
        else None
    )
    return int(hidden[1]) if hidden else None


def _replace(temporary: Path, path: Path) -> None:
    """Put the finished file or folder at its place; a folder that was there before goes away after it."""
    if path.is_dir():
        outgoing = path.with_name(f".{path.name}.outgoing-{os.getpid()}")
        remove(outgoing)
        path.rename(outgoing)
        try:
            temporary.rename(path)
        except OSError:
            outgoing.rename(path)
            raise
        remove(outgoing)
    else:
        temporary.replace(path)
    if not _is_unfinished(path.parent):
        sync(path.parent)


def _is_unfinished(folder: Path) -> bool:
    """Whether a folder is part of one that is still being written, and is flushed as a whole at its end."""
    return any(TEMPORARY.fullmatch(part) for part in folder.parts)


TEMPORARY = re.compile(r"\.(.+)\.(writing|outgoing|process)-(\d+)")
"""What `writing` and the processes of a launcher call unfinished things: the result's name, and whose it is."""


def sweep(folder: Path, *names: str) -> None:
    """Remove what processes that are gone left half-written in a folder: all of it, or of the results named.

    Only what bears a temporary name of Medley's in full; a link goes itself, not what it leads to. A result that was
    on its way out when the process was killed, with nothing in its place yet, is put back.
    """
    for path in sorted(folder.iterdir()):
        found = TEMPORARY.fullmatch(path.name)
        if found is None or _is_running(int(found[3])) or (names and _result_of(path.name) not in names):
            continue
        if found[2] == "outgoing" and not os.path.lexists(folder / found[1]):
            path.rename(folder / found[1])
        else:
            remove(path)


def _result_of(name: str) -> str:
    """The result's name within a temporary name, which a writer within a writer has made twice."""
    while found := TEMPORARY.fullmatch(name):
        name = found[1]
    return name


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # another user's
        pass
    return process != os.getpid()  # in a container every process may have the same number


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


@contextlib.contextmanager
def held(lock: Path, busy: str, *, patience_s: float = 0.0) -> Iterator[int]:
    """Hold a lock file, which is gone afterwards; one that a killed process left does not hold anybody up.

    Gives its descriptor: a process that inherits that holds the lock, too.
    Raises OutputError with the sentence `busy` where another process holds it still after `patience_s`.
    """
    until = time.monotonic() + patience_s
    while True:
        with explained_write_errors(lock):
            try:
                file = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
            except FileNotFoundError as problem:  # the folder is there, but takes no files, as /proc
                raise OutputError(f"{lock.parent}: cannot be written to; choose another --out.") from problem
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if lock.exists() and os.path.samestat(os.fstat(file), lock.stat()):
                break  # else its holder has removed it meanwhile, and the next process locks another file
        except BlockingIOError as problem:
            os.close(file)
            if time.monotonic() >= until:
                raise OutputError(busy) from problem
            time.sleep(LOOK_AGAIN_S)
            continue
        os.close(file)
    try:
        yield file
    finally:
        lock.unlink(missing_ok=True)
        os.close(file)


def write_text(path: Path, text: str, *, force: bool = True) -> None:
    """Write UTF-8 text atomically; without `force` never over a file."""
    with writing(path, force=force) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any, *, force: bool = True) -> None:
    """Write one JSON document atomically, indented, keys in the order given; without `force` never over a file."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n", force=force)


def write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]], *, force: bool = True) -> int:
    """Write JSON Lines atomically (gzipped when the name ends in .gz); return the number of rows.

    Without `force` never over a file.
    """
    count = 0
    with writing(path, force=force) as temporary:
        opener = gzip.open if path.suffix == ".gz" else open
        with opener(temporary, "wt", encoding="utf-8") as stream:
            for row in rows:
                stream.write(json.dumps(row, ensure_ascii=False) + "\n")
                count += 1
    return count
