"""Building the model artefacts: chosen instructions, merge search, merged model. (Training is in training.py.)"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from medley.encoder import Retriever, build_retriever, encode_passages, encode_queries
from medley.files import read_json, write_json
from medley.fingerprint import fingerprint_path
from medley.pipeline.inputs import ALL, Inputs
from medley.recipe import Expert, Recipe

PROMPT = "prompt.json"
SEARCH = "search.json"
PROBE_TEXTS = 16
"""Dev queries and passages that the export gate encodes."""


def base_of(recipe: Recipe, needs: Mapping[str, Path]) -> str:
    """The model that experts start from: the pre-trained one where the recipe pre-trains."""
    pretrained = needs.get("pretrain/base")
    return str(pretrained / "model") if pretrained else recipe.base


def base_retriever(recipe: Recipe, needs: Mapping[str, Path], instruction: str = "") -> Retriever:
    """The base as the recipe's retriever."""
    return build_retriever(base_of(recipe, needs), recipe.retriever, instruction=instruction)


def instruction_of(needs: Mapping[str, Path], name: str) -> str:
    """The instruction that the prompts stage chose for an expert or for `all`."""
    return read_json(needs[f"prompts/{name}"] / PROMPT)["instruction"]


def build_prompt(
    recipe: Recipe, inputs: Inputs, name: str, expert: Expert, out: Path, needs: Mapping[str, Path]
) -> dict[str, Any]:
    """Choose the instruction for an expert (or for `all`) with the base retriever on its dev collections."""
    from medley.merge.pool import PoolVectors, score_vectors
    from medley.prompts.choose import choose_instruction, library

    method = expert.prompts or recipe.prompts.method
    seed_instruction = recipe.sources[expert.sources[0]].instruction or library()[0]
    dev = expert.dev or recipe.merge.dev
    sizes = recipe.merge.search
    scores: list[float] = []
    if method == "library":
        retriever = base_retriever(recipe, needs)
        pools = [
            dev_pool(recipe, inputs, spec, passages=sizes.pool_size, queries=sizes.queries) for spec in dev
        ]
        passages = [encode_passages(retriever, pool.passages) for pool in pools]

        def score(instruction: str) -> float:
            vectors = [
                PoolVectors(encode_queries(retriever, pool.queries, instruction=instruction), passages_DH)
                for pool, passages_DH in zip(pools, passages, strict=True)
            ]
            return score_vectors(pools, vectors).score

        choice = choose_instruction(seed_instruction, library(), score).as_json()
        scores = [candidate["score"] for candidate in choice["candidates"]]
    else:
        choice = {"instruction": seed_instruction, "seed_instruction": seed_instruction, "candidates": []}
    write_json(out / PROMPT, {**choice, "dev": dev, "method": method})
    return {
        "instruction": choice["instruction"],
        "candidates": len(scores),
        "best": max(scores, default=None),
    }


def dev_pool(recipe: Recipe, inputs: Inputs, spec: str, *, passages: int, queries: int) -> Any:
    """The sample of a dev collection on which instructions, candidates and training steps are scored."""
    from medley.merge.pool import build_pool

    return build_pool(
        inputs.collection(spec),
        max_passages=passages,
        max_queries=queries,
        seed=recipe.seed,
        instruction=recipe.instruction_for(spec),
    )


def read_experts(recipe: Recipe, needs: Mapping[str, Path]) -> list[Any]:
    """The trained experts, in the recipe's order."""
    from medley.expert import read_expert

    return [read_expert(needs[f"train/{name}"] / "adapter", name=name) for name in recipe.experts]


def _layout(recipe: Recipe, retriever: Retriever) -> Any:
    """Which coefficients each layer gets."""
    from medley.lowrank import backbone
    from medley.merge.coefficients import Layout, layer_cuts

    return Layout(layer_cuts(recipe.merge.segments, int(backbone(retriever).config.num_hidden_layers)))


