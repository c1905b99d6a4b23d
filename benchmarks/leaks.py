"""The leak check: the overlaps that the real sets are known to have, planted near-duplicates, and speed.

MEDLEY_DATA=... python benchmarks/leaks.py known
MEDLEY_DATA=... python benchmarks/leaks.py planted
MEDLEY_DATA=... python benchmarks/leaks.py speed --rows 1000000
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import random
import resource
import string
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from medley.collections import Collection, in_memory, load_collection
from medley.leaks.against import load_against
from medley.leaks.find import Leak, find_leaks, hold_out, iter_leaks
from medley.pairs import StreamedPairs, TrainingPair, read_pairs

DATA = Path(os.environ.get("MEDLEY_DATA", "."))
COLLECTIONS = (
    "scifact", "covidqa_passages", "mediqa2019_qa", "medquad_liveqa", "mqp", "pubmedqa_l", "cisi", "cranfield",
    "climate_fever_sent", "xquad_en",
)  # fmt: skip
PAIRS = (
    "medical/medquad", "medical/sysrev_title_abstract", "medical/disease_ontology", "medical/mediqa_rqe",
    "medical/pubmedqa_l_long_answer", "medical/plos",
)  # fmt: skip


def rows_of(name: str) -> list[TrainingPair]:
    """A pairs file of the data folder; the labelled question pairs have their second question as positive."""
    path = DATA / "pairs" / f"{name}.jsonl.gz"
    if not name.endswith("mediqa_rqe"):
        return read_pairs(path)
    with gzip.open(path, "rt", encoding="utf-8") as stream:
        return [TrainingPair(row["query"], row["other"]) for row in map(json.loads, stream)]


def known() -> None:
    """A table of every pairs file and train split against every collection: what the sets are known to share."""
    held_out = [
        hold_out(load_against(str(DATA / "collections" / name)).collection, passages="all")
        for name in COLLECTIONS
    ]
    print(
        "| training | against | queries there hit (exact) | passages there hit (exact) |\n|---|---|---|---|"
    )
    for name in PAIRS:
        found = list(iter_leaks(rows_of(name), held_out))
        for against in COLLECTIONS:
            own = [leak for leak in found if leak.against == against]
            if own:
                print(
                    f"| {name} | {against} | {hits(own, {'query'})} | {hits(own, {'positive', 'negative'})} |"
                )
    liveqa = load_collection(f"{DATA / 'collections' / 'mediqa2019_qa'}:train_liveqa")
    test = load_collection(str(DATA / "collections" / "medquad_liveqa"))
    own = find_leaks([TrainingPair(query, "x") for query in liveqa.queries.values()], test)
    print(
        f"| mediqa2019_qa:train_liveqa ({len(liveqa.queries)} queries) | medquad_liveqa | {hits(own, {'query'})} | |"
    )


def hits(leaks: list[Leak], fields: set[str]) -> str:
    """Distinct held-out texts, and how many of them have an exact copy."""
    own = [leak for leak in leaks if leak.field in fields]
    exact = {leak.id for leak in own if leak.kind == "exact"}
    return f"{len({leak.id for leak in own})} ({len(exact)})"


def planted(count: int, seed: int) -> None:
    """Near-duplicates and look-alikes of real queries and passages: how many of each are reported."""
    rng = random.Random(seed)
    print("| texts | planted near-duplicates found | look-alikes reported |\n|---|---|---|")
    for name in ("scifact", "mediqa2019_qa", "climate_fever_sent", "medquad_liveqa"):
        collection = load_collection(str(DATA / "collections" / name), keep_empty=True)
        queries = [text for text in collection.queries.values() if len(text.split()) >= 6]
        passages = [p.text for p in collection.corpus if len(p.text.split()) >= 30]
        for kind, texts in (("queries", queries), ("passages", passages)):
            chosen = rng.sample(texts, min(count, len(texts)))
            near = [changed(text, rng) for text in chosen]
            alike = [look_alike(text, texts, rng) for text in chosen]
            found, false = found_of(chosen, near), found_of(chosen, alike)
            print(f"| {name}, {kind} | {found} of {len(near)} | {false} of {len(alike)} |")


def changed(text: str, rng: random.Random) -> str:
    """A word dropped, punctuation taken away or added, and the case changed."""
    words = text.split()
    words.pop(rng.randrange(len(words)))
    text = " ".join(words)
    punctuation = rng.choice(
        [lambda t: t.translate(str.maketrans("", "", string.punctuation)), lambda t: t.replace(" ", ", ", 2) + "!",
         lambda t: t.translate(str.maketrans({mark: " " for mark in string.punctuation}))]
    )  # fmt: skip
    return rng.choice([str.upper, str.lower, str.title])(punctuation(text))


def look_alike(text: str, others: list[str], rng: random.Random) -> str:
    """The same sentence about something else: one word in sixteen, and at least one, is another text's."""
    words, strangers = text.split(), rng.choice(others).split()
    for _ in range(max(1, len(words) // 16)):
        place = rng.randrange(len(words))
        new = rng.choice(
            [word for word in strangers if word.lower() != words[place].lower()] or ["otherwise"]
        )
        words[place] = new
    return " ".join(words)


def found_of(held: list[str], training: list[str]) -> int:
    """How many of the training texts are reported as their own counterpart."""
    queries = {str(number): text for number, text in enumerate(held)}
    collection = one_passage(queries)
    leaks = find_leaks([TrainingPair(text, "nothing of the kind") for text in training], collection)
    return len({leak.row for leak in leaks if leak.id == str(leak.row)})


def one_passage(queries: dict[str, str]) -> Collection:
    """A collection of queries with one passage that answers them all."""
    from medley.collections import Passage

    return in_memory(
        "planted", "test", [Passage("p", "text")], queries, {query: {"p": 1} for query in queries}
    )


def speed(rows: int, folder: Path) -> None:
    """Time and memory of so many rows (query, positive, one negative) against three collections, from a file."""
    path = folder / f"leaks-{rows}.jsonl"
    letters = write_rows(path, rows)
    start, cpu = time.perf_counter(), time.process_time()
    held_out = [
        hold_out(load_against(str(DATA / "collections" / name)).collection, passages="all")
        for name in ("scifact", "medquad_liveqa", "covidqa_passages")
    ]
    ready = time.perf_counter() - start
    found = Counter(
        (leak.against, leak.field, leak.kind) for leak in iter_leaks(StreamedPairs(path), held_out)
    )
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    peak_gb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(f"{rows:,} rows, {letters / 1e9:.2f} GB of text: {seconds:.0f} s ({cpu:.0f} s of processor time, "
          f"{ready:.1f} s to arrange the collections), peak {peak_gb:.2f} GB")  # fmt: skip
    for key, number in sorted(found.items()):
        print("  ", *key, f"{number:,}")
    path.unlink()


def write_rows(path: Path, rows: int) -> int:
    """Rows that all differ, made of real pairs: words of each are shuffled in stretches, so that no text repeats."""
    rng = random.Random(1)
    real = [pair for name in PAIRS[:3] for pair in rows_of(name)]
    letters = 0
    with path.open("w", encoding="utf-8") as stream:
        for row in range(rows):
            pair, other = real[row % len(real)], rng.choice(real)
            texts = [pair.query, pair.positive[:1200], other.positive[:1200]]
            if row >= len(real):
                texts = [f"{stirred(text, rng)} {row}" for text in texts]
            if texts[1].strip() == texts[2].strip():
                texts[2] += " and more"
            letters += sum(map(len, texts))
            stream.write(
                json.dumps({"query": texts[0], "positive": texts[1], "negatives": [texts[2]]}) + "\n"
            )
    return letters


def stirred(text: str, rng: random.Random) -> str:
    """The text's stretches of five words in another order."""
    words = text.split()
    stretches = [words[start : start + 5] for start in range(0, len(words), 5)]
    rng.shuffle(stretches)
    return " ".join(word for stretch in stretches for word in stretch)


def arguments() -> Iterator[argparse.Namespace]:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["known", "planted", "speed"])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--folder", type=Path, default=Path(), help="where the rows for `speed` are written")
    yield parser.parse_args()


if __name__ == "__main__":
    for given in arguments():
        if given.what == "known":
            known()
        elif given.what == "planted":
            planted(given.count, given.seed)
        else:
            speed(given.rows, given.folder)
