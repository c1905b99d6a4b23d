"""Building the model artefacts: chosen instructions, merge search, merged model. (Training is in training.py.)"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from medley.encoder import Retriever, build_retriever
from medley.files import read_json, remove, write_json
from medley.fingerprint import fingerprint_path
from medley.leaks.chosen import ChosenOn, as_extra, parse_chosen, read_chosen
from medley.model_name import resolve_base
from medley.pipeline.data import LLM_CACHE, VECTORS
from medley.pipeline.inputs import ALL, Inputs
from medley.pipeline.prompting import open_prompt_chat, seed_instruction_of, tune, write_choice
from medley.prompts.choose import Choice
from medley.prompts.settings import PromptSettings
from medley.recipe import Expert, Recipe

PROMPT = "prompt.json"
SEARCH = "search.json"
ENCODINGS = "encodings"
"""Folder of a run with the encodings of an unfinished search."""
MERGED_INSTRUCTION = "merge/instruction"
"""The step that chooses the merged model's instruction, where the recipe asks for that."""
PROBE_TEXTS = 16
"""Dev queries and passages that the export gate encodes."""


def base_of(recipe: Recipe, needs: Mapping[str, Path]) -> str:
    """The model that experts start from: the pre-trained one where the recipe pre-trains."""
    pretrained = needs.get("pretrain/base")
    return str(pretrained / "model") if pretrained else recipe.base


def base_retriever(
    recipe: Recipe, needs: Mapping[str, Path], instruction: str = "", *, device: str | None = None
) -> Retriever:
    """The base as the recipe's retriever."""
    return build_retriever(base_of(recipe, needs), recipe.retriever, instruction=instruction, device=device)


def instruction_of(needs: Mapping[str, Path], name: str) -> str:
    """The instruction that the prompts stage chose for an expert or for `all`."""
    return read_json(needs[f"prompts/{name}"] / PROMPT)["instruction"]


def build_prompt(
    recipe: Recipe, inputs: Inputs, name: str, expert: Expert, out: Path, needs: Mapping[str, Path]
) -> dict[str, Any]:
    """Choose the instruction for an expert (or for `all`) with the base retriever on its dev collections."""
    from medley.prompts.choose import drawn, untouched

    settings = recipe.prompts.model_copy(update={"method": recipe.prompt_method(expert)})
    seed_instruction = seed_instruction_of(recipe, expert)
    dev = expert.dev or recipe.merge.dev
    if settings.method == "none":
        choice = untouched(seed_instruction)
    elif settings.method == "generic":
        chat = open_prompt_chat(recipe.llm, settings, out.parents[2] / LLM_CACHE)
        choice = drawn(seed_instruction, settings, seed=recipe.seed, chat=chat)
    else:
        retriever = base_retriever(recipe, needs)
        choice = _tuned(recipe, inputs, retriever, settings, seed_instruction, dev, out)
    return write_choice(choice, dev, out / PROMPT)


def build_merged_instruction(
    recipe: Recipe, inputs: Inputs, out: Path, needs: Mapping[str, Path]
) -> dict[str, Any]:
    """Choose the inference instruction of the merged model, on the dev collections of the merge."""
    from medley.merge.export import Probe

    seed_instruction = instruction_of(needs, ALL)
    retriever = base_retriever(recipe, needs, seed_instruction)
    _apply_found(recipe, retriever, needs, Probe())
    dev = recipe.merge.dev
    choice = _tuned(recipe, inputs, retriever, recipe.prompts, seed_instruction, dev, out)
    return write_choice(choice, dev, out / PROMPT)


def _tuned(
    recipe: Recipe,
    inputs: Inputs,
    retriever: Retriever,
    settings: PromptSettings,
    seed_instruction: str,
    dev: Sequence[str],
    out: Path,
) -> Choice:
    return tune(
        retriever,
        [
            dev_pool(
                recipe,
                inputs,
                spec,
                passages=recipe.merge.search.pool_size,
                queries=settings.queries or recipe.merge.search.queries,
            )
            for spec in dev
        ],
        settings,
        seed_instruction,
        seed=recipe.seed,
        chat=open_prompt_chat(recipe.llm, settings, out.parents[2] / LLM_CACHE),
        store=out.parents[2] / VECTORS,
    )


def _space(recipe: Recipe, method: str, layout: Any) -> Any:
    """The candidates of one method's search."""
    from medley.merge.space import SearchSpace

    own = recipe.merge.parameters_of(method, recipe.seed)
    scale = 1.0 if own.lambda_ is None else own.lambda_
    grid = tuple(recipe.merge.search.grid)
    return SearchSpace(tuple(recipe.experts), grid, layout.segment_count, method, own.normalize, scale)


def _apply_found(recipe: Recipe, retriever: Retriever, needs: Mapping[str, Path], probe: Any) -> Any:
    """Put the merge that the search found into the retriever; the probe's vectors as the search scored it."""
    from medley.merge.apply import apply_weights
    from medley.merge.coefficients import weights_array

    found = read_json(needs["merge/search"] / SEARCH)
    layout = _layout(recipe, retriever)
    weights_KS = weights_array(found["best"]["coefficients"], tuple(recipe.experts), layout.segment_count)
    return apply_weights(
        retriever, read_experts(recipe, needs), weights_KS, space=_space(recipe, found["method"], layout),
        parameters=recipe.merge.parameters_of(found["method"], recipe.seed), layout=layout, probe=probe,
    )  # fmt: skip


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
    from medley.backbone import backbone
    from medley.merge.coefficients import Layout, layer_cuts

    return Layout(layer_cuts(recipe.merge.segments, int(backbone(retriever).config.num_hidden_layers)))


