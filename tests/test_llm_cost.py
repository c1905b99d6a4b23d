"""What `--plan` says of a language model's cost, against what the same run then pays."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llm_server import serving
from medley.collections import BUNDLED
from medley.files import read_json
from medley.pipeline import plan_steps
from medley.pipeline.llm_cost import SAMPLE, _reservoir
from medley.pipeline.start import run_recipe
from medley.recipe import Recipe, parse_recipe
from medley.run import Step

PRICES = {"prompt": 2.0, "completion": 10.0}


def recipe_for(folder: Path, url: str) -> Recipe:
    rows = [
        {
            "query": f"what helps against illness {i}",
            "positive": f"Drug {i} is given for illness {i}. " * (1 + i % 9),
        }
        for i in range(300)
    ]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    demo = BUNDLED / "demo"
    return parse_recipe({
        "name": "x", "base": "tiny",
        "llm": {"base_url": url, "model": "m", "prices": PRICES, "concurrency": 16},
        "sources": {"a": {"pairs": str(folder / "pairs.jsonl")}, "b": {"corpus": str(demo / "general")}},
        "negatives": {"generated": {"per_query": 2, "llm": {"max_bad": 1}}, "guard": {"margin": None}},
        "experts": {"one": {"sources": ["a", "b"], "negatives": ["generated"]}},
        "merge": {"dev": [f"{demo / 'general'}:dev"]},
        "evaluate": {"general": [f"{demo / 'general'}:test"]},
    })  # fmt: skip


def step_of(steps: list[Step], step_id: str) -> Step:
    return next(step for step in steps if step.id == step_id)


@pytest.mark.slow
def test_the_plan_foresees_what_the_run_pays_and_the_key_is_nowhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("http_proxy", raising=False)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-topsecret")
    with serving() as server:
        text = "what is the way to do thing {} when it is late"
        server.script = lambda number, body: (
            400 if number % 50 == 7 else text.format(number)
        )  # 400 repeats the key
        recipe = recipe_for(tmp_path, server.url)
        steps = plan_steps(recipe, tmp_path / "run")
        assert not server.bodies and not (tmp_path / "run").exists()
        run_recipe(recipe, tmp_path / "run", until="synthesize")
        sent = [sum(len(m["content"]) for m in body["messages"]) / 4 for body in server.bodies]
    cost = {step_id: step_of(steps, step_id).cost for step_id in ("sources/b", "synthesize/a")}
    assert cost["synthesize/a"]["llm_calls"] == 600
    written = [row["positive"] for row in map(json.loads, (tmp_path / "pairs.jsonl").open())]
    replies = 2 * sum(len(text) / 4 for text in written)
    asked = [tokens for tokens, body in zip(sent, server.bodies, strict=True) if "illness" in str(body)]
    assert len(asked) == 600
    tokens = cost["synthesize/a"]["llm_tokens"]
    assert tokens == pytest.approx(sum(asked) + replies, rel=0.1)
    assert cost["synthesize/a"]["llm_usd"] == pytest.approx((2 * sum(asked) + 10 * replies) / 1e6, rel=0.1)
    of_corpus = [
        tokens for tokens, body in zip(sent, server.bodies, strict=True) if "illness" not in str(body)
    ]
    calls = cost["sources/b"]["llm_calls"]
    assert calls == sum(1 for _ in (BUNDLED / "demo/general/corpus.jsonl").open())
    assert cost["sources/b"]["llm_tokens"] == pytest.approx(
        sum(of_corpus[: int(calls)]) + 12 * calls, rel=0.1
    )
    # the ledger stands where the run keeps its cost
    stages = read_json(tmp_path / "run" / "manifest.json")["stages"]
    paid = stages["synthesize"]["a"]["summary"]["llm"]
    assert paid["calls"] + paid["failures"]["rejected"] == 600 and paid["usd"] == pytest.approx(
        paid["calls"] * 70e-6
    )
    output = "".join(capfd.readouterr())
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert (
        server.headers[0]["authorization"] == "Bearer sk-topsecret" and "***" in output and len(written) > 10
    )
    assert "topsecret" not in output
    assert not [path for path in written if b"topsecret" in path.read_bytes()]


def test_a_reservoir_counts_all_and_draws_uniformly() -> None:
    assert _reservoir(range(7), seed=1) == (7, list(range(7)))
    drawn = [place for seed in range(200) for place in _reservoir(range(1000), seed)[1]]
    assert _reservoir(range(1000), 0)[0] == 1000 and len(drawn) == 200 * SAMPLE
    assert sum(drawn) / len(drawn) == pytest.approx(499.5, rel=0.02)
