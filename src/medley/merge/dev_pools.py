"""From the search settings to the dev pools: weights, domain or general, and who says which passages are hard."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import numpy as np

from medley.collections import Collection
from medley.encoder import Retriever
from medley.merge.candidates import Apply
from medley.merge.hard import hard_pool
from medley.merge.pool import DevPool
from medley.merge.settings import SearchSettings


def dev_pools(
    settings: SearchSettings,
    collections: Mapping[str, Collection],
    *,
    instruction_for: Callable[[str], str | None] = lambda _: None,
    retrievers: Callable[[], Iterable[Retriever]] = lambda: (),
    seed: int,
) -> list[DevPool]:
    """The pool of each dev collection, by its name in the settings; `retrievers` gives those that rank (`rankers`)."""
    return [
        hard_pool(
            collection,
            retrievers(),
            max_passages=settings.pool_size,
            max_queries=settings.queries,
            instruction=instruction_for(spec),
            seed=seed,
            weight=settings.weights.get(spec, 1.0),
            general=spec in settings.general,
        )
        for spec, collection in collections.items()
    ]


def ranking_retrievers(
    apply: Apply, shape: tuple[int, int], rankers: Sequence[str]
) -> Callable[[], Iterator[Retriever]]:
    """The base and each expert alone in turn, as far as `rankers` names them: one retriever that changes."""

    def each() -> Iterator[Retriever]:
        if "base" in rankers:
            yield apply(np.zeros(shape))
        if "experts" in rankers:
            for expert in range(shape[0]):
                alone_KS = np.zeros(shape)
                alone_KS[expert] = 1.0
                yield apply(alone_KS)

    return each
