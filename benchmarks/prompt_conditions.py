"""What helps, FT, SHN, PO or SHN+PO: recipes/miniature.yaml under the paper's four conditions and several seeds.

    MEDLEY_DATA=/path/to/data python benchmarks/prompt_conditions.py --out runs/conditions > conditions.md

The recipe's `condition` decides for all experts: FT trains with judged and mined negatives; SHN with generated ones
before them (perturbed positives where no endpoint is named); PO under the instruction that `--method` finds for each
expert on its dev collections; SHN+PO both. Every pair brings the same number of negatives. Tests have one fixed
instruction each, the same for every model, so PO is judged by what it did to training. Runs what is missing (each run
resumes; `--finished` takes finished folders as they are; a folder is named by condition, method and seed), then prints
for the merged model and for every expert nDCG@10 and the paired randomisation test against FT, all seeds together,
Holm-corrected over the table; and what was chosen for each expert, with its own proof on dev. Where PO leaves every
instruction as it was, its experts are those without PO bit for bit, so they are not trained a second time.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from miniature import RECIPE, pooled_comparison, result_of, run

from medley.pipeline.proof import mean_score
from medley.recipe import load_recipe
from medley.recipe_data import STM_CONDITIONS
from medley.statistics.family import holm

REFERENCE = "FT"
NEGATIVES = 2
Results = dict[tuple[str, int], dict[str, Any]]


def folder_of(arguments: argparse.Namespace, condition: str, seed: int) -> Path:
    """The run folder of one condition and seed."""
    method = f"-{arguments.method}" if STM_CONDITIONS[condition].prompts else ""  # type: ignore[index]
    out: Path = arguments.out
    return out / f"{condition.lower().replace('+', '-')}{method}-{seed}"


def changes_for(arguments: argparse.Namespace, condition: str, seed: int) -> list[str]:
    """The recipe's settings that differ from the file."""
    llm = {"base_url": arguments.llm_url, "model": arguments.llm_model}
    own = load_recipe(RECIPE).experts
    return [
        f"seed={seed}",
        "negatives.kinds=null",
        f"condition={condition}",
        f"prompts.method={arguments.method}",
        *([f"prompts.queries={arguments.queries}"] if arguments.queries else []),
        *(f"experts.{name}.dev={json.dumps(dev)}" for name, dev in dev_of(own).items()),
        f"negatives.mined.per_query={NEGATIVES}",
        f"negatives.generated.per_query={NEGATIVES}",
        f"train.negatives={NEGATIVES}",
        'evaluate.baselines=["experts"]',
        *([f"llm={json.dumps(llm)}"] if arguments.llm_url else []),
        *arguments.set,
    ]


def dev_of(experts: Any) -> dict[str, list[str]]:
    """The dev collections of each expert's own task: those whose name its source has; none said for the others."""
    data = "$MEDLEY_DATA/collections"
    dev = {
        "claims": [f"{data}/scifact:train[60%:]"],
        "covid": [f"{data}/covidqa_passages:dev"],
        "similar": [f"{data}/mqp:dev"],
        "answers": [f"{data}/mediqa2019_qa:dev"],
    }
    return {name: specs for name, specs in dev.items() if name in experts}


def show(results: Results, arguments: argparse.Namespace) -> None:
    """Print the tables."""
    seeds, conditions = arguments.seeds, arguments.conditions
    models = list(results[conditions[0], seeds[0]]["variants"])
    twins = {
        condition: other
        for position, condition in enumerate(conditions)
        for other in conditions[:position]
        if all(results[condition, seed] is results[other, seed] for seed in seeds)
    }
    rivals = [condition for condition in conditions if condition != REFERENCE and condition not in twins]

    def of(condition: str, seed: int, model: str) -> dict[str, Any]:
        variant: dict[str, Any] = results[condition, seed]["variants"][model]
        return variant

    compared = {
        (model, condition): pooled_comparison(
            {s: (of(condition, s, model), of(REFERENCE, s, model)) for s in seeds}
        )
        for model in models
        for condition in rivals
    }
    corrected = dict(zip(compared, holm([c.p_value for c in compared.values()]), strict=True))
    print(f"\n### Mean nDCG@10 of all tests, seeds {', '.join(map(str, seeds))}\n")
    print(
        f"| model | condition | mean | spread over seeds | minus {REFERENCE} | 95% interval | p | p (Holm) |"
    )
    print("|---|---|---:|---:|---:|---|---:|---:|")
    for model in models:
        for condition in conditions:
            means = [mean_score(of(condition, seed, model)) for seed in seeds]
            cells = [f"{mean(means):.4f}", f"{stdev(means) if len(means) > 1 else 0:.4f}"]
            test = [f"as {twins[condition]}" if condition in twins else "", "", "", ""]
            if condition in rivals:
                c = compared[model, condition]
                test = [
                    f"{c.difference:+.4f}", f"{c.ci_low:+.4f} to {c.ci_high:+.4f}", f"{c.p_value:.4f}",
                    f"{corrected[model, condition]:.4f}",
                ]  # fmt: skip
            print(f"| {model} | {condition} | {' | '.join([*cells, *test])} |")
    print(f"\n### Each seed minus {REFERENCE}\n")
    print("| model | condition | " + " | ".join(f"seed {seed}" for seed in seeds) + " |")
    print("|---|---" + "|---" * len(seeds) + "|")
    for model in models:
        for condition in rivals:
            own = [pooled_comparison({s: (of(condition, s, model), of(REFERENCE, s, model))}) for s in seeds]
            cells = [f"{outcome.difference:+.4f} (p {outcome.p_value:.4f})" for outcome in own]
            print(f"| {model} | {condition} | {' | '.join(cells)} |")
    _show_choices(arguments)


