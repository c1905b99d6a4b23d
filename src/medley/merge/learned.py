"""Learned coefficients: the gradient of the contrastive loss on dev, with respect to the coefficients only.

The experts' deltas are attached as one adapter (concatenated.py) whose scales are a differentiable function of K x S
weights; everything else stays fixed. For a batch of the search queries, each with one relevant passage and passages
that the base ranks high without their being relevant,

    loss = InfoNCE(cosine / temperature) + penalty * variance of the weights around their mean

so the weights stay uniform where dev says little. A text forward and backward counts as three encoded texts. Measured
at the end: the uniform start, the mean of the second half of the path (Polyak and Juditsky 1992), and its last point.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from medley.backbone import backbone
from medley.encoder import Retriever, encode_with_gradient
from medley.errors import DivergedError, RecipeError
from medley.expert import Expert
from medley.finite import is_finite
from medley.lowrank import attached
from medley.merge.coefficients import Layout
from medley.merge.pool import DevPool, PoolVectors
from medley.merge.settings import SearchSettings
from medley.merge.space import SearchSpace
from medley.merge.trials import Trials

if TYPE_CHECKING:
    import torch

BATCH = 16
NEGATIVES = 2
TEMPERATURE = 0.05
RATE = 0.05
"""Of Adam: how far a weight moves in a step, at most."""
BACKWARD = 3
"""What a text forward and backward costs, in texts encoded."""
MEASURED = 3
HARD = 10
"""Ranks of the base from which negatives are drawn."""


@dataclass(frozen=True)
class Learnable:
    """A retriever with the experts' concatenated adapter attached, and which coefficients a layer gets."""

    retriever: Retriever
    experts: Sequence[Expert]
    layout: Layout


@dataclass(frozen=True)
class _Question:
    """A query with its relevant passages and hard negatives, as columns of its pool."""

    pool: DevPool
    row: int
    relevant: tuple[int, ...]
    hard: tuple[int, ...]


