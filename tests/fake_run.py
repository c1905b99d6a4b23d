"""A run folder with made-up numbers and texts, for tests of what reads runs. Nothing in it was measured."""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any

from medley.files import write_json, write_jsonl, write_text
from medley.fingerprint import fingerprint

EXPERTS = ("conditions", "care", "science")
TASKS = ("demo/medicine", "demo/general")
STRENGTH = {
    "merged": 0.30, "base": -0.35, "bm25": -0.15, "all": 0.24,
    "expert:conditions": 0.12, "expert:care": 0.05, "expert:science": -0.12,
}  # fmt: skip
SUBJECTS = (
    "copper",
    "willow",
    "harbour",
    "lantern",
    "glacier",
    "orchard",
    "magnet",
    "violin",
    "beetle",
    "canal",
)
DEEDS = (
    "turns green",
    "bends in the wind",
    "silts up",
    "burns brighter",
    "moves downhill",
    "bears fruit late",
)


LEDGER = {
    "calls": 37,
    "from_cache": 3,
    "prompt_tokens": 41_250,
    "completion_tokens": 9_871,
    "usd": 0.1234,
    "retries": 1,
}


def make_run(folder: Path, *, seed: int = 13, queries: int = 100, hostile: str = "") -> Path:
    """Write a finished run with so many test queries a task; `hostile` is put into texts and names."""
    rng = random.Random(seed)
    stages: dict[str, dict[str, Any]] = {}
    _write_data(folder, rng, hostile)
    _write_models(folder, rng, hostile)
    results = make_results(rng, queries, hostile)
    write_json(folder / "results.json", results)
    write_json(folder / "failures.json", make_cases(results, rng, hostile))
    for stage, names, seconds in (
        ("sources", EXPERTS, 0.4), ("mine", EXPERTS, 2.1), ("synthesize", EXPERTS, 1.3),
        ("prompts", (*EXPERTS, "all"), 19.0), ("train", (*EXPERTS, "all"), 64.0),
        ("merge", ("search", "model"), 41.0), ("evaluate", tuple(STRENGTH), 12.0),
    ):  # fmt: skip
        stages[stage] = {
            name: {
                "key": fingerprint([stage, name]),
                "seconds": round(seconds * rng.uniform(0.8, 1.2), 3),
                "finished": f"2026-11-21T08:{10 + len(stages):02}:{rng.randrange(60):02}+00:00",
                "summary": {"llm": LEDGER} if stage == "synthesize" and name == "care" else {},
            }
            for name in names
        }
    versions = {
        "medley-retrieval": "0.1.0",
        "torch": "2.13.0",
        "transformers": "5.23.0",
        "sentence-transformers": "6.2.0",
    }
    manifest = {
        "format": 1, "name": f"synthetic-example{hostile}", "seed": seed, "versions": versions,
        "machine": "Linux x86_64, Python 3.11.7", "stages": stages,
    }  # fmt: skip
    write_json(folder / "manifest.json", manifest)
    write_text(folder / "recipe.yaml", _recipe())
    return folder


def make_results(rng: random.Random, queries: int, hostile: str = "") -> dict[str, Any]:
    """results.json: the variants share each query's difficulty, so their scores correlate as real ones do."""
    difficulty = {task: [rng.gauss(0.2, 1.1) for _ in range(queries)] for task in TASKS}
    variants: dict[str, Any] = {}
    for variant, strength in STRENGTH.items():
        tasks = {}
        for task, hardness in difficulty.items():
            away = task == "demo/general" and variant in ("expert:conditions", "expert:care")
            shift = strength - (0.3 if away else 0.0)
            rows = {}
            for index, hard in enumerate(hardness):
                level = 1 / (1 + math.exp(-(hard + 1.6 * shift + rng.gauss(0, 0.45))))
                gain = 0.0 if level < 0.2 else 1.0 if level > 0.8 else round(level, 4)
                rows[f"q{index:03}"] = {"ndcg_at_10": gain, "mrr_at_10": round(gain**1.2, 4)}
            mean = sum(row["ndcg_at_10"] for row in rows.values()) / len(rows)
            tasks[task] = {
                "split": "test", "ndcg_at_10": mean, "recall_at_10": min(1.0, mean + 0.12),
                "recall_at_100": min(1.0, mean + 0.31), "mrr_at_10": mean - 0.03, "per_query": rows,
            }  # fmt: skip
        variants[variant] = {"model": {"name": variant}, "tasks": tasks}
    texts = {task: {f"q{i:03}": f"{_question(rng, i)}{hostile}" for i in range(queries)} for task in TASKS}
    return {
        "variants": variants,
        "groups": {"medical": ["demo/medicine"], "general": ["demo/general"]},
        "queries": texts,
        "demands": [
            {"met": True, "sentence": "no general task worse than base by more than 0.01: met on 1 task"},
            {
                "met": False,
                "sentence": f"no medical task worse than all by more than 0: broken by demo/medicine{hostile}",
            },
        ],
    }


