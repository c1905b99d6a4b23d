"""The miniature experiment: recipes/miniature.yaml for several seeds, plain and with generated negatives.

    MEDLEY_DATA=/path/to/data python benchmarks/miniature.py --out runs/miniature > docs/results/miniature.tables.md

Runs what is missing (each run resumes; `--finished` takes finished folders as they are), then prints the tables:
nDCG@10 of each variant on the seven tests, and the paired randomisation test of the merged model against the best
single expert, per seed and pooled over seeds. BM25 and the base depend on no seed and are scored once. `--all-data N`
trains the all-data model for the first N runs only: it costs as much as all experts together. Asking for more later
adds to finished runs.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medley.pipeline import run_recipe
from medley.pipeline.proof import mean_score
from medley.recipe import load_recipe
from medley.statistics.compare import Comparison, compare
from medley.statistics.family import per_query

RECIPE = Path(__file__).parent.parent / "recipes" / "miniature.yaml"
CONDITIONS = {"plain": ["judged", "mined"], "generated": ["judged", "mined", "generated"]}


def run_all(
    out: Path, asked: dict[str, list[int]], *, all_data: int, finished: bool
) -> dict[tuple[str, int], dict[str, Any]]:
    """Results by condition and seed."""
    results: dict[tuple[str, int], dict[str, Any]] = {}
    for condition, seeds in asked.items():
        for seed in seeds:
            baselines = ["experts"] if results else ["bm25", "base", "experts"]
            if len(results) < all_data:
                baselines.append("all")
            changes = [
                f"seed={seed}",
                f"negatives.kinds={json.dumps(CONDITIONS[condition])}",
                f"evaluate.baselines={json.dumps(baselines)}",
            ]
            folder = out / f"miniature-{condition}-{seed}"
            results[condition, seed] = result_of(folder, changes, finished=finished)
    return results


def result_of(folder: Path, changes: list[str], *, finished: bool) -> dict[str, Any]:
    """The results of the recipe with some settings changed; run, or taken as they are where they are finished."""
    there = folder / "results.json"
    if not (finished and there.is_file()):
        run(folder, changes)
    found: dict[str, Any] = json.loads(there.read_text(encoding="utf-8"))
    return found


def run(folder: Path, changes: list[str], *, until: str | None = None) -> None:
    """Run the recipe with some settings changed; steps that another run beside it has made are not made again."""
    print(f"== {folder.name}", file=sys.stderr, flush=True)
    others = [path.parent for path in sorted(folder.parent.glob("*/manifest.json")) if path.parent != folder]
    run_recipe(load_recipe(RECIPE, [f"name={folder.name}", *changes]), folder, until=until, reuse=others)


def best_expert(variants: dict[str, Any]) -> str:
    """The single expert with the highest mean test score: the hardest one to beat, known only afterwards."""
    return max(
        (name for name in variants if name.startswith("expert:")), key=lambda n: mean_score(variants[n])
    )


def pooled(results: dict[int, dict[str, Any]], other: str | None) -> Comparison:
    """Merged against another variant (None: each seed's best expert), every query of every seed one pair."""
    every = {seed: result["variants"] for seed, result in results.items()}
    return pooled_comparison(
        {seed: (own["merged"], own[other or best_expert(own)]) for seed, own in every.items()}
    )


def pooled_comparison(variants: Mapping[int, tuple[dict[str, Any], dict[str, Any]]]) -> Comparison:
    """The first of two variants against the second over seeds: every query of every seed is one pair."""
    ours: dict[str, dict[str, float]] = {}
    theirs: dict[str, dict[str, float]] = {}
    for seed, (own, rival) in variants.items():
        rival_scores = per_query(rival)
        for task, scores in per_query(own).items():
            for query, score in scores.items():
                ours.setdefault(task, {})[f"{seed}/{query}"] = score
                theirs.setdefault(task, {})[f"{seed}/{query}"] = rival_scores[task][query]
    return compare(ours, theirs, seed=13)


def show(results: dict[tuple[str, int], dict[str, Any]], asked: dict[str, list[int]]) -> None:
    """Print the tables."""
    everything = [item for result in results.values() for item in result["variants"].items()]
    shared = {name: variant for name, variant in everything if name in ("base", "bm25")}
    tasks = list(everything[0][1]["tasks"])
    for condition, seeds in asked.items():
        print(f"\n### {condition}: nDCG@10\n")
        print("| seed | model | " + " | ".join(tasks) + " | medical | general | mean of seven |")
        print("|---|---" + "|---:" * (len(tasks) + 3) + "|")
        for seed in seeds:
            result = results[condition, seed]
            groups = result["groups"]
            variants = {**result["variants"], **shared}
            for name in variants:
                scores = {task: variants[name]["tasks"][task]["ndcg_at_10"] for task in tasks}
                means = [sum(scores[t] for t in group) / len(group) for group in groups.values()]
                cells = [*scores.values(), *means, sum(scores.values()) / len(scores)]
                print(f"| {seed} | {name} | " + " | ".join(f"{cell:.3f}" for cell in cells) + " |")
        print(f"\n### {condition}: merged against\n")
        print("| rival | seed | difference | 95% interval | p | wins/ties/losses |")
        print("|---|---|---:|---|---:|---|")
        own = {seed: results[condition, seed] for seed in seeds}
        for rival in (None, "all"):
            have = [seed for seed in seeds if rival is None or rival in own[seed]["variants"]]
            for chosen in [[seed] for seed in have] + ([have] if len(have) > 1 else []):
                outcome = pooled({seed: own[seed] for seed in chosen}, rival)
                names = {rival or best_expert(own[seed]["variants"]) for seed in chosen}
                print(
                    f"| {', '.join(sorted(names))} | {', '.join(map(str, chosen))} | {outcome.difference:+.4f} "
                    f"| {outcome.ci_low:+.4f} to {outcome.ci_high:+.4f} | {outcome.p_value:.4f} "
                    f"| {outcome.wins}/{outcome.ties}/{outcome.losses} |"
                )
        print(f"\n### {condition}: coefficients chosen on dev\n")
        for seed in seeds:
            search = results[condition, seed]["search"]
            print(f"- seed {seed}: {search['coefficients']}, dev {search['score']:.4f}")


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("runs/miniature"))
    parser.add_argument("--plain", type=int, nargs="*", default=[1, 2, 3], metavar="SEED")
    parser.add_argument("--generated", type=int, nargs="*", default=[1, 2, 3], metavar="SEED")
    parser.add_argument("--all-data", type=int, default=99, metavar="N")
    parser.add_argument("--finished", action="store_true")
    arguments = parser.parse_args()
    asked = {"plain": arguments.plain, "generated": arguments.generated}
    asked = {condition: seeds for condition, seeds in asked.items() if seeds}
    results = run_all(arguments.out, asked, all_data=arguments.all_data, finished=arguments.finished)
    for (condition, seed), result in results.items():
        stage = (
            arguments.out / f"miniature-{condition}-{seed}" / "stages" / "merge" / "search" / "search.json"
        )
        result["search"] = json.loads(stage.read_text(encoding="utf-8"))["best"]
    show(results, asked)


if __name__ == "__main__":
    main()
