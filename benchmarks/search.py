"""How well the merge search searches: the surrogate against an exhaustive grid and against other strategies.

    MEDLEY_DATA=<folder> python benchmarks/search.py surrogate --runs runs/miniature [--seeds 1 2 3] [--cache DIR]
    python benchmarks/search.py speed
    MEDLEY_DATA=<folder> python benchmarks/search.py pool --runs runs/miniature
    MEDLEY_DATA=<folder> python benchmarks/search.py table --runs runs/miniature --out runs/search-table

`--runs` holds finished runs of recipes/miniature.yaml, miniature-plain-<seed>; their experts are read, nothing is
trained.

surrogate  Four experts (the recipe's first four), task arithmetic, four dev collections. All points of a grid, the
           uniform merge and the base are encoded (257), and 60 candidates drawn from the cube that the grid spans.
           Spearman: of the surrogate's to the real nDCG@10 over the 60, knowing the basis only (5 encodings), and
           knowing what the search has encoded when its budget is spent. Regret: the best real score after the budget,
           as a share of the best of all 257, for each strategy on the same grid; where a strategy draws, over
           `--repeats` seeds. `--cache` keeps encodings.
speed      10^4 grid points of four experts scored on 1,000 queries x 5,000 passages x 256 dimensions, made at random
           around topics; the first ten are also scored the long way.
pool       nDCG@10 in the pool against nDCG@10 on the whole corpus, for the base, the experts and random merges.
table      see search_table.py.
"""

from __future__ import annotations

import argparse
import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import search_table

from medley.collections import Passage, load_collection
from medley.encoder import Retriever, build_retriever
from medley.expert import Expert, read_expert
from medley.merge.concatenated import ConcatenatedAdapter
from medley.merge.hard import agreement, hard_pool, rank_correlation
from medley.merge.outcome import SearchResult
from medley.merge.pool import DevPool, PoolVectors, build_pool, embed_pool, score_vectors, unit
from medley.merge.search import search
from medley.merge.settings import SearchSettings
from medley.merge.space import SearchSpace
from medley.merge.surrogate import GridScorer, Surrogate
from medley.progress import progress
from medley.recipe import Recipe, load_recipe

RECIPE = Path(__file__).parent.parent / "recipes" / "miniature.yaml"
DEV = ("scifact", "covidqa_passages", "mqp", "xquad_en")
GRID = (0.0, 0.3, 0.6, 0.9)
RANDOM = 60


@dataclass(frozen=True)
class World:
    """One seed: its experts' names, pools, and a function from coefficients to the pools' vectors."""

    names: tuple[str, ...]
    pools: list[DevPool]
    embed: Callable[[np.ndarray], list[PoolVectors]]

    def score(self, weights_K: np.ndarray) -> float:
        return score_vectors(self.pools, self.embed(weights_K)).score


def open_experts(recipe: Recipe, runs: Path, seed: int) -> list[Expert]:
    stages = runs / f"miniature-plain-{seed}" / "stages" / "train"
    return [read_expert(stages / name / "adapter", name=name) for name in recipe.experts]


@contextmanager
def world(recipe: Recipe, arguments: argparse.Namespace, seed: int) -> Iterator[World]:
    experts = open_experts(recipe, arguments.runs, seed)[: arguments.experts]
    retriever = build_retriever(recipe.base, recipe.retriever)
    pools = [
        build_pool(
            load_collection(spec, keep_empty=True),
            max_passages=arguments.passages,
            max_queries=arguments.queries,
            seed=seed,
            instruction=recipe.instruction_for(spec),
        )
        for spec in recipe.merge.dev
        if any(f"/{name}:" in spec for name in DEV)
    ]
    with ConcatenatedAdapter(retriever, experts) as adapter:

        def encode(weights_K: np.ndarray) -> list[PoolVectors]:
            adapter.set_coefficients(weights_K.reshape(-1, 1))
            return [embed_pool(retriever, pool) for pool in pools]

        cache = arguments.cache / str(seed) if arguments.cache else None
        yield World(
            tuple(e.name for e in experts), pools, encode if cache is None else cached(encode, pools, cache)
        )


def cached(
    encode: Callable[[np.ndarray], list[PoolVectors]], pools: Sequence[DevPool], folder: Path
) -> Callable[[np.ndarray], list[PoolVectors]]:
    """The same, remembering vectors in files."""
    folder.mkdir(parents=True, exist_ok=True)

    def embed(weights_K: np.ndarray) -> list[PoolVectors]:
        flat = np.round(weights_K, 9).ravel() + 0.0
        path = folder / f"{hashlib.sha256(flat.astype('<f8').tobytes()).hexdigest()[:16]}.npy"
        if not path.is_file():
            parts = [side for v in encode(flat) for side in (v.queries, v.passages)]
            with path.with_suffix(".writing").open("wb") as stream:
                np.save(stream, np.concatenate(parts))
            path.with_suffix(".writing").rename(path)
        sizes = [size for pool in pools for size in (len(pool.queries), len(pool.passages))]
        sides = np.split(np.load(path), np.cumsum(sizes)[:-1])
        return [PoolVectors(*pair) for pair in zip(sides[::2], sides[1::2], strict=True)]

    return embed


