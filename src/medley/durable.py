"""What is written stays and can be read: on disk before anything relies on it, in the mode that the umask says."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path


def give_umask_mode(path: Path) -> None:
    """Give a finished file, or all of a folder, the mode that the umask says.

    Some libraries write through private temporary files, which nobody else could read.
    """
    # it cannot be asked without being set; a file that another thread makes meanwhile is too private, not too open
    umask = os.umask(0o077)
    os.umask(umask)
    for file in _files(path):
        mode = stat.S_IMODE(file.stat().st_mode)
        if mode | (0o666 & ~umask) != mode:
            with contextlib.suppress(PermissionError):  # a second name of a file that is another user's
                file.chmod(mode | (0o666 & ~umask))


def _files(path: Path) -> Iterator[Path]:
    """A file, or the files of a folder; links are left out."""
    if not path.is_dir():
        yield path
    for place, _, files in os.walk(path):
        yield from (file for file in (Path(place) / name for name in files) if not file.is_symlink())


def flush(path: Path) -> None:
    """Have a file, or a folder with all files in it, on disk: a power cut takes nothing of it any more."""
    for file in _files(path):
        sync(file)
    for place, _, _ in os.walk(path):
        sync(Path(place))


def sync(path: Path) -> None:
    """Have one file, or the names in a folder, on disk."""
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
    except OSError as problem:  # some network file systems have no fsync for a folder
        if problem.errno not in (errno.EINVAL, errno.ENOTSUP) or not path.is_dir():
            raise
    finally:
        os.close(file)
