"""The workflow in a notebook's length, on bundled data: mine, train two experts, merge by dev, test, compare.

python examples/workflow.py [OUT]    # about a minute on two cores; cells as editors and Jupyter know them
"""

# %% Where results go: a new folder, since nothing that is there is replaced
import sys
from pathlib import Path

import pandas

import medley
from medley.pairs import pairs_from_collection

pandas.set_option("display.width", 120, "display.max_columns", 10, "display.max_colwidth", 30)
out = Path(sys.argv[1] if sys.argv[0].endswith("workflow.py") and sys.argv[1:] else "workflow")
out.mkdir(parents=True)

# %% Training pairs of two kinds, each with one hard negative by BM25
for name, spec in {
    "care": "demo/medicine:train_care[:24]",
    "science": "demo/general:train_science[:24]",
}.items():
    medley.write_pairs(out / f"{name}.jsonl", pairs_from_collection(medley.load_collection(spec)))
    mined = medley.mine(
        out / f"{name}.jsonl", out / f"{name}-mined.jsonl", corpus=spec.partition(":")[0], seed=13
    )
    print(name, mined.counts)
print(mined.to_frame()[["query", "negatives"]].head())

# %% An expert of each kind: a small adapter on the bundled base
settings = medley.TrainSettings.model_validate(
    {"lora": {"rank": 8, "alpha": 8}, "learning_rate": 5e-3, "batch_size": 8, "epochs": 2}
)
experts = {
    name: medley.train("tiny", out / f"{name}-mined.jsonl", out / name, settings=settings)
    for name in ("care", "science")
}
print(experts["care"].to_frame().tail(3))

# %% One model of both: the weights that a dev set finds best
merge = medley.MergeFile.model_validate(
    {
        "base": "tiny",
        "experts": {name: str(expert.path) for name, expert in experts.items()},
        "method": "task_arithmetic",
        "search": {"strategy": "grid", "grid": [0, 0.5, 1], "dev": ["demo/medicine:dev"]},
    }
)
searched = medley.search_merge(merge, out / "searched")
print(searched.to_frame())

# %% The proof, on a test set that nothing was chosen on
models = [str(searched.model), str(experts["care"].path), "tiny", "bm25"]
tested = medley.evaluate(models, ["demo/medicine:test"], out=out / "results.json")
print(tested.to_frame()[["model", "task", "ndcg_at_10"]])
print(medley.compare(tested).to_frame()[["a", "b", "difference", "ci_low", "ci_high", "p_holm", "verdict"]])
