"""The stage: pairs in, the same pairs in the same order with mined negatives out, a batch of rows at a time.

Pairs may be a list or anything that can be read from the start more than once (`StreamedPairs`): they are read once for
their queries and positives, once more for the texts of positives that the corpus does not hold, and once to be given
back. In memory are the batch, its queries' vectors and rankings, and what pool.py keeps of each row and passage.
What a row gets depends on its query, instruction and positive, on the settings and the corpus and on the seed: not on
the order of the rows, and not on the size of a batch.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medley.collections import Passage
from medley.errors import ModelError
from medley.mine.find import Finder, Query, find_by_bm25, find_by_model
from medley.mine.pool import Pool, digest
from medley.mine.select import Candidate, Known, limit_of, select
from medley.mine.settings import MiningSettings
from medley.origins import without_negatives
from medley.pairs import TrainingPair
from medley.progress import progress, say

if TYPE_CHECKING:
    from medley.encoder import Retriever

ROWS_AT_ONCE = 16_384
"""Rows of a batch: the passages' vectors are read once for each."""
MOST_KNOWN = 500
"""Passages found beyond `depth`, so that the known ones among them leave the window whole; at most so many."""


@dataclass(frozen=True)
class Mined:
    """Pairs with their mined negatives, in the order given, and JSON-like counts."""

    pairs: list[TrainingPair]
    counts: dict[str, Any]


def mine_negatives(
    pairs: Iterable[TrainingPair],
    passages: Sequence[Passage] | None,
    settings: MiningSettings,
    *,
    seed: int,
    retriever: Retriever | None = None,
    relevant: Mapping[str, Set[str]] | None = None,
    store: Path | None = None,
) -> Mined:
    """Give each pair hard negatives from `passages`; see `MinedStream`, which does not keep the pairs in memory."""
    stream = MinedStream(
        pairs, passages, settings, seed=seed, retriever=retriever, relevant=relevant, store=store
    )
    return Mined(list(stream), stream.counts)


class MinedStream:
    """The pairs with their mined negatives, one by one in the order given; once through, `counts` is complete.

    A negative is never empty, the query itself, a positive of any pair with the same query, an exact or near
    duplicate of one, or a passage whose id `relevant` lists for the query's text. Nor does a pair keep a negative that
    another pair has as a positive of the same query. Pairs for which nothing is left stay as they are and are counted.
    `store` keeps the passages' vectors, so that a killed encoding goes on where it was.
    Raises ModelError when the settings name a model and none is given, PairsError when there is no pair.
    """

    def __init__(
        self,
        pairs: Iterable[TrainingPair],
        passages: Sequence[Passage] | None,
        settings: MiningSettings,
        *,
        seed: int,
        retriever: Retriever | None = None,
        relevant: Mapping[str, Set[str]] | None = None,
        store: Path | None = None,
    ) -> None:
        if (retriever is None) != (settings.retriever == "bm25"):
            raise ModelError(
                f"mining by {settings.retriever!r} needs that retriever opened, and bm25 needs none."
            )
        self._pairs, self._passages, self._settings, self._seed = pairs, passages, settings, seed
        self._retriever, self._relevant, self._store = retriever, relevant or {}, store
        self.counts: dict[str, Any] = {}

    def __iter__(self) -> Iterator[TrainingPair]:
        pool = Pool(self._pairs, self._passages)
        if self._passages is None:
            say(
                f"no corpus is given: negatives are mined among the {pool.candidates:,} positives of the pairs."
            )
        find = (
            find_by_bm25(pool)
            if self._retriever is None
            else find_by_model(pool, self._retriever, self._store)
        )
        tally = Tally()
        yield from mined_rows(
            self._pairs, pool, find, self._settings, seed=self._seed, relevant=self._relevant, tally=tally
        )
        self.counts = tally.counts(pool)


