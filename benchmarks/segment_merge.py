"""A retriever merged with a domain language model that is no retriever, by depth, against LoRA on few queries.

    MEDLEY_DATA=<folder> python benchmarks/segment_merge.py --out runs/segment-merge [--trials 10] [--steps 300]

1. The domain model: `tiny`, which is a retriever, is continued as a language model on medical text of raw/medical
   (all weights, next token). It is kept in --out and not made again.
2. Merge: theta = source + (1 - alpha) (domain model - source), one alpha for the lower and one for the upper half of
   the layers, each of {0, .25, .5, .75, 1}: 25 points, the source itself among them (1, 1). Tokenizer and token
   embeddings stay the source's. Nothing is back-propagated. Then a grid of 441 points by the surrogate.
3. Full data: alphas chosen on a pool of train queries, tested on the test split; LoRA trained on the same queries.
4. Low data: the same with `--few` train queries, drawn anew in each trial: both see the same queries.
LoRA: all linear layers, learning rate 1e-4, warm-up .1, temperature .01, one positive and mined negatives; early
stopping by a fifth of its queries, among the numbers of epochs in EPOCHS (0: the source). Scale and model are a
toy of the published experiment (7 B parameters); the protocol is the same.
"""

from __future__ import annotations

import argparse
import gzip
import itertools
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np

from medley.backbone import backbone
from medley.collections import Collection, Passage, load_collection
from medley.encoder import Retriever, RetrieverSettings, build_retriever
from medley.evaluate.scores import evaluate_retriever
from medley.expert import read_expert
from medley.files import remove
from medley.merge.candidates import candidates
from medley.merge.coefficients import Layout, layer_cuts
from medley.merge.pool import DevPool, PoolVectors, build_pool, embed_pool, score_vectors
from medley.merge.search import search
from medley.merge.settings import MergeParameters, SearchSettings
from medley.merge.space import SearchSpace
from medley.mine.negatives import mine_negatives
from medley.mine.settings import MiningSettings
from medley.pairs import TrainingPair
from medley.progress import progress, say
from medley.train.contrastive import train
from medley.train.language import train_language
from medley.train.settings import LanguageSettings, LoraSettings, TrainSettings

ALPHAS = (0.0, 0.25, 0.5, 0.75, 1.0)
EPOCHS = (0, 1, 3, 6)
TOKENS = 128
"""Of a row of language modelling."""
ANSWERS = "Given a question, retrieve passages that answer the question"
COLLECTIONS = {
    "mediqa2019_qa": (
        "$MEDLEY_DATA/collections/mediqa2019_qa:train",
        "$MEDLEY_DATA/collections/mediqa2019_qa:test",
    ),
    "covidqa_passages": (
        "$MEDLEY_DATA/collections/covidqa_passages:train",
        "$MEDLEY_DATA/collections/covidqa_passages:test",
    ),
    "demo": ("demo/medicine:train_care", "demo/medicine:test"),
}
"""Where alphas are chosen and LoRA is trained, and where both are tested; `demo` is for a quick look."""
SETTINGS = RetrieverSettings(max_length=64, dtype="float32")
Point = tuple[float, float]
"""Alpha of the lower and of the upper half."""


def domain_model(out: Path, steps: int, rows_a_step: int) -> Path:
    """The folder of `tiny` continued as a language model on medical text."""
    folder = out / f"domain-{steps}-{rows_a_step}"
    if folder.is_dir():
        return folder
    settings = LanguageSettings(
        lora=None, learning_rate=5e-4, block_tokens=TOKENS, batch_size=rows_a_step, mini_batch_size=rows_a_step,
        max_steps=steps, warmup=0.1, weight_decay=0.01, dtype="float32",
    )  # fmt: skip
    files = sorted((Path(os.environ["MEDLEY_DATA"]) / "raw" / "medical").glob("*.txt.gz"))
    # characters of each file: about as many tokens as the steps read
    share = rows_a_step * TOKENS * steps * 6 // len(files)
    texts = [[Passage(f.name, gzip.decompress(f.read_bytes()).decode("utf-8")[:share])] for f in files]
    report = train_language("tiny", texts, settings, folder, seed=13)
    say(
        f"held-out loss {report.loss_before:.2f} to {report.loss_after:.2f} in {steps} steps, {report.tokens} tokens"
    )
    return folder


