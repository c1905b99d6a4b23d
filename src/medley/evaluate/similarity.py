"""Sentence similarity: Spearman's correlation of cosine similarities with people's scores (BIOSSES, MTEB's STS).

In: pairs of sentences with a score, from `pairs.jsonl` (`sentence1`, `sentence2`, `score`) in a folder or from an STS
task of MTEB. Out: the correlation. Both sentences are encoded as queries under the same instruction, since the
relation has no direction.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from medley.errors import CollectionError
from medley.files import read_jsonl
from medley.fingerprint import fingerprint
from medley.search.embedder import Embedder


@dataclass(frozen=True)
class SimilarityTask:
    """Pairs of sentences with people's scores, on any scale."""

    name: str
    firsts: tuple[str, ...]
    seconds: tuple[str, ...]
    scores: tuple[float, ...]

    @property
    def identity(self) -> str:
        """Fingerprint of the content."""
        return fingerprint([self.firsts, self.seconds, self.scores])


def load_similarity(name: str, folder: Path | None = None) -> SimilarityTask:
    """Read a folder's pairs.jsonl, or the test split of an STS task of MTEB.

    Raises CollectionError when neither is there or a row is malformed.
    """
    rows: list[tuple[Any, Any, Any]]
    if folder is not None:
        path = folder / "pairs.jsonl"
        rows = []
        for number, row in read_jsonl(path, CollectionError):
            fields = (row.get("sentence1"), row.get("sentence2"), row.get("score"))
            if not (
                isinstance(fields[0], str)
                and isinstance(fields[1], str)
                and isinstance(fields[2], (int, float))
            ):
                raise CollectionError(
                    f"{path}:{number}: give sentence1 and sentence2 as strings and score as a number."
                )
            rows.append(fields)
    else:
        from medley.mteb_tasks import read_similarity_rows

        rows = read_similarity_rows(name)
    if len({score for _, _, score in rows}) < 2:
        raise CollectionError(f"{name}: fewer than two different scores; a correlation needs them.")
    firsts, seconds, scores = zip(*rows, strict=True)
    return SimilarityTask(name, firsts, seconds, tuple(float(score) for score in scores))


def score_similarity(embedder: Embedder, task: SimilarityTask, instruction: str | None) -> dict[str, Any]:
    """A task of results.json: `spearman` between -1 and 1, and each pair's cosine and score."""
    vectors = embedder.encode_queries([*task.firsts, *task.seconds], instruction)
    vectors = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    count = len(task.scores)
    cosines = np.einsum("nh,nh->n", vectors[:count], vectors[count:])
    pairs = [
        {"cosine": float(cosine), "score": score} for cosine, score in zip(cosines, task.scores, strict=True)
    ]
    return {"split": "test", "spearman": spearman(cosines, task.scores), "pairs": pairs}


def spearman(first: Sequence[float] | np.ndarray, second: Sequence[float] | np.ndarray) -> float:
    """Rank correlation; equal values share their mean rank. 0 where one side is constant."""
    ranks = [_mean_ranks(np.asarray(values, dtype=np.float64)) for values in (first, second)]
    centred = [own - own.mean() for own in ranks]
    length = float(np.linalg.norm(centred[0]) * np.linalg.norm(centred[1]))
    return float(centred[0] @ centred[1] / length) if length else 0.0


def _mean_ranks(values: np.ndarray) -> np.ndarray:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[inverse]
