"""Encoding candidates within a budget, and keeping what they scored: what every search strategy works through.

The unit of the budget is one encoding of all dev pools. No candidate is encoded twice, and with a `store` folder none
is even after a kill: each encoding leaves one small file with its queries' scores, written atomically, so that
several processes may share the folder, and the vectors too where a strategy asks to keep them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from medley.files import read_json, write_json, writing
from medley.fingerprint import fingerprint
from medley.merge.outcome import Candidate, make_candidate
from medley.merge.pool import (
    CandidateScore,
    DevPool,
    Objective,
    PoolVectors,
    score_queries,
    score_vectors,
    split_queries,
)
from medley.merge.space import SearchSpace

Embed = Callable[[np.ndarray], Sequence[PoolVectors]]
"""Encodes every pool under coefficients (K, S), those that SearchSpace.effective gives."""


class Trials:
    """One search's encodings and candidates, in the order they were tried.

    `store` must be a folder of these pools, experts and settings only; search.store_folder names one.
    """

    def __init__(
        self,
        embed: Embed,
        pools: Sequence[DevPool],
        space: SearchSpace,
        *,
        budget: int,
        objective: Objective = "mean",
        confirm: float = 0.0,
        seed: int = 13,
        store: Path | None = None,
        advance: Callable[[int], None] = lambda _: None,
    ) -> None:
        self.pools, self.space, self.budget, self.seed = pools, space, budget, seed
        self.objective: Objective = objective
        self.held_out = split_queries(pools, confirm, seed)
        self.candidates: list[Candidate] = []
        self._embed, self._store, self._advance = embed, store, advance
        self._confirms = any(mask_Q.any() for mask_Q in self.held_out.values())
        self._charged = 0.0
        self._scored: dict[tuple[float, ...], CandidateScore] = {}
        self._tried: dict[tuple[float, ...], Candidate] = {}

    @property
    def spent(self) -> int:
        """Encodings so far."""
        return len(self._scored) + math.ceil(self._charged)

    def charge(self, encodings: float) -> None:
        """Count other work on the pools' texts, in encodings."""
        self._charged += encodings

    @property
    def left(self) -> int:
        """Encodings that the budget still has."""
        return self.budget - self.spent

    @property
    def searched(self) -> dict[str, np.ndarray]:
        """For each pool the queries (Q,) that the search sees."""
        return {name: ~mask_Q for name, mask_Q in self.held_out.items()}

    def vectors(self, effective_KS: np.ndarray) -> Sequence[PoolVectors]:
        """The pools' vectors under these coefficients, which are kept in the store; one encoding."""
        key = _key(effective_KS)
        path = None if self._store is None else self._store / f"{fingerprint(key)}.safetensors"
        if path is not None and path.is_file():
            vectors: Sequence[PoolVectors] = _read(path, len(self.pools))
        else:
            vectors = self._embed(effective_KS)
            if path is not None:
                _write(path, vectors)
        self._remember(key, lambda: score_vectors(self.pools, vectors))
        return vectors

    def measure(
        self, weights_KS: np.ndarray, *, predicted: float | None = None, keep_vectors: bool = False
    ) -> tuple[Candidate, Sequence[PoolVectors] | None]:
        """The candidate with these weights, encoded unless it was; and its vectors where they are asked for."""
        effective_KS = self.space.effective(weights_KS)
        key = _key(effective_KS)
        vectors = None
        if keep_vectors:
            vectors = self.vectors(effective_KS)
        else:
            self._remember(key, lambda: score_vectors(self.pools, self._embed(effective_KS)))
        if key not in self._tried:
            self._tried[key] = self._candidate(weights_KS, self._scored[key], predicted)
            self.candidates.append(self._tried[key])
        return self._tried[key], vectors

    def known(self, weights_KS: np.ndarray) -> bool:
        """Whether measuring these weights would cost nothing."""
        return _key(self.space.effective(weights_KS)) in self._scored

    def adopt(self, weights_KS: np.ndarray, per_query: Mapping[str, Sequence[float]]) -> None:
        """Take over a candidate that another process encoded, by its queries' scores."""
        key = _key(self.space.effective(weights_KS))
        scores = {name: np.array(scores_Q) for name, scores_Q in per_query.items()}
        self._remember(key, lambda: score_queries(self.pools, scores))
        self.measure(weights_KS)

    def per_query(self, weights_KS: np.ndarray) -> dict[str, list[float]]:
        """The queries' scores of a candidate that was measured, the held-out ones included."""
        scored = self._scored[_key(self.space.effective(weights_KS))]
        return {name: scores_Q.tolist() for name, scores_Q in scored.per_query.items()}

    def guess(self, weights_KS: np.ndarray, score: float, scores: dict[str, float]) -> None:
        """Report what the surrogate says of a candidate that was not encoded."""
        self.candidates.append(
            make_candidate(self.space, weights_KS, CandidateScore(score, scores), real=False)
        )

    def _remember(self, key: tuple[float, ...], measure: Callable[[], CandidateScore]) -> None:
        """Have the score under the key: from before, from the store, or measured now."""
        if key in self._scored:
            return
        path = None if self._store is None else self._store / f"{fingerprint(key)}.json"
        if path is not None and path.is_file():
            per_query: Mapping[str, np.ndarray] = {
                name: np.array(scores) for name, scores in read_json(path)["per_query"].items()
            }
            self._scored[key] = score_queries(self.pools, per_query)
        else:
            self._scored[key] = measure()
            if path is not None:
                per_query = self._scored[key].per_query
                write_json(
                    path,
                    {
                        "effective": list(key),
                        "per_query": {name: s_Q.tolist() for name, s_Q in per_query.items()},
                    },
                )
        self._advance(1)

    def _candidate(self, weights_KS: np.ndarray, whole: CandidateScore, predicted: float | None) -> Candidate:
        per_query = whole.per_query
        seen = {name: per_query[name][~mask_Q] for name, mask_Q in self.held_out.items()}
        score = score_queries(self.pools, seen, objective=self.objective)
        confirm = None
        if self._confirms:
            held_out = {name: per_query[name][mask_Q] for name, mask_Q in self.held_out.items()}
            confirm = score_queries(self.pools, held_out, objective=self.objective)
        return make_candidate(self.space, weights_KS, score, predicted=predicted, confirm=confirm)


def _key(effective_KS: np.ndarray) -> tuple[float, ...]:
    return tuple((np.round(effective_KS, 9) + 0.0).ravel().tolist())


def _write(path: Path, vectors: Sequence[PoolVectors]) -> None:
    from safetensors.numpy import save_file

    tensors = {}
    for index, encoded in enumerate(vectors):
        tensors[f"{index}.queries"] = np.ascontiguousarray(encoded.queries)
        tensors[f"{index}.passages"] = np.ascontiguousarray(encoded.passages)
    with writing(path) as temporary:
        save_file(tensors, str(temporary))


def _read(path: Path, pool_count: int) -> list[PoolVectors]:
    from safetensors.numpy import load_file

    tensors = load_file(str(path))
    return [PoolVectors(tensors[f"{i}.queries"], tensors[f"{i}.passages"]) for i in range(pool_count)]