class Merged:
    """The source with the domain model mixed in: embeds pools and scores tests at any point."""

    def __init__(self, folder: Path) -> None:
        self.retriever = build_retriever("tiny", SETTINGS)
        cuts = layer_cuts(2, int(backbone(self.retriever).config.num_hidden_layers))
        # what is kept comes from the base, which is the source
        self._merging = candidates(
            self.retriever, [read_expert(folder, name="domain")], method="task_arithmetic",
            parameters=MergeParameters.model_validate({}), layout=Layout(cuts, kept=("embed_tokens",)),
        )  # fmt: skip
        self._apply = self._merging.__enter__()

    def at(self, point: Point) -> Retriever:
        """The retriever at alphas; the coefficient of the domain model's difference is 1 - alpha."""
        return self._apply(np.array([[1 - point[0], 1 - point[1]]]))

    def embed(self, pool: DevPool) -> Callable[[np.ndarray], list[PoolVectors]]:
        return lambda coefficients_KS: [embed_pool(self._apply(coefficients_KS), pool)]


def best_point(scores_by_point: dict[Point, np.ndarray], rows: np.ndarray) -> Point:
    """The point with the highest mean over these queries; ties to the one nearer the source."""
    return max(scores_by_point, key=lambda p: (round(float(scores_by_point[p][rows].mean()), 12), sum(p), p))


def finer(merged: Merged, pool: DevPool) -> tuple[Point, float, int]:
    """The best of 441 points by the surrogate."""
    grid = tuple(np.linspace(0, 1, 21).round(6).tolist())
    settings = SearchSettings.model_validate({"strategy": "surrogate", "encodings": 12, "patience": 12})
    space = SearchSpace(("domain",), grid, 2, "task_arithmetic")
    result = search(merged.embed(pool), [pool], space, settings)
    lower, upper = result.best.weights[0]
    return (1 - float(lower), 1 - float(upper)), result.best.score, result.encodings