def surrogate(arguments: argparse.Namespace) -> None:
    recipe = load_recipe(RECIPE)
    budget = arguments.encodings
    rows, correlations = [], []
    for seed in arguments.seeds:
        with world(recipe, arguments, seed) as here:
            space = SearchSpace(here.names, GRID, method="task_arithmetic")
            drawn = np.random.default_rng(1000 + seed).uniform(
                min(GRID), max(GRID), (RANDOM, len(here.names))
            )
            with progress(f"seed {seed}: random candidates", RANDOM) as advance:
                real = []
                for weights_K in drawn:
                    real.append(here.score(weights_K))
                    advance(1)
            found = run(here, space, "surrogate", budget, seed)
            basis, grown = surrogates(here, found)
            correlations.append(
                (seed, rank_correlation(basis.score(drawn)[0], real), rank_correlation(grown.score(drawn)[0], real),
                 np.std(real), sum(len(p.queries) for p in here.pools), sum(len(p.passages) for p in here.pools))
            )  # fmt: skip
            if arguments.correlation_only:
                continue
            exhaustive = exhaustive_scores(here, space)
            base, uniform = here.score(np.zeros(len(here.names))), here.score(space.uniform())
            best = max(exhaustive)
            rows.append((seed, "surrogate", [found.best.score], best, uniform, base, found.encodings))
            for strategy in ("random", "tpe", "cmaes"):
                scores = [
                    run(here, space, strategy, budget, repeat).best.score
                    for repeat in range(arguments.repeats)
                ]
                rows.append((seed, strategy, scores, best, uniform, base, budget))
    print(f"\n### Spearman over {RANDOM} random candidates\n")
    print("| seed | basis only | after the search | spread (sd) of real nDCG@10 | queries | passages |")
    print("|---|---:|---:|---:|---:|---:|")
    for seed, basis_rho, grown_rho, spread, queries, passages in correlations:
        print(f"| {seed} | {basis_rho:.3f} | {grown_rho:.3f} | {spread:.4f} | {queries} | {passages} |")
    print(
        f"\n### Best after {budget} encodings, of {len(GRID) ** len(here.names) + 1} encoded exhaustively\n"
    )
    print(
        "| seed | base | uniform | best of all | strategy | encodings | best found | share of the best | lowest | "
        "share of the gain over uniform | runs at .99 |"
    )
    print("|---|---:|---:|---:|---|---:|---:|---:|---:|---:|---:|")
    for seed, strategy, scores, best, uniform, base, spent in rows:
        shares = np.array(scores) / best
        gain = (np.mean(scores) - uniform) / (best - uniform) if best > uniform else 1.0
        print(
            f"| {seed} | {base:.4f} | {uniform:.4f} | {best:.4f} | {strategy} | {spent} | {np.mean(scores):.4f} "
            f"| {shares.mean():.4f} | {shares.min():.4f} | {gain:.2f} | {(shares >= 0.99).sum()}/{len(shares)} |"
        )


def exhaustive_scores(here: World, space: SearchSpace) -> list[float]:
    """The real score of the base, the uniform merge and every point of the grid."""
    points = [np.zeros(space.shape), space.uniform(), *space.points()]
    scores = []
    with progress("exhaustive grid", len(points)) as advance:
        for weights_KS in points:
            scores.append(here.score(weights_KS))
            advance(1)
    return scores


def run(here: World, space: SearchSpace, strategy: str, budget: int, seed: int) -> SearchResult:
    settings = SearchSettings.model_validate(
        {"strategy": strategy, "encodings": budget, "seed": seed, "continuous": False, "patience": budget}
    )
    return search(here.embed, here.pools, space, settings)


def surrogates(here: World, found: SearchResult) -> tuple[GridScorer, GridScorer]:
    """The surrogate that knows the basis, and the one that knows all the search has encoded."""
    count = len(here.names)
    everything = {pool.name: np.ones(len(pool.queries), dtype=bool) for pool in here.pools}
    start = Surrogate.of_basis(here.pools, [here.embed(place) for place in (np.zeros(count), *np.eye(count))])
    basis, grown = GridScorer(start, everything), GridScorer(start, everything)
    for candidate in found.candidates:
        if candidate.real:
            grown.add(candidate.weights.ravel(), here.embed(candidate.weights))
    return basis, grown


