"""Claiming the place of a result before any work: what is there is kept or may be replaced, and nobody else writes.

Beside a result `NAME` stand, while work goes on or after a kill, `.NAME.lock`, which one process holds, and where a
command goes on from what a killed one made, a folder of unfinished work such as `NAME.checkpoints`.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from medley.errors import OutputError
from medley.files import explained_write_errors, held, remove, sweep
from medley.replaceable import OWN_FILES, check_replaceable, leave_mark, read_mark
from medley.run import changes

UNFINISHED = "unfinished"
"""Under this key a folder of unfinished work says what it is made of."""


@contextlib.contextmanager
def claimed(
    out: Path | None, *, force: bool, folder: bool = False, inputs: Iterable[Path | str | None] = ()
) -> Iterator[None]:
    """Have `out` for this process alone while it works; `inputs` are the paths that the result is made from.

    Names that are no path, as of a hub, may be among them; without an `out` there is nothing to claim. Raises
    OutputError before anything is written where `out` is an input, holds one or is there in the folder of one, where
    something is there that `check_replaceable` keeps, and where another process works on it.
    """
    if out is None:
        yield
        return
    with explained_write_errors(out):
        _refuse_inputs(out, inputs)
        check_replaceable(out, folder=folder, force=force)
        made = [parent for parent in out.parents if not parent.exists()]
    try:
        with explained_write_errors(out):
            out.parent.mkdir(parents=True, exist_ok=True)
        busy = f"{out}: another process is writing it; wait for it, stop it, or choose another --out."
        with held(out.with_name(f".{out.name}.lock"), busy):
            sweep(out.parent, out.name)
            check_replaceable(out, folder=folder, force=force)  # another process may have finished just now
            yield
    finally:
        for parent in made:
            with contextlib.suppress(OSError):  # not empty: the result is there
                parent.rmdir()


def _refuse_inputs(out: Path, inputs: Iterable[Path | str | None]) -> None:
    place = out.resolve()
    for given in (path for name in inputs if name is not None for path in _paths_in(str(name))):
        read = given.resolve()
        if place == read or (place.exists() and read.exists() and place.samefile(read)):
            raise OutputError(f"{out}: the result is made from it ({given}); choose another --out.")
        if place in read.parents:
            raise OutputError(f"{out}: holds {given}, which the result is made from; choose another --out.")
        if read in place.parents and place.exists():
            raise OutputError(
                f"{out}: is there already in {given}, which the result is made from; choose another --out."
            )


def _paths_in(name: str) -> Iterator[Path]:
    """What is there under a name, or under the part of it before a colon, as a collection's before its split."""
    filled = os.path.expanduser(os.path.expandvars(name))  # noqa: PTH111
    for end in (*(index for index, letter in enumerate(filled) if letter == ":"), len(filled)):
        if os.path.lexists(filled[:end]):
            yield Path(filled[:end])


@contextlib.contextmanager
def unfinished(
    out: Path, kind: str, made_of: Mapping[str, Any] | None = None, *, force: bool = False
) -> Iterator[Path]:
    """The folder `NAME.kind` beside a claimed `out`, for work that a killed call goes on from; gone with success.

    Work that was `made_of` something else is thrown away with `force` only. Raises OutputError where it would have to
    be without, naming what differs, and where the folder is not one of Medley's.
    """
    path = out.with_name(f"{out.name}.{kind}")
    wanted = dict(made_of or {})
    before = read_mark(path).get(UNFINISHED)
    if path.is_symlink() or (
        path.exists() and before is None and not (path.is_dir() and not any(path.iterdir()))
    ):
        raise OutputError(
            f"{path}: unfinished work would go there, but something of another kind is there; move it away, "
            "or choose another --out."
        )
    if before is not None and before != wanted:
        if not force:
            where, old, new = next(changes(before, wanted))
            raise OutputError(
                f"{path}: holds unfinished work with {where} = {old}, not {new}; go on with the same settings, "
                "start anew with --force, or choose another --out."
            )
        remove(path)
    with explained_write_errors(path):
        path.mkdir(exist_ok=True)
        leave_mark(path, {UNFINISHED: wanted})
    try:
        yield path
    except BaseException:
        if path.is_dir() and [each.name for each in path.iterdir()] == [OWN_FILES]:
            remove(path)  # nothing was begun
        raise
    remove(path)
