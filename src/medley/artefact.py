"""What a finished step says of itself, and whether its files are still those that were made.

`stages/<stage>/<name>/artefact.json` names the step's key, what it was made of, and every file with its content's
fingerprint. Beside that stand size, time and inode: while these are the same the content is trusted, so that asking
costs a look at each file; where they are not, as in a copied folder, the content is hashed anew.
"""

from __future__ import annotations

import datetime
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from medley.fingerprint import fingerprint, fingerprint_file
from medley.progress import say

STAGES = "stages"
ARTEFACT = "artefact.json"
EDITED = "edited"
"""In the run folder: files that somebody changed or put where Medley had to write, by the time they were moved."""


class Mark(BaseModel):
    """How a file is known again."""

    model_config = ConfigDict(frozen=True)

    fingerprint: str
    size: int
    mtime_ns: int
    inode: int

    @classmethod
    def of(cls, path: Path) -> Mark:
        """The mark of a file as it is now."""
        stat = path.stat()
        return cls(
            fingerprint=fingerprint_file(path),
            size=stat.st_size,
            mtime_ns=stat.st_mtime_ns,
            inode=stat.st_ino,
        )

    def fits(self, path: Path) -> bool:
        """Whether a file has this content still; hashed only where size, time or inode are others."""
        if not path.is_file():
            return False
        stat = path.stat()
        if (stat.st_size, stat.st_mtime_ns, stat.st_ino) == (self.size, self.mtime_ns, self.inode):
            return True
        return stat.st_size == self.size and fingerprint_file(path) == self.fingerprint


class Artefact(BaseModel):
    """artefact.json. One of an older format has no `files`; its ingredients say so."""

    model_config = ConfigDict(frozen=True)

    id: str
    key: str
    ingredients: dict[str, Any]
    seconds: float
    finished: str
    summary: dict[str, Any]
    made_from: dict[str, str] = {}
    """The content of each artefact that it needed, as it was read."""
    files: dict[str, Mark] = {}
    versions: dict[str, str] = {}
    machine: str = ""

    @property
    def content(self) -> str:
        """The fingerprint of all files by name and content."""
        return fingerprint({name: mark.fingerprint for name, mark in self.files.items()})


def read_artefact(folder: Path, step_id: str) -> Artefact | None:
    """What a finished step says of itself; None where it is not finished, or cannot be read."""
    try:
        return Artefact.model_validate_json((folder / STAGES / step_id / ARTEFACT).read_bytes())
    except (OSError, ValueError):
        return None


def marks(folder: Path) -> dict[str, Mark]:
    """The marks of all files below a folder, by relative name."""
    return {name: Mark.of(folder / name) for name in _files(folder)}


def changed_files(place: Path, files: Mapping[str, Mark]) -> list[str]:
    """What became of files after they were made, a phrase for each that is gone or changed."""
    return [
        f"{name} was changed after it was made" if (place / name).is_file() else f"{name} is not there"
        for name, mark in files.items()
        if not mark.fits(place / name)
    ]


def keep_edited(run: Path, place: str, made: Callable[[str, Path], bool]) -> None:
    """Move what Medley has not made out of the way, before `place`, a file or folder of a run, is written again.

    `made` is asked for each file, by its name below the place (empty for a file). Nothing behind a link is touched.
    """
    target = run / place
    if target.is_symlink() or not target.exists():
        return
    names = _files(target) if target.is_dir() else [""]
    foreign = [name for name in names if name != ARTEFACT and not made(name, target / name)]
    if not foreign:
        return
    kept = run / EDITED / datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H-%M-%S.%f")
    for name in foreign:
        (kept / place / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.move(target / name, kept / place / name)
    named = ", ".join(str(Path(place, name)) for name in foreign[:3]) + (", ..." if foreign[3:] else "")
    say(f"{named}: not as Medley wrote it; it is written again, and yours is kept in {kept}")


def keep_edited_artefact(run: Path, step_id: str) -> None:
    """`keep_edited` for what a step has made."""
    artefact = read_artefact(run, step_id)
    if artefact is None or artefact.files:  # an older format does not say what was made
        files = artefact.files if artefact else {}
        keep_edited(run, f"{STAGES}/{step_id}", lambda name, path: name in files and files[name].fits(path))


def _files(folder: Path) -> list[str]:
    """Names of all files below a folder, hidden ones too, relative to it; links to folders are not followed."""
    return sorted(
        (Path(place) / name).relative_to(folder).as_posix()
        for place, _, names in os.walk(folder)
        for name in names
        if Path(place, name) != folder / ARTEFACT
    )
