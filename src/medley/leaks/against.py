"""What training text is held against: a folder with the queries of all its splits, one split, or a task of MTEB.

Beside the BEIR files a folder may hold `query_variants.json`: query id -> {name: other wording}, as where a test asks
paraphrases of questions that went round in their own words. Each wording counts as the query.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType

from medley.collections import Collection, FolderCorpus, find_folder, load_collection, split_spec
from medley.errors import CollectionError
from medley.files import read_json

VARIANTS = "query_variants.json"

EVERY_SPLIT = ""


@dataclass(frozen=True)
class Splits:
    """Of which splits a collection's queries and judged passages are, by id; nothing where it is of one split."""

    queries: Mapping[str, str] = field(default_factory=dict)
    passages: Mapping[str, str] = field(default_factory=dict)


ONE_SPLIT = Splits()


@dataclass(frozen=True)
class Against:
    """A collection that training text is held against, with the queries of one split or of several."""

    collection: Collection
    splits: Splits = ONE_SPLIT


def load_against(spec: str) -> Against:
    """Open a collection to hold training text against.

    Of a folder without `:SPLIT` all splits count: what is not tested today may be tomorrow. Of a task or hub id it
    is the test split. Passages without text are let be: they can repeat nothing. Raises CollectionError as
    `load_collection` does.
    """
    name, split = split_spec(spec, EVERY_SPLIT)
    folder = find_folder(name)
    if split != EVERY_SPLIT or folder is None:
        return Against(load_collection(spec, keep_empty=True))
    splits = sorted(path.stem for path in (folder / "qrels").glob("*.tsv"))
    if not splits:
        raise CollectionError(
            f"{folder / 'qrels'}: holds no split; a collection needs judgements (SPLIT.tsv)."
        )
    parts = [load_collection(f"{name}:{split}", keep_empty=True) for split in splits]
    queries: dict[str, str] = {}
    judgements: dict[str, dict[str, int]] = {}
    for part in parts:
        queries.update(part.queries)
        for query_id, grades in part.judgements.items():
            judgements[query_id] = {**judgements.get(query_id, {}), **grades}
    whole = replace(
        parts[0],
        split=",".join(splits),
        queries=MappingProxyType(queries),
        judgements=MappingProxyType(judgements),
        dangling=sum(part.dangling for part in parts),
    )
    return Against(whole, Splits(_by_id(parts, _query_ids), _by_id(parts, _passage_ids)))


def _by_id(parts: Sequence[Collection], ids: Callable[[Collection], Iterable[str]]) -> dict[str, str]:
    """For each id the splits that have it, joined by commas."""
    found: dict[str, str] = {}
    for part in parts:
        for one in ids(part):
            found[one] = f"{found[one]},{part.split}" if one in found else part.split
    return found


def _query_ids(part: Collection) -> Iterable[str]:
    return part.queries


def _passage_ids(part: Collection) -> Iterable[str]:
    return {passage_id for grades in part.judgements.values() for passage_id in grades}


def query_wordings(collection: Collection) -> Iterator[tuple[str, str]]:
    """Id and text of every query, and of its other wordings where the collection's folder has some."""
    yield from collection.queries.items()
    if not isinstance(collection.corpus, FolderCorpus):
        return
    path = collection.corpus.path.parent / VARIANTS
    if not path.is_file():
        return
    variants = read_json(path, CollectionError)
    if not isinstance(variants, dict) or not all(isinstance(named, dict) for named in variants.values()):
        raise CollectionError(f"{path}: expected an object of objects: query id -> name -> wording.")
    for query_id, named in variants.items():
        if query_id in collection.queries:
            yield from ((query_id, text) for text in named.values() if isinstance(text, str))
