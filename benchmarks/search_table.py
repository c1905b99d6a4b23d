"""The table of merges: strategies x segments x methods on the miniature's tests, over seeds (`search.py table`).

Each cell searches on the recipe's dev collections, half of whose queries are held out to choose among the best, and is
then tested as runs test their models: folded in float32, cast, every test collection whole. Budget: the surrogate's
basis (experts x segments + 1) and six more encodings, the same for every strategy but `grid`, which has `--grid` and
is left out where two values an expert and segment are too many for it. `surrogate-1se` takes the surrogate's search
and chooses by the one-standard-error rule. `learned` needs sums of deltas. `slerp+breadcrumbs` first moves each expert
toward the base by the ratio (0, .25 or .5) that is best for it alone on dev, then merges by breadcrumbs.
Differences are pooled over seeds (every query of every seed one pair): to the uniform merge of the same method with one
segment, and to each seed's best expert, chosen in hindsight, which favours it. p: paired randomisation, and Holm's
correction over the whole table. Cells are kept in `--out` and not made again; tests of equal models are shared.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from miniature import best_expert, pooled_comparison

from medley.backbone import backbone
from medley.collections import Collection, load_collection
from medley.encoder import Retriever, build_retriever
from medley.evaluate.scores import evaluate_retriever
from medley.expert import Expert, read_expert
from medley.files import write_json
from medley.fingerprint import fingerprint
from medley.merge.candidates import candidates
from medley.merge.coefficients import Layout, layer_cuts, weights_mapping
from medley.merge.concatenated import dense_merge
from medley.merge.fullweights import merge_weights
from medley.merge.learned import Learnable
from medley.merge.pool import DevPool, PoolVectors, build_pool, embed_pool, score_vectors
from medley.merge.search import search
from medley.merge.settings import MergeParameters, SearchSettings
from medley.merge.space import SearchSpace
from medley.progress import say
from medley.recipe import Recipe, load_recipe
from medley.statistics.family import holm

RECIPE = Path(__file__).parent.parent / "recipes" / "miniature.yaml"
METHODS = ("linear", "task_arithmetic", "ties", "dare_ties", "slerp+breadcrumbs")
STRATEGIES = ("uniform", "grid", "tpe", "cmaes", "surrogate", "surrogate-1se", "learned")
PARAMETERS = {
    "ties": {"density": 0.5},
    "dare_ties": {"density": 0.5},
    "breadcrumbs": {"density": 0.9, "gamma": 0.01},
}
SHRINK = (0.0, 0.25, 0.5)


@dataclass(frozen=True)
class Seed:
    """One seed's experts, dev pools and finished run."""

    number: int
    recipe: Recipe
    experts: tuple[Expert, ...]
    pools: list[DevPool]
    variants: dict[str, Any]

    def retriever(self, dtype: str | None = None) -> Retriever:
        settings = self.recipe.retriever.model_copy(update={"dtype": dtype} if dtype else {})
        return build_retriever(self.recipe.base, settings)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("runs/search-table"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--methods", nargs="+", default=METHODS, choices=METHODS)
    parser.add_argument("--segments", nargs="+", default=["1", "2", "layers"])
    parser.add_argument("--strategies", nargs="+", default=STRATEGIES, choices=STRATEGIES)
    parser.add_argument("--tests", nargs="+", help="names of test collections; default all of the recipe")
    parser.add_argument("--dev", nargs="+", help="names of dev collections; default all of the recipe")
    parser.add_argument("--queries", type=int, default=100, help="of a dev collection")
    parser.add_argument("--passages", type=int, default=150, help="of a dev collection")
    parser.add_argument("--verifications", type=int, default=6, help="encodings beyond the basis")
    parser.add_argument("--grid", type=int, default=256, help="encodings that a grid may take")
    parser.add_argument("--confirm", type=float, default=0.5)


def table(arguments: argparse.Namespace) -> None:
    recipe = load_recipe(RECIPE)
    tests = [
        load_collection(spec, keep_empty=True)
        for spec in recipe.evaluate.tasks
        if not arguments.tests or spec.split("/")[-1].split(":")[0] in arguments.tests
    ]
    seeds = [open_seed(recipe, arguments, number) for number in arguments.seeds]
    cells: dict[tuple[str, str, str], dict[int, dict[str, Any]]] = {}
    for seed in seeds:
        for method in arguments.methods:
            for segments in arguments.segments:
                for strategy in arguments.strategies:
                    cell = made(seed, method, segments, strategy, tests, arguments)
                    if cell is not None:
                        cells.setdefault((method, segments, strategy), {})[seed.number] = cell
    show(cells, seeds, [test.name for test in tests])


def open_seed(recipe: Recipe, arguments: argparse.Namespace, number: int) -> Seed:
    run = arguments.runs / f"miniature-plain-{number}"
    experts = [read_expert(run / "stages" / "train" / n / "adapter", name=n) for n in recipe.experts]
    pools = [
        build_pool(
            load_collection(spec, keep_empty=True),
            max_passages=arguments.passages,
            max_queries=arguments.queries,
            seed=number,
            instruction=recipe.instruction_for(spec),
        )
        for spec in recipe.merge.dev
        if not arguments.dev or spec.split("/")[-1].split(":")[0] in arguments.dev
    ]
    variants = json.loads((run / "results.json").read_text(encoding="utf-8"))["variants"]
    return Seed(number, recipe, tuple(experts), pools, variants)


def made(
    seed: Seed,
    method: str,
    segments: str,
    strategy: str,
    tests: Sequence[Collection],
    arguments: argparse.Namespace,
) -> dict[str, Any] | None:
    """A cell from its file, or made now; None where the strategy does not apply."""
    applies = strategy != "learned" or method in ("linear", "task_arithmetic")
    levels = grid_levels(seed, segments, arguments.grid)
    if not applies or (strategy == "uniform" and segments != "1") or (strategy == "grid" and levels < 2):
        return None
    pools = [pool.identity for pool in seed.pools]
    asked = [
        seed.number,
        method,
        segments,
        strategy,
        pools,
        arguments.verifications,
        arguments.grid,
        arguments.confirm,
    ]
    path = arguments.out / f"{seed.number}-{method}-{segments}-{strategy}-{fingerprint(asked)[:6]}.json"
    if not path.is_file():
        say(f"== seed {seed.number}, {method}, {segments} segments, {strategy}")
        started = time.perf_counter()
        found = chosen(seed, method, segments, strategy, levels, arguments)
        write_json(path, {**found, "seconds": time.perf_counter() - started})
    cell: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return {**cell, "tasks": tested(seed, method, segments, cell, tests, arguments.out / "tests")}


def grid_levels(seed: Seed, segments: str, budget: int) -> int:
    """The most values an expert and segment for which a grid fits into the budget."""
    count = len(seed.experts) * layout_of(seed.retriever(), segments).segment_count
    return next(levels for levels in range(6, -1, -1) if levels**count <= budget + 1)


def layout_of(retriever: Retriever, segments: str) -> Layout:
    parts = "layers" if segments == "layers" else int(segments)
    return Layout(layer_cuts(parts, int(backbone(retriever).config.num_hidden_layers)))  # type: ignore[arg-type]


def parameters_of(method: str) -> MergeParameters:
    return MergeParameters.model_validate(PARAMETERS.get(method, {}))


def chosen(
    seed: Seed, method: str, segments: str, strategy: str, levels: int, arguments: argparse.Namespace
) -> dict[str, Any]:
    """The weights that a search ends with, with its dev scores."""
    retriever = seed.retriever()
    layout = layout_of(retriever, segments)
    experts, kernel, ratios = seed.experts, method, None
    if method == "slerp+breadcrumbs":
        kernel, ratios = "breadcrumbs", shrink_ratios(seed, retriever)
        experts = tuple(replace(e, shrink=ratio) for e, ratio in zip(experts, ratios, strict=True))
    values = 6 if strategy != "grid" else levels
    space = SearchSpace(
        tuple(e.name for e in experts),
        tuple(np.linspace(0, 1, values).round(6).tolist()),
        layout.segment_count,
        kernel,
    )
    rule = {"choose": "simplest" if strategy == "surrogate-1se" else "best", "confirm": arguments.confirm}
    basis = len(experts) * layout.segment_count + 1
    budget = arguments.grid if strategy == "grid" else basis + arguments.verifications
    if strategy == "uniform":
        rule, budget = rule | {"strategy": "random"}, 1
    else:
        rule["strategy"] = strategy.removesuffix("-1se")
    settings = SearchSettings.model_validate(
        {**rule, "encodings": budget, "seed": seed.number, "patience": budget}
    )
    with candidates(
        retriever, experts, method=kernel, parameters=parameters_of(kernel), layout=layout
    ) as apply:

        def embed(effective_KS: np.ndarray) -> list[PoolVectors]:
            merged = apply(effective_KS)
            return [embed_pool(merged, pool) for pool in seed.pools]

        learnable = Learnable(retriever, experts, layout) if strategy == "learned" else None
        result = search(embed, seed.pools, space, settings, learnable=learnable)
    best = result.best
    return {
        "weights": best.weights.tolist(), "effective": space.effective(best.weights).tolist(), "shrink": ratios,
        "coefficients": weights_mapping(best.weights, space.names), "encodings": result.encodings,
        "search": best.score, "confirm": best.confirm.score if best.confirm else None,
    }  # fmt: skip


def shrink_ratios(seed: Seed, retriever: Retriever) -> list[float]:
    """For each expert how far toward the base it does best alone on dev."""
    ratios = []
    for expert in seed.experts:
        scores = []
        for ratio in SHRINK:
            moved = replace(expert, shrink=ratio)
            with candidates(
                retriever,
                [moved],
                method="task_arithmetic",
                parameters=MergeParameters(seed=13),  # type: ignore[call-arg]
            ) as apply:
                merged = apply(np.ones((1, 1)))
                scores.append(
                    score_vectors(seed.pools, [embed_pool(merged, pool) for pool in seed.pools]).score
                )
        ratios.append(SHRINK[int(np.argmax(scores))])
    return ratios


def tested(
    seed: Seed, method: str, segments: str, cell: dict[str, Any], tests: Sequence[Collection], folder: Path
) -> dict[str, Any]:
    """Scores of the cell's model on each test, by name; made where no equal model was tested."""
    kernel = "breadcrumbs" if method == "slerp+breadcrumbs" else method
    model = fingerprint([seed.number, kernel, cell["shrink"], cell["effective"]])
    tasks, missing = {}, []
    for test in tests:
        path = folder / f"{model}-{test.name}.json"
        if path.is_file():
            tasks[test.name] = json.loads(path.read_text(encoding="utf-8"))
        else:
            missing.append(test)
    if missing:
        retriever = seed.retriever("float32")
        experts = seed.experts
        if cell["shrink"]:
            experts = tuple(
                replace(e, shrink=ratio) for e, ratio in zip(experts, cell["shrink"], strict=True)
            )
        instructions = {
            test.name: text
            for test in tests
            if (text := next((seed.recipe.instruction_for(s) for s in seed.recipe.evaluate.tasks
                              if s.split("/")[-1].split(":")[0] == test.name), None))
        }  # fmt: skip
        fold_candidate(
            retriever, experts, kernel, np.array(cell["effective"]), layout_of(retriever, segments)
        )
        backbone(retriever).to(getattr(torch, seed.recipe.retriever.dtype))
        scores = evaluate_retriever(retriever, missing, instructions=instructions)
        for name, score in scores.items():
            tasks[name] = score.as_json()
            write_json(folder / f"{model}-{name}.json", tasks[name])
    return {test.name: tasks[test.name] for test in tests}


def fold_candidate(
    retriever: Retriever, experts: Sequence[Expert], method: str, effective_KS: np.ndarray, layout: Layout
) -> None:
    """Merge into the retriever's own weights; changes the retriever."""
    if method in ("linear", "task_arithmetic"):
        dense_merge(retriever, experts, effective_KS, layout=layout)
    else:
        merge_weights(
            retriever, experts, effective_KS, method=method, parameters=parameters_of(method), layout=layout
        )


def show(
    cells: dict[tuple[str, str, str], dict[int, dict[str, Any]]], seeds: Sequence[Seed], tests: Sequence[str]
) -> None:
    def restricted(variant: dict[str, Any]) -> dict[str, Any]:
        return {"tasks": {name: variant["tasks"][name] for name in tests}}

    experts = {
        seed.number: {n: restricted(v) for n, v in seed.variants.items() if n.startswith("expert:")}
        for seed in seeds
    }
    best = {number: own[best_expert(own)] for number, own in experts.items()}
    rows = []
    for (method, segments, strategy), by_seed in cells.items():
        uniform = cells.get((method, "1", "uniform"), {})
        rivals = [{n: uniform[n] for n in by_seed if n in uniform}, {n: best[n] for n in by_seed}]
        comparisons = [
            pooled_comparison({n: (by_seed[n], rival[n]) for n in by_seed})
            if len(rival) == len(by_seed)
            else None
            for rival in rivals
        ]
        rows.append((method, segments, strategy, by_seed, comparisons))
    tested_rows = [c for *_, pair in rows for c in pair if c is not None]
    corrected = iter(holm([c.p_value for c in tested_rows]))
    print(
        f"\nTests: {', '.join(tests)}. Best experts: "
        + ", ".join(f"{n} {best_expert(e)}" for n, e in experts.items())
    )
    print(
        "\n| method | segments | strategy | encodings | dev, search half | dev, held-out half | test mean | by seed "
        "| against uniform | p (Holm) | against the best expert | p (Holm) |"
    )
    print("|---|---|---|---:|---:|---:|---:|---|---:|---|---:|---|")
    for method, segments, strategy, by_seed, comparisons in rows:
        means = [np.mean([t["ndcg_at_10"] for t in cell["tasks"].values()]) for cell in by_seed.values()]
        dev = [np.mean([cell["search"] for cell in by_seed.values()])]
        held_out = [cell["confirm"] for cell in by_seed.values() if cell["confirm"] is not None]
        dev.append(np.mean(held_out) if held_out else float("nan"))
        shown = []
        for comparison in comparisons:
            if comparison is None:
                shown.append("– | –")
            else:
                shown.append(
                    f"{comparison.difference:+.4f} | {comparison.p_value:.4f} ({next(corrected):.3f})"
                )
        encodings = max(cell["encodings"] for cell in by_seed.values())
        print(
            f"| {method} | {segments} | {strategy} | {encodings} | {dev[0]:.4f} | {dev[1]:.4f} | {np.mean(means):.4f} "
            f"| {', '.join(f'{m:.4f}' for m in means)} | {shown[0]} | {shown[1]} |"
        )
