"""Content fingerprints: the identity of a value, a file or a folder is the hash of what is in it.

Every cache key in Medley is one of these, because names and paths are not identities: two checkpoints share a
base's name, a file is edited in place (DESIGN, decision 8). 16 hexadecimal digits of SHA-256: 64 bits, so that a
million artefacts collide with probability below 1e-7.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

LENGTH = 16
PACKAGE = Path(__file__).parent
EVERYWHERE = ("batches.py", "collections.py", "encoder.py", "pair_files.py", "pairs.py", "template.py")
"""Nouns that decide every stage's result."""
SOURCES = (".py", ".txt", ".yaml", ".html", ".css", ".js")


def fingerprint(value: Any) -> str:
    """Hash a JSON-like value. Key order does not matter; tuples equal lists; paths hash as their text."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"), default=_as_json)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:LENGTH]


def fingerprint_texts(texts: Iterable[str]) -> str:
    """Hash a sequence of texts in order without joining them in memory; lengths keep boundaries apart."""
    digest = hashlib.sha256()
    for text in texts:
        data = text.encode("utf-8", "surrogatepass")
        digest.update(len(data).to_bytes(8, "little"))
        digest.update(data)
    return digest.hexdigest()[:LENGTH]


def fingerprint_file(path: Path) -> str:
    """Hash a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()[:LENGTH]


def fingerprint_folder(path: Path) -> str:
    """Hash every file below a folder, by relative name and content; hidden files are left out."""
    files = sorted(
        file
        for file in path.rglob("*")
        if file.is_file() and not any(part.startswith(".") for part in file.relative_to(path).parts)
    )
    return fingerprint([[file.relative_to(path).as_posix(), fingerprint_file(file)] for file in files])


def fingerprint_path(path: Path) -> str:
    """Hash a file or a folder."""
    return fingerprint_folder(path) if path.is_dir() else fingerprint_file(path)


def code_of(*places: str) -> str:
    """Fingerprint of some modules or packages of Medley (their tables and prompts too), and of the common nouns."""
    files: list[Path] = []
    for place in (*places, *EVERYWHERE):
        path = PACKAGE / place
        files += sorted(f for f in path.rglob("*") if f.suffix in SOURCES) if path.is_dir() else [path]
    return fingerprint([[file.relative_to(PACKAGE).as_posix(), fingerprint_file(file)] for file in files])


def _as_json(value: Any) -> Any:
    if isinstance(value, Path):
        return value.as_posix()
    if isinstance(value, (set, frozenset)):
        return sorted(value)
    raise TypeError(f"a {type(value).__name__} has no fingerprint; pass plain data")