def make_cases(results: dict[str, Any], rng: random.Random, hostile: str) -> list[dict[str, Any]]:
    """failures.json: the queries of both tasks that changed most, with invented passages."""
    before, after = (results["variants"][name]["tasks"] for name in ("base", "merged"))
    changed = [
        (after[task]["per_query"][q]["ndcg_at_10"] - row["ndcg_at_10"], task, q)
        for task in TASKS
        for q, row in before[task]["per_query"].items()
    ]
    changed = sorted((c for c in changed if c[0]), key=lambda c: -abs(c[0]))[:40]
    return [
        {
            "task": task, "id": q, "query": results["queries"][task][q],
            "before": before[task]["per_query"][q]["ndcg_at_10"],
            "after": after[task]["per_query"][q]["ndcg_at_10"],
            "relevant": [{"id": "p1", "text": _passage(rng, "copper", 1) + hostile, "grade": 2}],
            "first_before": [{"id": "p2", "text": _passage(rng, "willow", 2), "grade": None}],
            "first_after": [{"id": "p1", "text": _passage(rng, "copper", 1), "grade": 2}],
        }
        for _, task, q in changed
    ]  # fmt: skip


def _question(rng: random.Random, index: int) -> str:
    return f"made-up question {index}: why is it that {rng.choice(SUBJECTS)} {rng.choice(DEEDS)} in spring?"


def _passage(rng: random.Random, subject: str, index: int) -> str:
    return (
        f"Made-up passage {index}. In this invented text, {subject} {rng.choice(DEEDS)} after about "
        f"{rng.randrange(2, 60)} days, which nobody has ever measured. It stands here so that a page has "
        f"something to show; {rng.choice(SUBJECTS)} has no part in it."
    )


def _write_data(folder: Path, rng: random.Random, hostile: str) -> None:
    for name in EXPERTS:
        sources, mined, generated = [], [], []
        for index in range(40):
            subject, other = rng.sample(SUBJECTS, 2)
            positive = _passage(rng, subject, index) + hostile
            row = {
                "query": _question(rng, index) + hostile, "positive": positive, "negatives": [],
                "instruction": "Given a question, retrieve passages that answer it", "source": name,
                "provenance": {},
            }  # fmt: skip
            sources.append(row)
            found = {"retriever": "bm25", "ids": ["p1"], "scores": [3.1], "ranks": [2]}
            mined.append(
                {**row, "negatives": [_passage(rng, other, index + 500)], "provenance": {"mined": found}}
            )
            start = positive.index(subject)
            change = {"from": subject, "to": other, "count": 1, "at": [start]}
            generated.append(
                {
                    **row,
                    "negatives": [positive[:start] + other + positive[start + len(subject) :]],
                    "provenance": {
                        "mined": found,
                        "perturbed": {"kind": "entity", "changes": [change], "row": index},
                    },
                }
            )
        stages = folder / "stages"
        leaks = {"demo/medicine:test": 2} if name == "care" else {}
        write_jsonl(stages / "sources" / name / "pairs.jsonl", sources)
        write_json(stages / "sources" / name / "artefact.json", {"summary": {"pairs": 40, "leaks": leaks}})
        finding = {
            "kind": "query", "against": f"demo/medicine:test{hostile}", "rows": 2, "texts": 2, "exact": 1,
            "sentence": "2 rows with a query of demo/medicine:test: drop such rows.",
            "examples": [{"training": f"why does copper bend{hostile}", "held_out": "Why does copper bend?"}],
        }  # fmt: skip
        write_json(stages / "sources" / name / "leaks.json", [finding] if name == "care" else [])
        shared = {
            **finding, "kind": "answer", "sentence": "7 rows with a positive that answers a query of demo/medicine:test.",
        }  # fmt: skip
        write_json(stages / "leaks" / "sources" / f"{name}.json", [shared] if name == "care" else [])
        write_jsonl(stages / "mine" / name / "pairs.jsonl", mined)
        write_json(
            stages / "mine" / name / "counts.json",
            {
                "pairs": 40, "queries": 40, "negatives": 38, "pairs_without_mined_negative": 2,
                "dropped": {"within_margin": rng.randrange(20, 60), "near_duplicate_of_a_positive": 3},
            },
        )  # fmt: skip
        write_jsonl(stages / "synthesize" / name / "pairs.jsonl", generated)
        counts = {"rows": 40, "made": 37, "unchanged": 3, "entity": 30, "negation": 4, "number": 3}
        write_json(stages / "synthesize" / name / "counts.json", counts)


