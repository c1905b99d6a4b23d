"""Reciprocal-rank fusion of two or more rankings (Cormack, Clarke and Büttcher, SIGIR 2009).

score(d) = sum over rankings of 1 / (60 + rank of d), 0 where a ranking does not hold d. Equal scores by passage id.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from medley.search.order import Ranking, Rankings

RANK_OFFSET = 60
"""The paper's constant."""


def fuse(several: Sequence[Rankings], k: int) -> dict[str, Ranking]:
    """The k best passages of each query by reciprocal ranks; a query missing from a ranking counts as empty there."""
    queries = dict.fromkeys(query for rankings in several for query in rankings)
    return {query: _fused([rankings.get(query, []) for rankings in several], k) for query in queries}


def _fused(rankings: Sequence[Ranking], k: int) -> Ranking:
    parts: dict[str, list[float]] = {}
    for ranking in rankings:
        for rank, (passage_id, _) in enumerate(ranking, start=1):
            parts.setdefault(passage_id, []).append(1 / (RANK_OFFSET + rank))
    # summed exactly, so that equal ranks in another order are equal scores
    scores = {passage_id: math.fsum(own) for passage_id, own in parts.items()}
    return sorted(scores.items(), key=lambda item: (-item[1], item[0]))[:k]
