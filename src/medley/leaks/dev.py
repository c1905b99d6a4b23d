"""Dev sets held against test sets: what a result is chosen on must not be what it is tested on.

In: dev and test collections. Out: the dev collections without the few queries that are also test queries, counted; or
a LeakError. A dev query is a test query too where its text is (nearly) one of the test's (index.py says what nearly
is), or where the test has a query of the same id with the same judged passages. Names, folders and splits say nothing
here: only the contents do.

A run refuses the first shared query, as it refuses the first leaking training row; under `leaks: drop`, and for a
single command, which names no test set, up to MOST of the queries are left out: a collection's own splits may share a
short query by accident, while a test set in disguise shares them all.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

from medley.collections import SLICE, Collection, find_folder, load_collection, read_folder, split_spec
from medley.errors import CollectionError, LeakError
from medley.fingerprint import fingerprint
from medley.leaks.against import query_wordings
from medley.leaks.find import hold_out, matches
from medley.leaks.index import HeldOut
from medley.overlap import normal_form
from medley.progress import say

MOST = 0.05
"""Share of a dev set's queries, and of a test set's, up to which shared ones are left out of dev; above, the two are
the same set."""
TEST = "test"
MEND = "choose on another dev set"


@dataclass(frozen=True)
class Shared:
    """Dev query `id` that is query `test_id` of test set `test` too; `kind`: exact, near or the same judgements."""

    id: str
    test: str
    test_id: str
    kind: str


def open_dev(spec: str) -> Collection:
    """Open a dev collection for a command that names no test set: held against its own `test` split.

    Raises LeakError where it is that split or shares more than a few of its queries; CollectionError as
    `load_collection` does.
    """
    name, split = split_spec(spec, "dev")
    sliced = SLICE.fullmatch(split)
    if (sliced["split"] if sliced else split) == TEST:
        raise LeakError(
            f"{spec}: is the test split, and nothing may be chosen on what it is tested on; {MEND}, such as {name}:dev."
        )
    dev = load_collection(spec, default_split="dev")
    test = _own_test(name, dev)
    if test is None:
        return dev
    tests = {f"{name}:{TEST}": test}
    return without_shared(spec, dev, shared_queries({spec: dev}, tests)[spec], tests)


def _own_test(name: str, dev: Collection) -> Collection | None:
    """The test split of the same folder or task; None where it has none."""
    folder = find_folder(name)
    if folder is not None and not (folder / "qrels" / f"{TEST}.tsv").is_file():
        return None
    try:
        if folder is not None:
            return read_folder(folder, TEST, corpus=dev.corpus)
        return load_collection(f"{name}:{TEST}")
    except CollectionError as problem:
        say(f"{name}:{dev.split} was not held against a test split: {problem}")
        return None


def shared_queries(dev: Mapping[str, Collection], tests: Mapping[str, Collection]) -> dict[str, list[Shared]]:
    """For each dev set its queries that are also queries of a test set, in their order, each with one partner there."""
    held_out = [hold_out(test, passages="none").queries for test in tests.values()]
    return {spec: _shared(collection, tests, held_out) for spec, collection in dev.items()}


def _shared(dev: Collection, tests: Mapping[str, Collection], held_out: Sequence[HeldOut]) -> list[Shared]:
    wordings = list(query_wordings(dev))
    found: dict[str, Shared] = {}
    known = matches([text for _, text in wordings], held_out)
    for name, hits in zip(tests, known, strict=True):
        for query_id, text in wordings:
            for match in hits.get(text, ()):
                found.setdefault(query_id, Shared(query_id, name, match.id, match.kind))
    for name, test in tests.items():
        for query_id in _judged_alike(dev, test, found):
            found[query_id] = Shared(query_id, name, query_id, "the same judgements")
    return [found[query_id] for query_id in dev.queries if query_id in found]


def _judged_alike(dev: Collection, test: Collection, known: Iterable[str]) -> list[str]:
    """Queries under one id in both with the same passages judged relevant, by id and text: the test reworded."""
    positives = {
        query_id: passages
        for query_id in set(dev.queries) & set(test.queries) - set(known)
        if (passages := set(dev.positives(query_id))) and passages == set(test.positives(query_id))
    }
    if not positives:  # the usual case: no passage need be read
        return []
    wanted = set().union(*positives.values())
    ours, theirs = (_texts(collection, wanted) for collection in (dev, test))
    same = {passage_id for passage_id in wanted if ours.get(passage_id) == theirs.get(passage_id)}
    return [query_id for query_id, passages in positives.items() if passages <= same]


def _texts(collection: Collection, wanted: set[str]) -> dict[str, str]:
    return {p.id: normal_form(p.full_text) for p in collection.corpus if p.id in wanted}


def refuse_shared(spec: str, dev: Collection, shared: Sequence[Shared]) -> None:
    """Raise LeakError where a dev set shares any query with a test set, naming the first."""
    if shared:
        raise LeakError(
            f"{_described(spec, dev, shared)}; {MEND}, or leave up to {MOST:.0%} of its queries out with `leaks: drop`."
        )


def without_shared(
    spec: str, dev: Collection, shared: Sequence[Shared], tests: Mapping[str, Collection]
) -> Collection:
    """The dev set without the queries that a test set has too, and a line that counts them.

    Raises LeakError where these are more than MOST of either set's queries.
    """
    if not shared:
        return dev
    theirs = {name: {one.test_id for one in shared if one.test == name} for name in tests}
    covered = max(len(ids) / len(tests[name].queries) for name, ids in theirs.items())
    if len(shared) > MOST * len(dev.queries) or covered > MOST:
        raise LeakError(
            f"{_described(spec, dev, shared)}; that is more than the {MOST:.0%} that can be left out, so {MEND}."
        )
    say(f"{_described(spec, dev, shared)}; they are left out of dev")
    left_out = {one.id for one in shared}
    return replace(
        dev,
        queries=MappingProxyType({q: text for q, text in dev.queries.items() if q not in left_out}),
        judgements=MappingProxyType({q: g for q, g in dev.judgements.items() if q not in left_out}),
        identity=fingerprint([dev.identity, "without", sorted(left_out)]),
    )


def _described(spec: str, dev: Collection, shared: Sequence[Shared]) -> str:
    first = shared[0]
    tests = ", ".join(dict.fromkeys(one.test for one in shared))
    how = first.kind if first.test_id == first.id else f"{first.kind} as {first.test_id!r}"
    return (
        f"{spec}: {len(shared)} of its {len(dev.queries)} dev queries are also test queries of {tests}, the first "
        f"being {first.id!r} ({dev.queries[first.id][:80]!r}, {how})"
    )
