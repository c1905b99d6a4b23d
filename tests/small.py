"""What tests of the whole share: a small collection on disk, a recipe over it, and the command line in-process."""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import yaml

PASSAGES = {
    "p1": ("Amoxicillin", "Amoxicillin is a penicillin that treats ear infections in children. The usual course lasts 7 days."),
    "p2": ("Doxycycline", "Doxycycline is a tetracycline that treats Lyme disease in adults. The usual course lasts 14 days."),
    "p3": ("Metformin", "Metformin lowers blood glucose in type 2 diabetes. Treatment starts with 500 mg once a day."),
    "p4": ("Insulin", "Insulin lowers blood glucose in type 1 diabetes. It is injected under the skin before meals."),
    "p5": ("Measles", "Measles is a viral infection that causes fever and a rash. Vaccination prevents it in most children."),
    "p6": ("Mumps", "Mumps is a viral infection that causes swollen salivary glands. Vaccination prevents it in most people."),
    "p7": ("Copper", "Copper is a metal that conducts electricity well. Household wiring is made of it."),
    "p8": ("Glass", "Glass is a brittle solid that does not conduct electricity. Windows are made of it."),
    "p9": ("Battery", "A battery stores chemical energy and releases it as electric current. A phone battery lasts 3 years."),
    "p10": ("Capacitor", "A capacitor stores energy in an electric field and releases it quickly. A camera flash uses one."),
    "p11": ("Compass", "A compass needle points to the magnetic north pole. Sailors have used it for 900 years."),
    "p12": ("Barometer", "A barometer measures the pressure of the air. A falling reading announces a storm."),
}  # fmt: skip
QUERIES = {
    "a1": ("train_a", "which penicillin is given for an ear infection in a child", "p1", "p2"),
    "a2": ("train_a", "first tablet for high sugar in type 2 diabetes", "p3", "p4"),
    "a3": ("train_a", "viral illness with fever and rash", "p5", "p6"),
    "a4": ("train_a", "injection before meals for type 1 diabetes", "p4", "p3"),
    "b1": ("train_b", "metal used for the wiring of a house", "p7", "p8"),
    "b2": ("train_b", "device that stores chemical energy for a phone", "p9", "p10"),
    "b3": ("train_b", "what announces a storm when its reading falls", "p12", "p11"),
    "b4": ("train_b", "brittle solid that windows are made of", "p8", "p7"),
    "d1": ("dev", "antibiotic against Lyme disease", "p2", "p1"),
    "d2": ("dev", "which part releases energy quickly for a camera flash", "p10", "p9"),
    "d3": ("dev", "swollen glands from a virus", "p6", "p5"),
    "t1": ("test", "tetracycline course of two weeks", "p2", "p1"),
    "t2": ("test", "needle that shows sailors where north is", "p11", "p12"),
    "t3": ("test", "does vaccination prevent mumps", "p6", "p5"),
    "t4": ("test", "medicine that lowers glucose and starts with 500 mg", "p3", "p4"),
}
"""For each query its split, its text, its relevant passage and one judged not relevant."""


def write_collection(folder: Path) -> Path:
    """A collection of 12 passages with splits train_a, train_b, dev and test, in BEIR layout."""
    (folder / "qrels").mkdir(parents=True)
    write_lines(
        folder / "corpus.jsonl",
        [{"_id": key, "title": title, "text": text} for key, (title, text) in PASSAGES.items()],
    )
    write_lines(
        folder / "queries.jsonl", [{"_id": key, "text": text} for key, (_, text, _, _) in QUERIES.items()]
    )
    for split in dict.fromkeys(split for split, *_ in QUERIES.values()):
        rows = [
            f"{key}\t{passage}\t{score}"
            for key, (of, _, good, bad) in QUERIES.items()
            if of == split
            for passage, score in ((good, 2), (bad, 0))
        ]
        text = "\n".join(["query-id\tcorpus-id\tscore", *rows]) + "\n"
        (folder / "qrels" / f"{split}.tsv").write_text(text, encoding="utf-8")
    return folder


def training_rows(split: str) -> list[dict[str, Any]]:
    """The rows of a pairs file with the queries of a split."""
    return [
        {"query": text, "positive": " ".join(PASSAGES[good]), "negatives": [" ".join(PASSAGES[bad])]}
        for of, text, good, bad in QUERIES.values()
        if of == split
    ]


def write_lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    """Write JSON Lines without Medley's help."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def write_recipe(path: Path, base: Path | str, collection: Path | str, **changes: Any) -> Path:
    """A recipe that runs in seconds: two experts of two steps each on a collection of `write_collection`."""
    recipe: dict[str, Any] = {
        "name": "small",
        "base": str(base),
        "seed": 3,
        "retriever": {"max_length": 48, "dtype": "float32"},
        "sources": {
            "a": {"collection": str(collection), "split": "train_a", "instruction": "Find the passage"},
            "b": {"collection": str(collection), "split": "train_b", "instruction": "Find the passage"},
        },
        "negatives": {"mined": {"depth": 5}, "guard": {"margin": None}},
        "experts": {"a": {"sources": ["a"]}, "b": {"sources": ["b"]}},
        "train": {"learning_rate": 0.01, "batch_size": 4, "epochs": 2, "lora": {"rank": 2, "alpha": 4}},
        "merge": {
            "methods": ["task_arithmetic"],
            "search": {"strategy": "surrogate", "encodings": 6, "grid": [0, 0.5, 1]},
            "dev": [f"{collection}:dev"],
            "dtype": "float32",
        },
        "evaluate": {"medical": [f"{collection}:test"]},
    }
    for dotted, value in changes.items():
        inner = recipe
        *parents, last = dotted.split(".")
        for key in parents:
            inner = inner.setdefault(key, {})
        inner[last] = value
    path.write_text(yaml.safe_dump(recipe, sort_keys=False), encoding="utf-8")
    return path


@dataclass(frozen=True)
class Outcome:
    """What a command did: its exit code and what it printed."""

    code: int
    out: str
    err: str

    def json(self) -> Any:
        """Standard output as one JSON document."""
        return json.loads(self.out)


def medley(*arguments: object) -> Outcome:
    """Call the command line in this process, as `medley ...` would."""
    from medley.cli import main

    out, err = io.StringIO(), io.StringIO()
    code: Any = 0
    with (
        mock.patch.object(sys, "argv", ["medley", *map(str, arguments)]),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            main()
        except SystemExit as stop:
            code = stop.code
    return Outcome(code if isinstance(code, int) else int(code is not None), out.getvalue(), err.getvalue())


def medley_process(*arguments: object, cwd: Path | None = None, env: dict[str, str] | None = None) -> Outcome:
    """Run `python -m medley ...` as a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "medley", *map(str, arguments)],
        capture_output=True,
        text=True,
        encoding="utf-8",
        cwd=cwd,
        env={**os.environ, "OMP_NUM_THREADS": "1", **(env or {})},
    )
    return Outcome(done.returncode, done.stdout, done.stderr)


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder with its bytes, hidden ones too; empty folders end in a slash."""
    return dict(_walk(folder))


def _walk(folder: Path) -> Iterator[tuple[str, bytes]]:
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file():
            yield name, path.read_bytes()
        elif not any(path.iterdir()):
            yield f"{name}/", b""