def _write_models(folder: Path, rng: random.Random, hostile: str) -> None:
    stages = folder / "stages"
    library = [
        "Given a question, retrieve passages that answer it",
        "Given a medical question, retrieve passages that answer it",
        "Given a claim, retrieve documents that support or refute the claim",
        "Given a search query, retrieve relevant passages",
        f"Given a made-up question, retrieve the made-up passage{hostile}",
    ]
    for number, name in enumerate((*EXPERTS, "all")):
        candidates = [
            {"instruction": text, "score": round(0.36 + 0.06 * rng.random(), 4)} for text in library
        ]
        best = max(candidates, key=lambda candidate: candidate["score"])
        write_json(
            stages / "prompts" / name / "prompt.json",
            {
                "instruction": best["instruction"], "seed_instruction": library[0], "method": "library",
                "candidates": candidates, "dev": ["demo/medicine:dev", "demo/general:dev"],
            },
        )  # fmt: skip
        steps = 60 if name != "all" else 180
        losses = [
            {"step": step, "loss": round(0.7 + 2.1 * math.exp(-4 * step / steps) + rng.gauss(0, 0.12), 4)}
            for step in range(1, steps + 1)
        ]
        members = EXPERTS if name == "all" else (name,)
        points = [
            {"step": step, "scale": 1.0, "score": round(0.41 + 0.03 * math.sin(step / 20), 4), "scores": {}}
            for step in range(0, steps + 1, 15)
        ]
        half = {"step": 30, "scale": 0.5, "score": 0.4421, "scores": {}}
        dev = {"points": points, "shrunken": [half], "chosen": half, "stopped_early": True}
        write_json(
            stages / "train" / name / "training.json",
            {
                "pairs": 40 * len(members), "steps": steps, "seconds": 55.5 + 3 * number, "losses": losses,
                "source_counts": dict.fromkeys(members, 40), "dev": dev if number == 0 else None,
            },
        )  # fmt: skip
    write_json(stages / "merge" / "search" / "search.json", make_search(rng))


def make_search(rng: random.Random) -> dict[str, Any]:
    """search.json of a surrogate search: each expert alone, verified points, and the best predicted ones."""

    def candidate(weights: tuple[float, ...], *, real: bool) -> dict[str, Any]:
        total = sum(weights)
        mix = -sum(w / total * math.log(w / total) for w in weights if w) / math.log(len(weights))
        score = 0.43 + 0.06 * mix + 0.02 * weights[0] / total + rng.gauss(0, 0.004 if real else 0.002)
        scores = {"demo/medicine:dev": round(score + 0.03, 4), "demo/general:dev": round(score - 0.03, 4)}
        found = {
            "coefficients": dict(zip(EXPERTS, weights, strict=True)),
            "score": sum(scores.values()) / 2, "scores": scores, "real": real,
        }  # fmt: skip
        if real:
            found["predicted"] = found["score"] - 0.004 + rng.gauss(0, 0.003)
        return found

    tried = [candidate(tuple(float(i == j) for j in range(3)), real=True) for i in range(3)]
    tried += [candidate(tuple(rng.randrange(1, 10) / 10 for _ in EXPERTS), real=True) for _ in range(8)]
    guessed = [candidate(tuple(rng.randrange(1, 10) / 10 for _ in EXPERTS), real=False) for _ in range(50)]
    guessed.sort(key=lambda one: -one["score"])
    return {
        "strategy": "surrogate", "method": "linear", "encodings": 12,
        "best": max(tried, key=lambda one: one["score"]), "candidates": [*tried, *guessed],
    }  # fmt: skip


def _recipe() -> str:
    experts = "\n".join(f"  {name}: {{sources: [{name}]}}" for name in EXPERTS)
    sources = "\n".join(f"  {name}: {{collection: demo/medicine, split: train_{name}}}" for name in EXPERTS)
    return (
        f"# made-up run\nname: synthetic-example\nbase: tiny\nseed: 13\nsources:\n{sources}\n"
        f"experts:\n{experts}\n"
        "merge: {dev: ['demo/medicine:dev', 'demo/general:dev']}\nleaks: drop\n"
    )
