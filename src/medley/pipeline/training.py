"""Building what is trained: the base before the experts, and the experts; dev stops each where the recipe says so."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medley.documents import shards_of
from medley.encoder import Retriever, build_retriever, save_retriever, with_instruction
from medley.files import read_json, remove, write_json
from medley.fingerprint import fingerprint
from medley.leaks.chosen import ChosenOn, as_extra, chosen_on, parse_chosen, read_chosen
from medley.markdown import literal
from medley.merge.pool import DevPool, build_pool, score_candidate
from medley.model_name import resolve_base
from medley.pairs import TrainingPair
from medley.pipeline.data import assemble_pairs
from medley.pipeline.inputs import Inputs, expanded
from medley.pipeline.models import PROMPT, base_of, base_retriever, dev_pool, instruction_of
from medley.prompts.generic import drawn_for
from medley.recipe import Expert, Recipe
from medley.train.processes import is_first, wait
from medley.train.settings import EarlyStopping, TrainSettings
from medley.train.stopping import Score

if TYPE_CHECKING:
    from medley.train.contrastive import Training

TRAINING = "training.json"
CHECKPOINTS = "checkpoints"
"""In the run folder: what a training that was killed goes on from."""
UNLABELLED = "unlabelled"
"""In the run folder: pairs for pre-training while they are needed, so that reading goes on where it was killed."""


def build_pretrained(recipe: Recipe, inputs: Inputs, out: Path, _: Mapping[str, Path]) -> dict[str, Any]:
    """Pre-train all weights of the base on unlabelled pairs from the recipe's corpora."""
    from medley.train.contrastive import train
    from medley.train.pair_store import PairStore, gather_pairs

    settings = recipe.pretrain
    if settings is None:
        raise ValueError("the recipe has no pretrain section")
    store = out.parents[2] / UNLABELLED
    if is_first():
        gather_pairs(
            [
                *(inputs.corpus(spec) for spec in settings.collections),
                *(shard for source in settings.documents for shard in shards_of(expanded(source))),
            ],
            settings,
            store,
            seed=recipe.seed,
            content=fingerprint(inputs.text_identities(settings.collections, settings.documents)),
        )
    wait()
    pairs = PairStore(store)
    retriever = build_retriever(recipe.base, recipe.retriever)
    pools = _dev_pools(recipe, inputs, settings.train)
    score = score_on(pools) if pools else None
    place = out.parents[2] / CHECKPOINTS / "pretrain"
    checkpoints = place / fingerprint([pool.identity for pool in pools])
    training = train(
        retriever, pairs, settings.train, seed=recipe.seed, label="pretrain", score=score, checkpoints=checkpoints
    )  # fmt: skip
    save_retriever(
        retriever,
        out / "model",
        card=f"# {literal(recipe.name)}: base after pre-training\n\n"
        f"From {literal(recipe.base)}, {len(pairs)} unlabelled pairs.\n",
        extra=as_extra([*read_chosen(Path(resolve_base(recipe.base))), *stopped_on(pools)]),
    )
    write_json(out / TRAINING, asdict(training))
    if is_first():
        remove(store)
        remove(place)
    return {"pairs": training.pairs, "steps": training.steps}


def stopping_dev(recipe: Recipe, settings: TrainSettings, expert: Expert | None = None) -> list[str]:
    """The dev collections that stop a training early; none where it is not to stop early.

    An expert may have its own; what is trained on all the data, or before the experts, has the merge's.
    """
    stopping = settings.early_stopping
    if stopping is None:
        return []
    own = expert.dev if expert is not None and stopping.dev == "own" else None
    return own or recipe.merge.dev


def _dev_pools(
    recipe: Recipe, inputs: Inputs, settings: TrainSettings, expert: Expert | None = None
) -> list[DevPool]:
    """What a training is scored on; nothing where dev does not stop it."""
    stopping = settings.early_stopping
    if stopping is None:
        return []
    dev = stopping_dev(recipe, settings, expert)
    return [
        dev_pool(recipe, inputs, spec, passages=stopping.pool_size, queries=stopping.queries) for spec in dev
    ]


def stopped_on(pools: Sequence[DevPool]) -> list[ChosenOn]:
    """What a training was stopped on, and its learning rate chosen."""
    return [chosen_on(pool.name, "early stopping", pool.queries) for pool in pools]


