"""What Medley may replace: by the list of its own files that each folder written by it holds, and by nothing else."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medley.errors import OutputError

OWN_FILES = ".medley-files"
"""In a folder that Medley wrote: `files`, the names of all it wrote there (JSON). Any other is somebody else's."""


def check_replaceable(path: Path, *, folder: bool, force: bool) -> None:
    """Raise OutputError unless a result, a file or a `folder`, may go to `path`.

    It may where nothing is, and where an empty folder is to be a folder. With `force` it may replace a file, or a
    folder that Medley wrote and that holds nothing else: one whose `.medley-files` names every entry. A folder never
    replaces a file, nor a file a folder, and a symbolic link is left alone.
    """
    if not os.path.lexists(path):
        return
    if path.is_symlink():
        raise OutputError(f"{path}: is a symbolic link, which Medley does not replace; name another place.")
    if path.is_dir() != folder or not (path.is_dir() or path.is_file()):
        kind = "a folder" if path.is_dir() else "a file" if path.is_file() else "neither a file nor a folder"
        wanted = "a folder" if folder else "a file"
        raise OutputError(f"{path}: is {kind}, but the result is {wanted}; name another place.")
    if folder:
        there = entries(path)
        written = _written(path)
        if not there:
            return
        if written is None:
            raise OutputError(
                f"{path}: is not empty and was not written by Medley, so it is left alone; name another place."
            )
        foreign = sorted(there - written)
        if foreign:
            more = f" and {len(foreign) - 1} more" if len(foreign) > 1 else ""
            raise OutputError(
                f"{path}: holds {foreign[0]}{more}, which Medley did not write; move it away, or name another place."
            )
    if not force:
        raise OutputError(f"{path}: is there already; name another place, or replace it with --force.")


def entries(folder: Path) -> set[str]:
    """Names of all files and folders below a folder, relative to it; links are not followed."""
    return {
        (Path(place) / name).relative_to(folder).as_posix()
        for place, folders, files in os.walk(folder)
        for name in (*folders, *files)
    }


def _written(folder: Path) -> set[str] | None:
    """The names that Medley wrote into a folder, as its list there says; None without one."""
    listed = read_mark(folder).get("files")
    return {OWN_FILES, *map(str, listed)} if isinstance(listed, list) else None


def read_mark(folder: Path) -> dict[str, Any]:
    """What Medley's own file in a folder says of it; empty where there is none, or none of Medley's."""
    try:
        mark = json.loads((folder / OWN_FILES).read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return mark if isinstance(mark, dict) else {}


def leave_mark(folder: Path, mark: Mapping[str, Any]) -> None:
    """Say in a folder what Medley has in it. A mark that is there goes first: it may be a second name of another."""
    (folder / OWN_FILES).unlink(missing_ok=True)
    (folder / OWN_FILES).write_text(json.dumps(mark, indent=1) + "\n", encoding="utf-8")