def learned_search(trials: Trials, settings: SearchSettings, learnable: Learnable | None) -> None:
    """Learn weights within the budget and measure them.

    Raises RecipeError where the merge is no weighted sum of adapters, or the budget leaves no step; DivergedError where
    loss or gradient is not a finite number.
    """
    import torch

    space = trials.space
    if learnable is None or not space.sums_deltas:
        raise RecipeError(
            "search.strategy: learned needs a merge that adds adapters' deltas (linear or task_arithmetic of "
            "adapters); use surrogate, tpe or cmaes."
        )
    generator = np.random.default_rng(settings.seed)
    questions = _questions(trials, trials.vectors(np.zeros(space.shape)))
    texts = sum(len(pool.queries) + len(pool.passages) for pool in trials.pools)
    batch = min(BATCH, len(questions))
    step_cost = BACKWARD * batch * (2 + NEGATIVES) / texts
    steps = int((trials.left - MEASURED) / step_cost)
    if steps < 1 or batch < 2:
        raise RecipeError(
            f"search: learning needs at least 2 queries and {MEASURED + 1 + int(np.ceil(step_cost))} encodings, the "
            f"budget is {trials.budget}; raise `encodings`."
        )
    weights_KS = torch.tensor(space.uniform(), dtype=torch.float32, requires_grad=True)
    optimiser = torch.optim.Adam([weights_KS], lr=RATE)
    path = []
    with _scales(learnable) as set_scales:
        for step in range(steps):
            for group in optimiser.param_groups:
                group["lr"] = RATE * (1 - step / steps)
            set_scales(_effective(weights_KS, space))
            chosen = [questions[i] for i in generator.choice(len(questions), batch, replace=False)]
            loss = _loss(learnable.retriever, chosen, generator)
            loss = loss + settings.penalty * (weights_KS - weights_KS.mean()).square().mean()
            optimiser.zero_grad()
            loss.backward()
            assert weights_KS.grad is not None
            if not (is_finite(loss) and is_finite(weights_KS.grad)):
                raise DivergedError(
                    f"search.strategy: learned gives a loss or gradient that is no finite number at step {step + 1} of "
                    f"{steps}; merge in float32, use a grid with smaller values, or another strategy."
                )
            optimiser.step()
            with torch.no_grad():
                weights_KS.clamp_(min(space.grid), max(space.grid))
            path.append(weights_KS.detach().numpy().astype(np.float64).copy())
    trials.charge(steps * step_cost)
    for found_KS in (space.uniform(), np.mean(path[len(path) // 2 :], axis=0), path[-1]):
        if space.valid(found_KS):
            trials.measure(np.round(found_KS, 6))


def _effective(weights_KS: torch.Tensor, space: SearchSpace) -> torch.Tensor:
    """`SearchSpace.effective` of a tensor, for sums of deltas."""
    normalised = space.method == "linear" if space.normalize is None else space.normalize
    scale = 1.0 if space.method == "linear" else space.scale
    return scale * (weights_KS / weights_KS.sum(dim=0) if normalised else weights_KS)


@contextmanager
def _scales(learnable: Learnable) -> Iterator:  # type: ignore[type-arg]
    """A function that makes the attached layers' scales depend on coefficients (K, S); leaving puts them back."""
    import torch

    modules = dict(backbone(learnable.retriever).named_modules())
    layers = {name: modules[name] for name in attached(learnable.retriever)}
    before = {name: module.medley_scale for name, module in layers.items()}
    experts, layout = learnable.experts, learnable.layout
    names = [f"{name}.weight" for name in layers]
    # which coefficients a layer gets is linear in them: read it off the layout once, by unit coefficients
    shape = (len(experts), layout.segment_count)
    picks: dict[str, list[tuple[int, float]]] = {}
    for name in names:
        picks[name] = []
        for k in range(shape[0]):
            unit_KS = np.zeros(shape)
            hits = []
            for s in range(shape[1]):
                unit_KS[k, s] = 1.0
                hits.append(layout.of_tensor(name, unit_KS)[k])
                unit_KS[k, s] = 0.0
            picks[name].append((int(np.argmax(hits)), float(max(hits))))

    def set_scales(coefficients_KS: torch.Tensor) -> None:
        for name, module in layers.items():
            parts = [
                expert.layers[name].scale.float().to(before[name].device)
                * coefficients_KS[k, picks[f"{name}.weight"][k][0]]
                * picks[f"{name}.weight"][k][1]
                for k, expert in enumerate(experts)
                if name in expert.layers
            ]
            module.medley_scale = torch.cat(parts).to(before[name].dtype)

    requires = {parameter: parameter.requires_grad for parameter in learnable.retriever.model.parameters()}
    try:
        for parameter in requires:
            parameter.requires_grad_(False)
        yield set_scales
    finally:
        for parameter, required in requires.items():
            parameter.requires_grad_(required)
        for name, module in layers.items():
            module.medley_scale = before[name]


def _questions(trials: Trials, base: Sequence[PoolVectors]) -> list[_Question]:
    """The search queries with what is relevant to them and what the base takes for it."""
    questions = []
    for pool, vectors in zip(trials.pools, base, strict=True):
        columns = {passage.id: column for column, passage in enumerate(pool.passages)}
        for row in np.flatnonzero(trials.searched[pool.name]):
            grades = pool.judgements[pool.query_ids[row]]
            relevant = tuple(columns[passage] for passage, grade in grades.items() if grade > 0)
            ranked = np.argsort(-(vectors.passages @ vectors.queries[row]), kind="stable")
            hard = [int(column) for column in ranked[: HARD + len(relevant)] if column not in relevant]
            questions.append(_Question(pool, int(row), relevant, tuple(hard[:HARD])))
    return questions


def _loss(
    retriever: Retriever, questions: Sequence[_Question], generator: np.random.Generator
) -> torch.Tensor:
    """InfoNCE of a batch over its positives and hard negatives; other relevant passages of a query do not count."""
    import torch

    queries: dict[str | None, list[int]] = {}
    for index, question in enumerate(questions):
        queries.setdefault(question.pool.instruction, []).append(index)
    vectors_BH: list[torch.Tensor] = [torch.empty(0)] * len(questions)
    for instruction, indices in queries.items():
        texts = [questions[index].pool.queries[questions[index].row] for index in indices]
        encoded = encode_with_gradient(
            retriever, texts, task="query", prompt=retriever.query_prompt(instruction)
        )
        for index, vector in zip(indices, encoded, strict=True):
            vectors_BH[index] = vector
    picked = [int(generator.choice(question.relevant)) for question in questions]
    passages = [(question.pool, column) for question, column in zip(questions, picked, strict=True)]
    for question in questions:
        count = min(NEGATIVES, len(question.hard))
        passages += [(question.pool, int(c)) for c in generator.choice(question.hard, count, replace=False)]
    texts = [pool.passages[column].full_text for pool, column in passages]
    passages_NH = encode_with_gradient(retriever, texts, task="document", prompt=retriever.document_prompt)
    queries_BH = torch.nn.functional.normalize(torch.stack(vectors_BH), dim=-1)
    scores_BN = queries_BH @ torch.nn.functional.normalize(passages_NH, dim=-1).T / TEMPERATURE
    also_relevant_BN = torch.tensor(
        [
            [
                index != own and pool is question.pool and column in question.relevant
                for index, (pool, column) in enumerate(passages)
            ]
            for own, question in enumerate(questions)
        ]
    ).to(scores_BN.device)
    targets_B = torch.arange(len(questions), device=scores_BN.device)
    return torch.nn.functional.cross_entropy(
        scores_BN.masked_fill(also_relevant_BN, float("-inf")), targets_B
    )