def lora(
    collection: Collection, pool: DevPool, rows: np.ndarray, *, seed: int, negatives: int
) -> tuple[Retriever, int]:
    """The source fine-tuned on these queries of the pool, and for how many epochs."""
    rng = np.random.default_rng(seed)
    shuffled = rng.permutation(rows)
    held_out, used = np.split(shuffled, [max(2, len(rows) // 5)])
    texts = {passage.id: passage.full_text for passage in pool.passages}
    pairs = []
    for row in used:
        query_id = pool.query_ids[row]
        positives = [p for p in collection.positives(query_id) if p in texts]
        instruction = pool.instruction or ""
        pairs.append(TrainingPair(pool.queries[row], texts[positives[0]], instruction=instruction))
    mined = mine_negatives(
        pairs, pool.passages, MiningSettings(depth=50, per_query=negatives, margin=None), seed=seed
    ).pairs
    best: tuple[float, int, Retriever] | None = None
    for epochs in EPOCHS:
        retriever = build_retriever("tiny", SETTINGS)
        if epochs:
            settings = TrainSettings(
                lora=LoraSettings(rank=16, alpha=32), learning_rate=1e-4, batch_size=16, mini_batch_size=16,
                epochs=epochs, warmup=0.1, temperature=0.01, negatives=negatives,
            )  # fmt: skip
            train(retriever, mined, settings, seed=seed, label=f"LoRA, {epochs} epochs")
        score = score_vectors([pool], [embed_pool(retriever, pool)]).per_query[pool.name][held_out].mean()
        if best is None or score > best[0]:
            best = (float(score), epochs, retriever)
    assert best is not None  # EPOCHS is not empty
    return best[2], best[1]


def compare_on(name: str, folder: Path, arguments: argparse.Namespace) -> None:
    collection, test = (load_collection(spec) for spec in COLLECTIONS[name])
    pool = build_pool(
        collection, max_passages=arguments.passages, max_queries=arguments.queries, instruction=ANSWERS
    )
    merged = Merged(folder)
    points = list(itertools.product(ALPHAS, repeat=2))
    scores: dict[Point, np.ndarray] = {}
    with progress(f"{name}: 25 points", len(points)) as advance:
        for point in points:
            scores[point] = score_vectors([pool], [embed_pool(merged.at(point), pool)]).per_query[pool.name]
            advance(1)
    tested: dict[Point, float] = {}

    def test_score(retriever: Retriever) -> float:
        found = evaluate_retriever(retriever, [test], instructions={test.name: ANSWERS})
        return float(found[test.name].means["ndcg_at_10"])

    def test_point(point: Point) -> float:
        if point not in tested:
            tested[point] = test_score(merged.at(point))
        return tested[point]

    source = test_point((1.0, 1.0))
    everything = np.arange(len(pool.query_ids))
    print(
        f"\n## {name}: {len(everything)} train queries, {len(test.queries)} test queries, source {source:.4f}\n"
    )
    print("Dev nDCG@10 by alpha (rows: lower half, columns: upper half):\n")
    print("| | " + " | ".join(f"{alpha:g}" for alpha in ALPHAS) + " |\n|---|" + "---:|" * len(ALPHAS))
    for lower in ALPHAS:
        cells = " | ".join(f"{scores[lower, upper].mean():.3f}" for upper in ALPHAS)
        print(f"| {lower:g} | {cells} |")
    chosen = best_point(scores, everything)
    fine, fine_dev, encodings = finer(merged, pool)
    full_lora, epochs = lora(collection, pool, everything, seed=13, negatives=arguments.negatives)
    print("\n| data | model | chosen | dev | test |\n|---|---|---|---:|---:|")
    print(f"| none | source | | {scores[1.0, 1.0].mean():.4f} | {source:.4f} |")
    print(f"| full | merged, 25 points | {chosen} | {scores[chosen].mean():.4f} | {test_point(chosen):.4f} |")
    print(
        f"| full | merged, 441 points, {encodings} encodings | {fine} | {fine_dev:.4f} | {test_point(fine):.4f} |"
    )
    print(f"| full | LoRA | {epochs} epochs | | {test_score(full_lora):.4f} |")
    rng = np.random.default_rng(13)
    rows: list[tuple[Point, float, int, float]] = []
    for trial in range(arguments.trials):
        few = rng.choice(everything, min(arguments.few, len(everything)), replace=False)
        point = best_point(scores, few)
        tuned, epochs = lora(collection, pool, few, seed=trial, negatives=arguments.negatives)
        rows.append((point, test_point(point), epochs, test_score(tuned)))
    if not rows:
        return
    print(
        f"\n| trial ({arguments.few} queries) | alphas | merged | LoRA epochs | LoRA |\n|---|---|---:|---:|---:|"
    )
    for trial, (point, ours, epochs, theirs) in enumerate(rows, start=1):
        print(f"| {trial} | {point} | {ours:.4f} | {epochs} | {theirs:.4f} |")
    ours, theirs = (np.array(column) for column in list(zip(*rows, strict=True))[1::2])
    print(
        f"| mean (sd) | | {ours.mean():.4f} ({ours.std(ddof=len(rows) > 1):.4f}) | "
        f"| {theirs.mean():.4f} ({theirs.std(ddof=len(rows) > 1):.4f}) |"
    )
    print(
        f"\nMerged above the source in {(ours > source).sum()} of {len(rows)} trials, "
        f"LoRA in {(theirs > source).sum()}; merged above LoRA in {(ours > theirs).sum()}; alpha below .5 picked in "
        f"{sum(min(point) < 0.5 for point, *_ in rows)}.",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("runs/segment-merge"))
    parser.add_argument("--collections", nargs="+", default=list(COLLECTIONS)[:2], choices=list(COLLECTIONS))
    parser.add_argument("--steps", type=int, default=300, help="of language modelling")
    parser.add_argument("--rows", type=int, default=16, help="of 128 tokens in a step of language modelling")
    parser.add_argument("--trials", type=int, default=10)
    parser.add_argument("--few", type=int, default=50, help="queries of a low-data trial")
    parser.add_argument("--queries", type=int, default=100, help="train queries in all")
    parser.add_argument("--passages", type=int, default=400, help="of the pool")
    parser.add_argument("--negatives", type=int, default=5)
    parser.add_argument("--again", action="store_true", help="train the domain model again")
    arguments = parser.parse_args()
    if arguments.again:
        remove(arguments.out / f"domain-{arguments.steps}-{arguments.rows}")
    folder = domain_model(arguments.out, arguments.steps, arguments.rows)
    for name in arguments.collections:
        compare_on(name, folder, arguments)


if __name__ == "__main__":
    main()