def changed(folder: Path) -> list[str]:
    """The experts of a run whose instruction PO changed, once its prompts stage is done."""
    choices = {path.parent.name: json.loads(path.read_text(encoding="utf-8")) for path in choices_of(folder)}
    return [name for name, choice in choices.items() if choice["instruction"] != choice["seed_instruction"]]


def choices_of(folder: Path) -> list[Path]:
    """The files that say what PO chose, one for each expert."""
    return sorted(folder.glob("stages/prompts/*/prompt.json"))


def _show_choices(arguments: argparse.Namespace) -> None:
    """What PO chose for each expert, and its proof on the confirming half of dev."""
    optimised = [c for c in arguments.conditions if STM_CONDITIONS[c].prompts]
    if not optimised:
        return
    print("\n### Instructions that PO chose, and their proof on the confirming half of dev\n")
    print(
        "| condition | seed | expert | best minus seed instruction | p | random ones: mean, spread | chosen |"
    )
    print("|---|---|---|---:|---:|---|---|")
    for condition in optimised:
        for seed in arguments.seeds:
            for path in choices_of(folder_of(arguments, condition, seed)):
                choice = json.loads(path.read_text(encoding="utf-8"))
                proof = choice["proof"] or {}
                test = proof.get("versus_seed") or {}
                numbers = (
                    [f"{test['difference']:+.4f}", f"{test['p_value']:.4f}"]
                    if test
                    else ["", proof.get("verdict", "")]
                )
                known = proof.get("random_mean") is not None and proof.get("random_spread") is not None
                spread = f"{proof['random_mean']:.4f}, {proof['random_spread']:.4f}" if known else ""
                changed = choice["instruction"] != choice["seed_instruction"]
                said = choice["instruction"] if changed else "the seed instruction stays"
                print(
                    f"| {condition} | {seed} | {path.parent.name} | {' | '.join([*numbers, spread, said])} |"
                )


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("runs/conditions"))
    parser.add_argument("--conditions", nargs="+", choices=list(STM_CONDITIONS), default=list(STM_CONDITIONS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3], metavar="SEED")
    parser.add_argument("--method", choices=["library", "edit", "generic", "gepa"], default="library")
    parser.add_argument("--queries", type=int, help="dev queries of each collection for PO")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="change the recipe further"
    )
    parser.add_argument("--llm-url")
    parser.add_argument("--llm-model")
    parser.add_argument("--finished", action="store_true")
    arguments = parser.parse_args()
    if REFERENCE not in arguments.conditions:
        parser.error(f"{REFERENCE} is what the others are held against; name it in --conditions")
    if arguments.method == "gepa" and not (arguments.llm_url and arguments.llm_model):
        parser.error("--method gepa needs --llm-url and --llm-model")
    results: Results = {}
    for seed in arguments.seeds:
        for condition in sorted(arguments.conditions, key=lambda c: STM_CONDITIONS[c].prompts):
            folder = folder_of(arguments, condition, seed)
            changes = changes_for(arguments, condition, seed)
            plain = condition.removesuffix("PO").removesuffix("+") or REFERENCE
            if STM_CONDITIONS[condition].prompts and not (folder / "results.json").is_file():
                run(folder, changes, until="prompts")
            if (plain, seed) in results and plain != condition and not changed(folder):
                results[condition, seed] = results[plain, seed]
            else:
                results[condition, seed] = result_of(folder, changes, finished=arguments.finished)
    show(results, arguments)


if __name__ == "__main__":
    main()