def build_search(recipe: Recipe, inputs: Inputs, out: Path, needs: Mapping[str, Path]) -> dict[str, Any]:
    """Search the coefficients of every method on dev, in memory; keep the best of the best.

    Encodings are kept in the run's folder until the search is done, so a search that was killed goes on where it was.
    """
    from medley.backbone import base_fingerprint
    from medley.merge.candidates import candidates
    from medley.merge.compatible import check_compatible
    from medley.merge.dev_pools import dev_pools, ranking_retrievers
    from medley.merge.learned import Learnable
    from medley.merge.pool import PoolVectors, embed_pool
    from medley.merge.search import search, store_folder

    experts = read_experts(recipe, needs)
    inputs.bases.clear()  # training is over, so its open base need not stay in memory beside this one
    retriever = base_retriever(recipe, needs, instruction_of(needs, ALL))
    check_compatible(experts, base_identity=base_fingerprint(retriever))
    layout = _layout(recipe, retriever)
    settings = recipe.merge.search.model_copy(update={"seed": recipe.seed})
    model = retriever.identity()
    made_of = [fingerprint_path(needs[f"train/{name}"] / "adapter") for name in recipe.experts]
    unfinished = out.parents[2] / ENCODINGS
    results = {}
    for method in recipe.merge.methods:
        own, space = recipe.merge.parameters_of(method, recipe.seed), _space(recipe, method, layout)
        with candidates(retriever, experts, method=method, parameters=own, layout=layout) as apply:
            pools = dev_pools(
                settings,
                {spec: inputs.collection(spec) for spec in recipe.merge.dev},
                instruction_for=recipe.instruction_for,
                retrievers=ranking_retrievers(apply, space.shape, settings.rankers),
                seed=recipe.seed,
            )

            def embed(coefficients_KS: Any, apply: Any = apply, pools: Any = pools) -> list[PoolVectors]:
                merged = apply(coefficients_KS)
                return [embed_pool(merged, pool) for pool in pools]

            made = [made_of, layout.cuts, own.given()]
            store = store_folder(unfinished, pools, space, model=model, made_of=made)
            learnable = Learnable(retriever, experts, layout)
            results[method] = search(embed, pools, space, settings, store=store, learnable=learnable)
    method = max(results, key=lambda name: _confirmed(results[name].best))
    found = {**results[method].as_json(), "method": method}
    found["methods"] = {
        name: {"score": _confirmed(r.best), "encodings": r.encodings} for name, r in results.items()
    }
    write_json(out / SEARCH, found)
    remove(unfinished)
    return {"method": method, **found["best"], "encodings": sum(r.encodings for r in results.values())}


def _confirmed(candidate: Any) -> float:
    """On the held-out dev queries where there are any."""
    score: float = (candidate.confirm or candidate).score
    return score


def build_merged(recipe: Recipe, inputs: Inputs, out: Path, needs: Mapping[str, Path]) -> dict[str, Any]:
    """Fold the chosen coefficients into the weights and export them through the gate.

    The gate compares, in float32, what the search scored (deltas attached) with what plain sentence-transformers
    reads back from the saved folder, on dev texts.
    """
    import torch

    from medley.merge.export import Probe, encode_probe, export, model_card

    found = read_json(needs["merge/search"] / SEARCH)
    weights = found["best"]["coefficients"]
    dev = inputs.collection(recipe.merge.dev[0])
    probe = Probe(
        tuple(dev.queries.values())[:PROBE_TEXTS],
        tuple(passage.full_text for passage in dev.corpus[:PROBE_TEXTS]),
    )
    exact = recipe.retriever.model_copy(update={"dtype": "float32"})
    tuned_after = needs.get(MERGED_INSTRUCTION)
    instruction = (
        read_json(tuned_after / PROMPT)["instruction"] if tuned_after else instruction_of(needs, ALL)
    )
    retriever = build_retriever(base_of(recipe, needs), exact, instruction=instruction)
    base_vectors = encode_probe(retriever, probe)
    scored = _apply_found(recipe, retriever, needs, probe)
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
        "run": recipe.name, **as_extra(_chosen_on(recipe, found, needs)),
    }  # fmt: skip
    gate = export(
        retriever, out / "model", card=card, scored=scored, base=base_vectors, probe=probe, extra=provenance
    )
    return {"coefficients": weights, "method": found["method"], **asdict(gate)}


def _chosen_on(recipe: Recipe, found: Mapping[str, Any], needs: Mapping[str, Path]) -> list[ChosenOn]:
    """The dev queries that base, experts, instructions and weights were chosen on."""
    records = read_chosen(
        Path(resolve_base(base_of(recipe, needs))),
        *(needs[f"train/{name}"] / "adapter" for name in recipe.experts),
    )
    for step in (f"prompts/{ALL}", MERGED_INSTRUCTION):
        if step in needs:
            records += parse_chosen(read_json(needs[step] / PROMPT), needs[step] / PROMPT)
    return records + parse_chosen(found, needs["merge/search"] / SEARCH)


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
