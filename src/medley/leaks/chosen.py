"""What a model was chosen on, kept in its medley.json: so that a test on the same queries is never taken for a test.

In: dev queries, by what chose on them. Out: records of fingerprints under `chosen_on` (no text: a model may be
published where its dev set may not); and, for a collection that a model is scored on, how many of its queries it was
chosen on.
A query is known again whatever its case, punctuation and white space; a reworded one is not.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from medley.collections import Collection
from medley.errors import ModelError
from medley.files import read_json
from medley.fingerprint import fingerprint
from medley.leaks.against import query_wordings
from medley.overlap import normal_form

DESCRIPTION = "medley.json"
KEY = "chosen_on"
DIGITS = 12
"""Of a query's fingerprint: 48 bits, so that of 10,000 queries against 10,000 one in three million is a mistake."""


@dataclass(frozen=True)
class ChosenOn:
    """A dev set (`name:split`), what was chosen on it (weights, an instruction), its queries' fingerprints."""

    dev: str
    chose: str
    queries: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """As medley.json holds it."""
        return asdict(self)


def chosen_on(dev: str, chose: str, queries: Iterable[str]) -> ChosenOn:
    """Record the queries of a dev set that something was chosen on."""
    return ChosenOn(dev, chose, tuple(sorted({_fingerprint(query) for query in queries})))


def as_extra(records: Iterable[ChosenOn]) -> dict[str, Any]:
    """The part of medley.json that keeps the records, each once; nothing where nothing was chosen."""
    unique = list(dict.fromkeys(records))
    return {KEY: [record.as_json() for record in unique]} if unique else {}


def read_chosen(*folders: Path) -> list[ChosenOn]:
    """What the models in folders were chosen on; nothing for a folder that does not say. Raises ModelError for a
    medley.json in which the records are malformed."""
    found: list[ChosenOn] = []
    for folder in folders:
        path = folder / DESCRIPTION
        if path.is_file():
            found += parse_chosen(read_json(path, ModelError), path)
    return list(dict.fromkeys(found))


def parse_chosen(description: Any, where: Path) -> list[ChosenOn]:
    """The records in plain data. Raises ModelError where they are malformed."""
    records = description.get(KEY, []) if isinstance(description, Mapping) else []
    try:
        return [ChosenOn(str(r["dev"]), str(r["chose"]), tuple(map(str, r["queries"]))) for r in records]
    except (TypeError, KeyError) as problem:
        raise ModelError(
            f"{where}: {KEY} must be a list of objects with dev, chose and queries; make the model again."
        ) from problem


def queries_chosen_on(records: Sequence[ChosenOn], collection: Collection) -> dict[str, Any] | None:
    """Of how many of a collection's queries a model has seen the judgements; None where of none.

    {"queries": 3, "of": 100, "dev": ["medicine:dev (merge weights)"]}
    """
    if not records:
        return None
    own: dict[str, set[str]] = {}
    for query_id, text in query_wordings(collection):
        own.setdefault(_fingerprint(text), set()).add(query_id)
    shared: set[str] = set()
    sets = []
    for record in records:
        hits = own.keys() & set(record.queries)
        if hits:
            shared |= set().union(*(own[hit] for hit in hits))
            sets.append(f"{record.dev} ({record.chose})")
    return {"queries": len(shared), "of": len(collection.queries), "dev": sets} if shared else None


def warning(model: str, task: str, chosen: Mapping[str, Any]) -> str:
    """One line about a score that proves nothing."""
    return (
        f"WARNING: {model} was chosen on {chosen['queries']} of the {chosen['of']} queries of {task} "
        f"({', '.join(chosen['dev'])}): its score there is no test"
    )


def _fingerprint(query: str) -> str:
    return fingerprint(normal_form(query).replace(" ", ""))[:DIGITS]
