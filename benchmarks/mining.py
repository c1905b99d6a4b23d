"""Mining at scale: time beside one blocked matrix product, peak memory, and BM25 beside bm25s.

    python benchmarks/mining.py dense [--passages 200000 --queries 20000 --dimensions 256 --rounds 2]
    python benchmarks/mining.py bm25 [--passages 200000 --queries 1000 --stop-words 150]

`dense`: random vectors and short texts, written to a folder for the time of the run: a corpus, a pairs file and the
vectors in shards. A query is its positive's vector with noise. Product (A) and mining (B) are timed in turns, A B A B,
in one process, after the product was warmed up; the peak is that of a process of its own which only mines, pairs
streamed in from the file and out to another. `bm25`: words drawn by Zipf's law; index and search in processes of
their own. Threads: OMP_NUM_THREADS. Prints its tables; docs/results/mining.md holds them.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from medley.collections import FolderCorpus, Passage
from medley.files import write_jsonl
from medley.mine import MiningSettings
from medley.mine.find import find_by_vectors
from medley.mine.negatives import Tally, mined_rows
from medley.mine.pool import Pool
from medley.pairs import StreamedPairs, write_pairs
from medley.search.shards import SHARD_ROWS, Shards, shard_path, shards_of

DEPTH = 100
NOISE = 1.0
"""Length of the noise beside a positive of length 1: positives score about 0.7, the best of the others about 0.3."""
WORDS, ZIPF = 200_000, 1.1
"""Vocabulary of the BM25 corpus and the exponent of its words' frequencies."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["dense", "bm25", "peak", "ours", "bm25s"])
    parser.add_argument("--passages", type=int, default=200_000)
    parser.add_argument("--queries", type=int)
    parser.add_argument("--dimensions", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--words-each", type=int, default=60, help="words of a passage (bm25)")
    parser.add_argument(
        "--stop-words",
        type=int,
        default=150,
        help="so many of the most frequent words are in no index (bm25)",
    )
    parser.add_argument("--folder", type=Path, help="used by the benchmark itself")
    args = parser.parse_args()
    args.queries = args.queries or (1_000 if args.what in ("bm25", "ours", "bm25s") else 20_000)
    print({"dense": dense, "bm25": bm25, "peak": peak, "ours": ours, "bm25s": theirs}[args.what](args))


# ------------------------------------------------------------------------------------------------ vectors


def dense(args: argparse.Namespace) -> str:
    import torch

    with tempfile.TemporaryDirectory() as folder:
        args.folder = Path(folder)
        write_data(args)
        alone = json.loads(run_alone("peak", args))
        corpus, pairs = FolderCorpus(args.folder / "corpus.jsonl"), StreamedPairs(args.folder / "pairs.jsonl")
        passages_DH, queries_QH = read_vectors(args)
        reading, pool = timed(lambda: Pool(pairs, corpus))
        times: dict[str, list[Time]] = {"product": [], "mining": []}
        timed(lambda: product(queries_QH[:2048], passages_DH))
        for _ in range(args.rounds):
            times["product"].append(timed(lambda: product(queries_QH, passages_DH))[0])
            times["mining"].append(timed(lambda: sum(1 for _ in mine(args, pairs, pool)))[0])
        operations = 2 * args.passages * args.queries * args.dimensions
        a, b = ([statistics.median(getattr(time, unit) for time in times[name]) for unit in Time._fields]
                for name in ("product", "mining"))  # fmt: skip
        return "\n".join([
            f"{args.passages} passages x {args.queries} queries, {args.dimensions} dimensions, depth {DEPTH}, "
            f"{torch.get_num_threads()} thread(s); {versions()}",
            "",
            "| | seconds, in order | median | processor seconds, in order | median |",
            "|---|---|---:|---|---:|",
            f"| blocked product, {operations / a[1] / 1e9:.0f} GFLOP a processor second | {row_of(times['product'])} |",
            f"| mining | {row_of(times['mining'])} |",
            f"| ratio of medians | | **{b[0] / a[0]:.2f}** | | **{b[1] / a[1]:.2f}** |",
            f"| reading the texts, before | | {reading.wall:.1f} | | {reading.processor:.1f} |",
            f"| ratio with the reading | | {(b[0] + reading.wall) / a[0]:.2f} | "
            f"| {(b[1] + reading.processor) / a[1]:.2f} |",
            "",
            f"Peak of a process that mines: {alone['peak_mb']:.0f} MB, of which {alone['before_mb']:.0f} before it "
            f"began (Python and imports); {alone['rows']} rows got a negative.",
        ])  # fmt: skip


def write_data(args: argparse.Namespace) -> None:
    """A corpus and pairs with short texts; vectors of the passages in shards, of the queries in one file."""
    rng = np.random.default_rng(7)
    passages = ({"_id": f"p{i}", "text": f"passage {i} on topic {i % 997}"} for i in range(args.passages))
    write_jsonl(args.folder / "corpus.jsonl", passages)
    for shard in shards_of(args.passages, SHARD_ROWS):
        vectors = rng.standard_normal((len(shard), args.dimensions), dtype=np.float32)
        np.save(shard_path(args.folder, shard), unit(vectors))
    positives = rng.permutation(args.passages)[: args.queries]
    rows = (
        {"query": f"query {q}", "positive": f"passage {p} on topic {p % 997}"}
        for q, p in enumerate(positives)
    )
    write_jsonl(args.folder / "pairs.jsonl", rows)
    noise = unit(rng.standard_normal((args.queries, args.dimensions), dtype=np.float32)) * np.float32(NOISE)
    shards = Shards(args.folder, (args.passages, args.dimensions))
    np.save(args.folder / "queries.npy", unit(shards[positives] + noise))


def unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def read_vectors(args: argparse.Namespace) -> tuple[Shards, np.ndarray]:
    return Shards(args.folder, (args.passages, args.dimensions)), np.load(args.folder / "queries.npy")


def product(queries_QH: np.ndarray, passages_DH: Shards, height: int = 512, width: int = SHARD_ROWS) -> None:
    """Every query times every passage, a block at a time into the same memory: nothing is kept."""
    import torch

    queries = torch.from_numpy(queries_QH)
    buffer = torch.empty(height * width)
    for start in range(0, len(passages_DH), width):
        block = torch.from_numpy(np.array(passages_DH[start : start + width]))
        for first in range(0, len(queries), height):
            rows = queries[first : first + height]
            scores = buffer[: len(rows) * len(block)].view(len(rows), len(block))
            torch.mm(rows, block.T, out=scores)


def mine(args: argparse.Namespace, pairs: StreamedPairs, pool: Pool) -> Iterator[Any]:
    passages_DH, queries_QH = read_vectors(args)

    def encode(queries: Any) -> np.ndarray:
        return queries_QH[[int(text.split()[1]) for text, _ in queries]]

    find = find_by_vectors(pool, passages_DH, np.empty((0, args.dimensions), np.float32), encode, "dot")
    settings = MiningSettings(retriever="random", depth=DEPTH)
    return mined_rows(pairs, pool, find, settings, seed=0, relevant={}, tally=Tally())


def peak(args: argparse.Namespace) -> str:
    """Mine once, pairs from a file and into a file; the most memory that was resident."""
    import torch

    assert torch.get_num_threads()
    before = resident_mb()
    corpus, pairs = FolderCorpus(args.folder / "corpus.jsonl"), StreamedPairs(args.folder / "pairs.jsonl")
    mined = args.folder / "mined.jsonl"
    write_pairs(mined, mine(args, pairs, Pool(pairs, corpus)))
    with_negatives = sum(bool(pair.negatives) for pair in StreamedPairs(mined))
    return json.dumps({"peak_mb": resident_mb(), "before_mb": before, "rows": with_negatives})


# ------------------------------------------------------------------------------------------------ BM25


def bm25(args: argparse.Namespace) -> str:
    """Both indexes over the same corpus, each in a process of its own."""
    found = {name: json.loads(run_alone(name, args)) for name in ("ours", "bm25s")}
    assert found["ours"]["checksum"] == found["bm25s"]["checksum"], "the two do not find the same"
    lines = [
        f"{args.passages} passages of {args.words_each} words, {args.queries} queries of 8 words, k {DEPTH}, "
        f"{args.stop_words} stop words; " + versions(),
        "",
        "| | index, processor s | peak while indexing, MB | search, processor ms a query |",
        "|---|---:|---:|---:|",
    ]
    lines += [
        f"| {name} | {row['index_s']:.1f} | {row['peak_mb']:.0f} | {row['search_ms']:.2f} |"
        for name, row in found.items()
    ]
    return "\n".join(lines)


def words(args: argparse.Namespace, seed: int, count: int, each: int) -> Iterator[str]:
    """Texts of words w<rank>, drawn by Zipf's law, a chunk at a time."""
    rng = np.random.default_rng(seed)
    share = (args.stop_words + np.arange(1, WORDS + 1)) ** -ZIPF
    upto = np.cumsum(share / share.sum())
    for start in range(0, count, 1_000):
        drawn = np.searchsorted(upto, rng.random((min(1_000, count - start), each)))
        for row in np.minimum(drawn, WORDS - 1).tolist():
            yield " ".join(f"w{rank}" for rank in row)


def ours(args: argparse.Namespace) -> str:
    from medley.search import Bm25Index

    passages = (
        Passage(f"{i:09d}", text) for i, text in enumerate(words(args, 1, args.passages, args.words_each))
    )
    indexing, index = timed(lambda: Bm25Index(passages))
    peak_mb = resident_mb()
    queries = list(words(args, 2, args.queries, 8))
    searching, found = timed(lambda: index.nearest(queries, DEPTH))
    return report(indexing, peak_mb, searching, found.scores_QK)


def theirs(args: argparse.Namespace) -> str:
    """bm25s used as its documentation shows, with the settings that Medley has."""
    import bm25s
    from bm25s.tokenization import Tokenizer

    tokenizer = Tokenizer(stopwords="english", stemmer=None)

    def build() -> Any:
        texts = words(args, 1, args.passages, args.words_each)
        tokens = list(tokenizer.streaming_tokenize(texts, update_vocab=True, allow_empty=False))
        index = bm25s.BM25(method="lucene", k1=1.2, b=0.75)
        index.index((tokens, tokenizer.get_vocab_dict()), show_progress=False)
        return index

    indexing, index = timed(build)
    peak_mb = resident_mb()
    texts = list(words(args, 2, args.queries, 8))
    tokens = list(tokenizer.streaming_tokenize(texts, update_vocab=False, allow_empty=False))
    searching, found = timed(lambda: index.retrieve(tokens, k=DEPTH, show_progress=False))
    return report(indexing, peak_mb, searching, found.scores)


def report(indexing: Time, peak_mb: float, searching: Time, scores: np.ndarray) -> str:
    found = np.where(np.isfinite(scores), scores, 0).astype(np.float32)
    return json.dumps({
        "index_s": indexing.processor,
        "peak_mb": peak_mb,
        "search_ms": 1000 * searching.processor / len(scores),
        "checksum": [len(scores), float(found.sum(dtype=np.float64)), float(found.max())],
    })  # fmt: skip


# ------------------------------------------------------------------------------------------------ measuring


class Time(NamedTuple):
    """How long something took, in seconds: on the clock, and of all processors. The second bears a busy machine."""

    wall: float
    processor: float


def timed(work: Callable[[], Any]) -> tuple[Time, Any]:
    wall, processor = time.monotonic(), time.process_time()
    result = work()
    return Time(time.monotonic() - wall, time.process_time() - processor), result


def resident_mb() -> float:
    """The most memory this process has held so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def run_alone(what: str, args: argparse.Namespace) -> str:
    """This script in a process of its own; its last line."""
    given = {key: value for key, value in vars(args).items() if key != "what" and value is not None}
    command = [sys.executable, __file__, what]
    for key, value in given.items():
        command += [f"--{key.replace('_', '-')}", str(value)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1]


def row_of(times: list[Time]) -> str:
    """The values in order and their median, of both clocks."""
    cells = []
    for unit in Time._fields:
        values = [getattr(time, unit) for time in times]
        cells += [", ".join(f"{value:.1f}" for value in values), f"{statistics.median(values):.1f}"]
    return " | ".join(cells)


def versions() -> str:
    import bm25s
    import torch

    parts = ("Python " + platform.python_version(), "numpy " + np.__version__, "torch " + torch.__version__)
    return ", ".join((*parts, "bm25s " + bm25s.__version__))


if __name__ == "__main__":
    main()
