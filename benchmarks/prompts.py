"""What scoring many instructions costs: all over again, candidate by candidate, and together.

    MEDLEY_DATA=/path/to/data python benchmarks/prompts.py > docs/results/prompts.tables.md

`--candidates` library instructions on `--queries` SciFact training queries over the whole SciFact corpus (5,183
passages), with the bundled base. Three ways, in one process, in turns of `--turn` candidates so that a noisy machine
disturbs all alike:

- all over again: passages and queries are encoded for every candidate. Only the first `--naive` candidates are measured
  and the time is multiplied, as the table says; nothing in it depends on the candidate.
- candidate by candidate: passages once, then `encode_queries` for one candidate after another.
- together: Medley's scorer.

Time is the process's CPU time. Then: the largest difference between the scores, and what racing saves.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from medley.collections import load_collection
from medley.encoder import Retriever, RetrieverSettings, build_retriever, encode_passages, encode_queries
from medley.merge.pool import DevPool, PoolVectors, build_pool, score_vectors
from medley.pipeline.prompting import dev_set
from medley.prompts.library import read_library
from medley.prompts.racing import race
from medley.prompts.scoring import Scorer


@dataclass
class Clock:
    """CPU seconds by name."""

    seconds: dict[str, float] = field(default_factory=dict)

    def __call__(self, name: str, work: Callable[[], Any]) -> Any:
        start = time.process_time()
        result = work()
        self.seconds[name] = self.seconds.get(name, 0.0) + time.process_time() - start
        return result


def measure(retriever: Retriever, pool: DevPool, texts: list[str], naive: int, turn: int) -> list[str]:
    """The rows of the table for one retriever, and lines below it."""
    clock = Clock()
    encode_queries(retriever, pool.queries[:64])  # not the first call that is measured
    scorer = clock("passages", lambda: Scorer(retriever, [dev_set(pool)]))
    passages_DH = scorer._passages_DH[0]

    def one(text: str, passages: np.ndarray) -> float:
        return score_vectors(
            [pool], [PoolVectors(encode_queries(retriever, pool.queries, instruction=text), passages)]
        ).score

    def again(text: str) -> float:
        return one(text, encode_passages(retriever, pool.passages))

    scores: dict[str, list[float]] = {"again": [], "single": [], "together": []}
    for start in range(0, len(texts), turn):
        part = texts[start : start + turn]
        scores["single"] += clock("single", lambda part=part: [one(text, passages_DH) for text in part])
        scores["together"] += clock("together", lambda part=part: [float(s) for s in scorer.means(part)])
    scores["again"] = [clock("again", lambda text=text: again(text)) for text in texts[:naive]]
    s = clock.seconds
    whole = s["again"] / naive * len(texts)
    single, together = s["passages"] + s["single"], s["passages"] + s["together"]
    name = "causal" if retriever.model[0].config.is_causal else "bidirectional"
    apart = np.abs(np.array(scores["single"]) - np.array(scores["together"]))
    from_naive = np.abs(np.array(scores["again"]) - np.array(scores["together"][:naive]))
    said = f"{whole:.0f} s ({naive} measured: {s['again']:.0f} s)" if naive < len(texts) else f"{whole:.0f} s"
    rows = np.random.default_rng(0).permutation(len(pool.queries))
    fresh: set[tuple[str, int]] = set()

    def counted(candidates: Any, seen: np.ndarray) -> np.ndarray:
        fresh.update((text, int(row)) for text in candidates for row in seen)
        return scorer.scores(candidates, seen)

    raced = race(texts, counted, scorer.weights, rows)
    best = max((r for r in raced if r.finished), key=lambda r: r.score).instruction
    return [
        f"| {name} | {said} | {single:.0f} s | {together:.0f} s | **{whole / together:.0f}x** "
        f"| {s['single']:.1f} s | {s['together']:.1f} s | **{s['single'] / s['together']:.2f}x** "
        f"| {max(apart.max(), from_naive.max()):.1e} |",
        f"Racing, {name}: {len(fresh)} of {len(texts) * len(pool.queries)} query encodings "
        f"({len(fresh) / (len(texts) * len(pool.queries)):.0%}); the winner "
        f"{'is' if best == texts[int(np.argmax(scores['together']))] else 'is not'} that of the full table.",
    ]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--collection", default="$MEDLEY_DATA/collections/scifact:train")
    parser.add_argument("--candidates", type=int, default=60)
    parser.add_argument("--queries", type=int, default=300)
    parser.add_argument("--passages", type=int, default=10_000)
    parser.add_argument("--naive", type=int, default=2)
    parser.add_argument("--turn", type=int, default=10)
    parser.add_argument("--max-length", type=int, default=64)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--attention", nargs="+", default=["causal", "bidirectional"])
    arguments = parser.parse_args()
    collection = load_collection(os.path.expandvars(arguments.collection))
    pool = build_pool(collection, max_passages=arguments.passages, max_queries=arguments.queries)
    texts = list(read_library().texts[: arguments.candidates])
    print(
        f"{len(texts)} candidates, {len(pool.queries)} queries, {len(pool.passages)} passages of {pool.name}; tiny, "
        f"{arguments.dtype}, at most {arguments.max_length} tokens; CPU time\n"
    )
    print(
        "| attention | all over again | candidate by candidate | together | gain | queries: candidate by candidate "
        "| queries: together | gain | largest difference of a score |"
    )
    print("|---|---:|---:|---:|---:|---:|---:|---:|---:|")
    below = []
    for attention in arguments.attention:
        settings = RetrieverSettings(
            max_length=arguments.max_length, dtype=arguments.dtype, attention=attention
        )
        row, line = measure(build_retriever("tiny", settings), pool, texts, arguments.naive, arguments.turn)
        print(row, flush=True)
        below.append(line)
    print("\n" + "\n".join(f"- {line}" for line in below))


if __name__ == "__main__":
    main()