def build_search(recipe: Recipe, inputs: Inputs, out: Path, needs: Mapping[str, Path]) -> dict[str, Any]:
    """Search the coefficients of every method on dev, in memory; keep the best of the best."""
    from medley.expert import base_fingerprint, check_compatible
    from medley.merge.concatenated import ConcatenatedAdapter
    from medley.merge.pool import PoolVectors, embed_pool
    from medley.merge.search import SearchSpace, search

    experts = read_experts(recipe, needs)
    inputs.bases.clear()  # training is over, so its open base need not stay in memory beside this one
    retriever = base_retriever(recipe, needs, instruction_of(needs, ALL))
    check_compatible(experts, base_identity=base_fingerprint(retriever))
    layout = _layout(recipe, retriever)
    settings = recipe.merge.search.model_copy(update={"seed": recipe.seed})
    pools = [
        dev_pool(recipe, inputs, spec, passages=settings.pool_size, queries=settings.queries)
        for spec in recipe.merge.dev
    ]
    results = {}
    with ConcatenatedAdapter(retriever, experts, layout=layout) as adapter:

        def embed(coefficients_KS: Any) -> list[PoolVectors]:
            adapter.set_coefficients(coefficients_KS)
            return [embed_pool(retriever, pool) for pool in pools]

        for method in recipe.merge.methods:
            space = SearchSpace(tuple(recipe.experts), tuple(settings.grid), layout.segment_count, method)
            results[method] = search(embed, pools, space, settings)
    method = max(results, key=lambda name: results[name].best.score)
    found = {**results[method].as_json(), "method": method}
    found["methods"] = {
        name: {"score": r.best.score, "encodings": r.encodings} for name, r in results.items()
    }
    write_json(out / SEARCH, found)
    return {"method": method, **found["best"], "encodings": sum(r.encodings for r in results.values())}


def build_merged(recipe: Recipe, inputs: Inputs, out: Path, needs: Mapping[str, Path]) -> dict[str, Any]:
    """Fold the chosen coefficients into the weights and export them through the gate.

    The gate compares, in float32, what the search scored (deltas attached) with what plain sentence-transformers
    reads back from the saved folder, on dev texts.
    """
    import torch

    from medley.merge.coefficients import delta_coefficients, weights_array
    from medley.merge.concatenated import ConcatenatedAdapter, dense_merge
    from medley.merge.export import Probe, encode_probe, export, model_card

    found = read_json(needs["merge/search"] / SEARCH)
    experts = read_experts(recipe, needs)
    weights = found["best"]["coefficients"]
    dev = inputs.collection(recipe.merge.dev[0])
    probe = Probe(
        tuple(dev.queries.values())[:PROBE_TEXTS],
        tuple(passage.full_text for passage in dev.corpus[:PROBE_TEXTS]),
    )
    exact = recipe.retriever.model_copy(update={"dtype": "float32"})
    retriever = build_retriever(base_of(recipe, needs), exact, instruction=instruction_of(needs, ALL))
    layout = _layout(recipe, retriever)
    deltas_KS = delta_coefficients(
        found["method"], weights_array(weights, tuple(recipe.experts), layout.segment_count)
    )
    base_vectors = encode_probe(retriever, probe)
    with ConcatenatedAdapter(retriever, experts, layout=layout) as adapter:
        adapter.set_coefficients(deltas_KS)
        scored = encode_probe(retriever, probe)
    dense_merge(retriever, experts, deltas_KS, layout=layout)
    retriever.model.to(getattr(torch, recipe.merge.dtype))
    identities = {name: fingerprint_path(needs[f"train/{name}"] / "adapter") for name in recipe.experts}
    card = model_card(
        recipe.name,
        base=recipe.base,
        method=found["method"],
        experts=identities,
        weights=weights,
        details={
            "dev": ", ".join(recipe.merge.dev),
            "dev nDCG@10": f"{found['best']['score']:.4f}",
            "seed": recipe.seed,
        },
    )
    provenance = {
        "base": recipe.base, "method": found["method"], "coefficients": weights, "experts": identities,
        "run": recipe.name,
    }  # fmt: skip
    gate = export(
        retriever, out / "model", card=card, scored=scored, base=base_vectors, probe=probe, extra=provenance
    )
    return {"coefficients": weights, "method": found["method"], **asdict(gate)}


def variant_retriever(recipe: Recipe, variant: str, needs: Mapping[str, Path]) -> Retriever:
    """Open what a row of the results table stands for: merged, base, pretrained, all, or expert:<name>."""
    import torch

    from medley.encoder import open_retriever
    from medley.expert import read_expert
    from medley.lowrank import fold

    if variant == "merged":
        return open_retriever(str(needs["merge/model"] / "model"), dtype=recipe.retriever.dtype)
    if variant == "base":
        return build_retriever(recipe.base, recipe.retriever, instruction=instruction_of(needs, ALL))
    if variant == "pretrained":
        return base_retriever(recipe, needs, instruction_of(needs, ALL))
    name = variant.removeprefix("expert:")
    expert = read_expert(needs[f"train/{name}"] / "adapter", name=name)
    # folded in float32 and then cast, exactly as the merged model is: rows of the table differ in nothing else
    exact = recipe.retriever.model_copy(update={"dtype": "float32"})
    retriever = build_retriever(base_of(recipe, needs), exact, instruction=expert.instruction)
    fold(retriever, expert.layers, where=name)
    retriever.model.to(getattr(torch, recipe.retriever.dtype))
    return retriever
