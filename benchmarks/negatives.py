"""Which hard negatives help: recipes/miniature.yaml under five conditions and several seeds, in one table.

    MEDLEY_DATA=/path/to/data python benchmarks/negatives.py --conditions none mined perturbed --out runs/negatives
    MEDLEY_DATA=/path/to/data python benchmarks/negatives.py --llm-url http://localhost:8000/v1 --llm-model my-model

The conditions are the recipe's `negatives.condition`: none | mined | generated | mixed | perturbed. Every pair brings
two negatives where so many were made, of one kind or one of each (mixed), so that conditions differ in kind and not in
number. Runs what is missing (each run resumes; `--finished` takes finished folders as they are), then prints for each
condition the merged model's nDCG@10 and the paired randomisation test against the reference condition, all seeds
together, Holm-corrected; p-values of single seeds stand in a second table. `generated` and `mixed` need an endpoint.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from miniature import RECIPE, pooled_comparison, result_of

from medley.pairs import iter_pairs
from medley.pipeline.proof import mean_score
from medley.recipe import load_recipe
from medley.recipe_data import CONDITIONS
from medley.statistics.family import holm

NEGATIVES = 2
Results = dict[tuple[str, int], dict[str, Any]]


def changes_for(condition: str, seed: int, llm: dict[str, Any] | None) -> list[str]:
    """The recipe's settings that differ from the file."""
    return [
        f"seed={seed}",
        "negatives.kinds=null",
        f"negatives.condition={condition}",
        f"negatives.mined.per_query={NEGATIVES}",
        f"negatives.generated.per_query={NEGATIVES}",
        f"train.negatives={NEGATIVES}",
        "evaluate.baselines=[]",
        *([f"llm={json.dumps(llm)}"] if llm else []),
    ]


def run_all(arguments: argparse.Namespace) -> Results:
    """Results by condition and seed."""
    llm = (
        {"base_url": arguments.llm_url, "model": arguments.llm_model, "concurrency": arguments.concurrency}
        if arguments.llm_url
        else None
    )
    results: Results = {}
    for seed in arguments.seeds:
        for condition in arguments.conditions:
            folder = arguments.out / f"negatives-{condition}-{seed}"
            changes = changes_for(condition, seed, llm)
            results[condition, seed] = result_of(folder, changes, finished=arguments.finished)
    return results


def negatives_a_pair(folder: Path, condition: str) -> float:
    """Negatives that a training pair of a finished run brings, on average: fewer than NEGATIVES where less was made."""
    stages = {"mined": "mine", "generated": "synthesize"}
    used = []
    for source in load_recipe(RECIPE).sources:
        columns = [
            [
                len(pair.negatives)
                for pair in iter_pairs(folder / "stages" / stages[kind] / source / "pairs.jsonl")
            ]
            for kind in CONDITIONS[condition]  # type: ignore[index]
        ]
        used += [min(NEGATIVES, sum(row)) for row in zip(*columns, strict=True)]
    return mean(used) if used else 0.0


def show(results: Results, arguments: argparse.Namespace) -> None:
    """Print the tables."""
    seeds, reference = arguments.seeds, arguments.reference
    groups = results[reference, seeds[0]]["groups"]
    rivals = [condition for condition in arguments.conditions if condition != reference]

    def merged(condition: str, seed: int) -> dict[str, Any]:
        variant: dict[str, Any] = results[condition, seed]["variants"]["merged"]
        return variant

    compared = {
        condition: pooled_comparison({s: (merged(condition, s), merged(reference, s)) for s in seeds})
        for condition in rivals
    }
    corrected = dict(zip(rivals, holm([compared[c].p_value for c in rivals]), strict=True))
    print(f"\n### Merged model, nDCG@10, seeds {', '.join(map(str, seeds))}\n")
    names = [*groups, "mean of all", "spread over seeds", "negatives a pair"]
    print(f"| condition | {' | '.join(names)} | minus {reference} | 95% interval | p | p (Holm) |")
    print("|---" + "|---:" * (len(names) + 1) + "|---|---:|---:|")
    for condition in arguments.conditions:
        by_group = [
            mean(merged(condition, s)["tasks"][task]["ndcg_at_10"] for s in seeds for task in tasks)
            for tasks in groups.values()
        ]
        means = [mean_score(merged(condition, s)) for s in seeds]
        folders = [arguments.out / f"negatives-{condition}-{s}" for s in seeds]
        brought = mean(negatives_a_pair(folder, condition) for folder in folders)
        cells = [f"{cell:.4f}" for cell in (*by_group, mean(means), stdev(means) if len(means) > 1 else 0.0)]
        if condition == reference:
            test = ["", "", "", ""]
        else:
            outcome = compared[condition]
            test = [
                f"{outcome.difference:+.4f}", f"{outcome.ci_low:+.4f} to {outcome.ci_high:+.4f}",
                f"{outcome.p_value:.4f}", f"{corrected[condition]:.4f}",
            ]  # fmt: skip
        print(f"| {condition} | {' | '.join([*cells, f'{brought:.2f}', *test])} |")
    print(f"\n### Each seed minus {reference}\n")
    print("| condition | " + " | ".join(f"seed {seed}" for seed in seeds) + " |")
    print("|---" + "|---" * len(seeds) + "|")
    for condition in rivals:
        outcomes = [pooled_comparison({s: (merged(condition, s), merged(reference, s))}) for s in seeds]
        cells = [f"{outcome.difference:+.4f} (p {outcome.p_value:.4f})" for outcome in outcomes]
        print(f"| {condition} | {' | '.join(cells)} |")


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("runs/negatives"))
    parser.add_argument("--conditions", nargs="+", choices=list(CONDITIONS), default=list(CONDITIONS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3], metavar="SEED")
    parser.add_argument("--reference", choices=list(CONDITIONS), default="mined")
    parser.add_argument("--llm-url")
    parser.add_argument("--llm-model")
    parser.add_argument("--concurrency", type=int, default=8)
    parser.add_argument("--finished", action="store_true")
    arguments = parser.parse_args()
    written = [condition for condition in ("generated", "mixed") if condition in arguments.conditions]
    if written and not (arguments.llm_url and arguments.llm_model):
        parser.error(
            f"{' and '.join(written)}: give --llm-url and --llm-model, or leave them out of --conditions"
        )
    if arguments.reference not in arguments.conditions:
        parser.error(f"--reference {arguments.reference} is not among the conditions")
    show(run_all(arguments), arguments)


if __name__ == "__main__":
    main()