class Tally:
    """What was made and dropped."""

    def __init__(self) -> None:
        self.negatives = self.without = self.unmatched = 0
        self.dropped: Counter[str] = Counter()

    def counts(self, pool: Pool) -> dict[str, Any]:
        """As plain JSON."""
        return {
            "pairs": pool.rows,
            "queries": pool.queries,
            "negatives": self.negatives,
            "pairs_without_mined_negative": self.without,
            "pairs_matching_nothing": self.unmatched,
            "dropped": dict(sorted(self.dropped.items())),
        }


def mined_rows(
    pairs: Iterable[TrainingPair],
    pool: Pool,
    find: Finder,
    settings: MiningSettings,
    *,
    seed: int,
    relevant: Mapping[str, Set[str]],
    tally: Tally,
) -> Iterator[TrainingPair]:
    """Each pair of which `pool` was made with its negatives among what `find` ranks highest; `tally` counts."""
    rows = iter(enumerate(pairs))
    with progress(f"mining by {settings.retriever}", pool.rows) as advance:
        while batch := list(islice(rows, ROWS_AT_ONCE)):
            for pair, kept in _mined_batch(batch, pool, find, settings, seed, relevant, tally):
                mined = _with_mined(pair, kept, pool, settings)
                tally.negatives += len(mined.negatives) - len(pair.negatives)
                tally.without += not kept
                yield mined
            advance(len(batch))
    if tally.unmatched:
        say(
            f"mining by {settings.retriever} finds nothing for {tally.unmatched:,} of {pool.rows:,} pairs: no passage "
            "shares a word with their queries, so they get no negative."
        )


def _mined_batch(
    batch: Sequence[tuple[int, TrainingPair]],
    pool: Pool,
    find: Finder,
    settings: MiningSettings,
    seed: int,
    relevant: Mapping[str, Set[str]],
    tally: Tally,
) -> Iterator[tuple[TrainingPair, list[Candidate]]]:
    """The rows (number and pair) of a batch with what is kept for each; a query that recurs is searched once."""
    number_of: dict[Query, int] = {}
    first_rows: list[int] = []
    for row, pair in batch:
        if number_of.setdefault((pair.query, pair.instruction), len(first_rows)) == len(first_rows):
            first_rows.append(row)
    positives = pool.positives_of(first_rows)
    judged = [relevant.get(query, frozenset()) for query, _ in number_of]
    spare = [min(len(own) + len(ids), MOST_KNOWN) for own, ids in zip(positives, judged, strict=True)]
    found = find(list(number_of), [list(own.values()) for own in positives], settings.depth + max(spare))
    for row, given in batch:
        pair = _without_positives(given, positives[number_of[given.query, given.instruction]], tally.dropped)
        number, key = number_of[pair.query, pair.instruction], pool.positive_of(row)
        score = found.positives[number][list(positives[number]).index(key)]
        ranked = slice(settings.depth + spare[number])
        kept = select(
            row,
            pair,
            found.nearest.positions_QK[number, ranked],
            found.nearest.scores_QK[number, ranked],
            Known(pair, key, positives[number], judged[number], pool),
            limit_of(float(score), settings),
            pool,
            settings,
            seed=seed,
            dropped=tally.dropped,
        )
        tally.unmatched += not (found.nearest.positions_QK[number] >= 0).any()
        yield pair, kept


def _without_positives(
    pair: TrainingPair, positives: Mapping[int, int], dropped: Counter[str]
) -> TrainingPair:
    """The pair without negatives that it came with and that are positives of its query in another row."""
    gone = {place for place, text in enumerate(pair.negatives) if digest(text) in positives}
    dropped.update({"given_was_positive": len(gone)} if gone else {})
    return without_negatives(pair, gone) if gone else pair


def _with_mined(
    pair: TrainingPair, kept: Sequence[Candidate], pool: Pool, settings: MiningSettings
) -> TrainingPair:
    if not kept:
        return pair
    provenance = {
        "retriever": settings.retriever,
        "ids": [pool.ids[candidate.position] for candidate in kept],
        "scores": [round(candidate.score, 6) for candidate in kept],
        "ranks": [candidate.rank for candidate in kept],
    }
    texts = [pool.passage(candidate.position).full_text for candidate in kept]
    return pair.with_negatives(texts, {"mined": provenance})