def score_on(pools: Sequence[DevPool]) -> Score:
    """A function that scores a retriever on dev pools: nDCG@10 of each."""

    def score(retriever: Retriever) -> Mapping[str, float]:
        return score_candidate(retriever, pools).scores

    return score


def pools_of(specs: Sequence[str], stopping: EarlyStopping, *, seed: int) -> list[DevPool]:
    """The dev pools of collections by name, as `medley train --dev` gives them."""
    from medley.leaks.dev import open_dev

    return [
        build_pool(
            open_dev(spec),
            max_passages=stopping.pool_size,
            max_queries=stopping.queries,
            seed=seed,
        )
        for spec in specs
    ]


def build_expert(
    recipe: Recipe,
    inputs: Inputs,
    name: str,
    experts: Mapping[str, Expert],
    out: Path,
    needs: Mapping[str, Path],
) -> dict[str, Any]:
    """Train one adapter on the pairs of one expert, or of all experts together for the all-data model."""
    from medley.backbone import base_fingerprint
    from medley.expert import save_expert
    from medley.train.sharded import loading_device
    from medley.train.trials import train_best

    pairs: list[TrainingPair] = []
    for member, expert in experts.items():
        own = assemble_pairs(expert.sources, recipe.kinds_of(expert), needs)
        pairs += under_instructions(own, read_json(needs[f"prompts/{member}"] / PROMPT), seed=recipe.seed)
    instruction = instruction_of(needs, name)
    opened = inputs.bases.pop(base_of(recipe, needs), None)  # an expert that fails leaves none behind
    retriever = (
        base_retriever(recipe, needs, instruction, device=loading_device(recipe.train))
        if opened is None
        else with_instruction(opened, instruction)
    )
    identity = base_fingerprint(retriever)
    pools = _dev_pools(recipe, inputs, recipe.train, experts.get(name))
    chosen = read_chosen(Path(resolve_base(base_of(recipe, needs))))
    for member in {*experts, name}:
        path = needs[f"prompts/{member}"] / PROMPT
        chosen += parse_chosen(read_json(path), path)

    def save(folder: Path, training: Training) -> None:
        save_expert(
            retriever, folder, base=recipe.base, base_identity=identity, settings=recipe.retriever,
            extra={
                "name": name, "run": recipe.name, "training": {"pairs": training.pairs, "steps": training.steps},
                **as_extra([*chosen, *stopped_on(pools)]),
            },
        )  # fmt: skip

    checkpoints = out.parents[2] / CHECKPOINTS / name
    best = train_best(
        retriever, pairs, recipe.train, save, folder=checkpoints, seed=recipe.seed, label=f"train {name}",
        score=score_on(pools) if pools else None, dev=[pool.identity for pool in pools],
    )  # fmt: skip
    inputs.bases[base_of(recipe, needs)] = retriever
    shutil.copytree(best.result, out / "adapter")
    counts = {
        source: sum(pair.source == source for pair in pairs) for source in {pair.source for pair in pairs}
    }
    write_json(out / TRAINING, {**best.report, "source_counts": dict(sorted(counts.items()))})
    wait()
    if is_first():
        remove(checkpoints)
        with contextlib.suppress(OSError):  # another expert's are still in it
            checkpoints.parent.rmdir()
    report = best.report
    summary = {
        "pairs": report["pairs"], "steps": report["steps"], "final_loss": report["losses"][-1]["loss"],
        "learning_rate": best.learning_rate,
    }  # fmt: skip
    return summary if report["dev"] is None else summary | {"dev": report["dev"]["chosen"]}


def under_instructions(
    pairs: Sequence[TrainingPair], prompt: Mapping[str, Any], *, seed: int
) -> list[TrainingPair]:
    """Pairs with the instruction that they are trained under: their own where the seed instruction stayed."""
    if prompt["drawn_from"]:
        texts = drawn_for([pair.query for pair in pairs], prompt["drawn_from"], seed=seed)
        return [replace(pair, instruction=text) for pair, text in zip(pairs, texts, strict=True)]
    if prompt["instruction"] == prompt["seed_instruction"]:
        return list(pairs)
    return [replace(pair, instruction=prompt["instruction"]) for pair in pairs]