def speed(arguments: argparse.Namespace) -> None:
    queries, passages, dimensions, experts, points = 1000, 5000, 256, 4, 10_000
    rng = np.random.default_rng(0)
    ids = [f"{number:05}" for number in range(passages)]
    relevant = rng.integers(passages, size=queries)
    judged = {f"q{number:05}": {ids[column]: 1} for number, column in enumerate(relevant)}
    pool = DevPool("random", tuple(judged), tuple(judged), tuple(Passage(i, i) for i in ids), judged)

    def near(vectors: np.ndarray, noise: float) -> np.ndarray:
        return unit((vectors + noise * rng.normal(size=vectors.shape)).astype(np.float32))

    topics = rng.normal(size=(50, dimensions)) / np.sqrt(dimensions)
    passages_DH = near(topics[rng.integers(50, size=passages)], 0.07)
    base = PoolVectors(near(passages_DH[relevant], 0.1), passages_DH)
    alone = [[PoolVectors(near(base.queries, 0.02), near(base.passages, 0.02))] for _ in range(experts)]
    places = rng.permutation(np.array(list(np.ndindex(*(10,) * experts))) / 10)[:points]
    started, cpu = time.perf_counter(), time.process_time()
    start = Surrogate.of_basis([pool], [[base], *alone])
    scorer = GridScorer(start, {pool.name: np.ones(queries, dtype=bool)})
    prepared = time.perf_counter() - started
    scores, _ = scorer.score(places)
    seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
    long_way = [start.score(place).score for place in places[:10]]
    print(f"{points} candidates, {queries} queries x {passages} passages x {dimensions} dimensions:")
    print(
        f"{seconds:.1f} s wall-clock, {cpu:.1f} s of processor, of which {prepared:.1f} s wall-clock preparing"
    )
    print(f"nDCG@10 from {scores.min():.4f} to {scores.max():.4f}")
    print(f"largest difference to scoring ten of them in full: {np.abs(scores[:10] - long_way).max():.2e}")


def pool(arguments: argparse.Namespace) -> None:
    recipe = load_recipe(RECIPE)
    print(
        "| collection | seed | corpus | pool | rankers | models | Spearman | nDCG@10 in the pool | on the corpus |"
    )
    print("|---|---|---:|---:|---|---:|---:|---|---|")
    for seed in arguments.seeds:
        experts = open_experts(recipe, arguments.runs, seed)
        retriever = build_retriever(recipe.base, recipe.retriever)
        rng = np.random.default_rng(seed)
        merges = [
            np.zeros(len(experts)),
            *np.eye(len(experts)),
            *rng.uniform(0, 1, (arguments.merges, len(experts))),
        ]
        with ConcatenatedAdapter(retriever, experts) as adapter:

            def each(
                coefficients: Sequence[np.ndarray], adapter: ConcatenatedAdapter = adapter
            ) -> Iterator[Retriever]:
                for coefficients_K in coefficients:
                    adapter.set_coefficients(coefficients_K.reshape(-1, 1))
                    yield retriever  # noqa: B023 (used before the next one is opened)

            for spec in recipe.merge.dev:
                if not any(f"/{name}:" in spec for name in arguments.collections):
                    continue
                collection = load_collection(spec, keep_empty=True)
                sizes = {"max_passages": arguments.passages, "max_queries": arguments.queries, "seed": seed}
                instruction = recipe.instruction_for(spec)
                for rankers, models in (("bm25", []), ("bm25, base, experts", merges[: len(experts) + 1])):
                    chosen = hard_pool(collection, each(models), instruction=instruction, **sizes)
                    pairs = np.array(agreement(collection, chosen, each(merges)))
                    spans = " | ".join(f"{c.min():.3f} to {c.max():.3f}" for c in pairs.T)
                    print(
                        f"| {collection.name} | {seed} | {len(collection.corpus)} | {len(chosen.passages)} | {rankers} "
                        f"| {len(pairs)} | {rank_correlation(*pairs.T):.3f} | {spans} |", flush=True,
                    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    modes = parser.add_subparsers(required=True, metavar="MODE")
    for mode in (surrogate, speed, pool):
        own = modes.add_parser(mode.__name__)
        own.set_defaults(mode=mode)
        if mode is not speed:
            own.add_argument("--runs", type=Path, required=True)
            own.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
            own.add_argument("--queries", type=int, default=40, help="of a dev collection")
            own.add_argument("--passages", type=int, default=70, help="of a dev collection")
        if mode is surrogate:
            own.add_argument("--experts", type=int, default=4)
            own.add_argument("--encodings", type=int, default=12)
            own.add_argument("--repeats", type=int, default=20)
            own.add_argument("--cache", type=Path)
            own.add_argument("--correlation-only", action="store_true", help="no exhaustive grid")
        if mode is pool:
            own.add_argument("--merges", type=int, default=10)
            own.add_argument("--collections", nargs="+", default=["covidqa_passages", "mqp"])
    table = modes.add_parser("table")
    search_table.add_arguments(table)
    table.set_defaults(mode=search_table.table)
    arguments = parser.parse_args()
    arguments.mode(arguments)


if __name__ == "__main__":
    main()
