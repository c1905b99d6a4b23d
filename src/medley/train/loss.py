"""The contrastive loss as a function of embeddings: no model, no tokens, no devices.

loss_q = -log( exp(s(q, p_q) / t) / sum over the passages x that q sees of exp(s(q, x) / t) )

InfoNCE over cosine similarities s at temperature t; the mean over queries. A query sees its positive, the other
queries' positives and the batch's explicit negatives (or of these only its own), without what is known or suspected
to be relevant to it. Axis letters: T texts of the batch, Q queries, D passages, N own negatives, K hidden passages, H.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import torch

SCORES = 2**20
"""Scores that are in memory at a time."""


@dataclass(frozen=True)
class Contrast:
    """Who is compared with whom in one batch; int64, bool for `is_positive_D`.

    `query_Q` and `passage_D` are rows of the embeddings, the others columns of the score matrix. A row of `own_QN`
    (its explicit negatives) or `hidden_QK` (passages that are no negatives for this query) that is shorter than
    the longest is filled up with D. Each passage stands in `passage_D` once.
    """

    query_Q: torch.Tensor
    passage_D: torch.Tensor
    positive_Q: torch.Tensor
    own_QN: torch.Tensor
    hidden_QK: torch.Tensor
    is_positive_D: torch.Tensor


@dataclass(frozen=True)
class InfoNCE:
    """The loss's own settings.

    `margin`: passages of other queries that score above the positive by more than it are left out, as in Qwen3
    Embedding (arXiv 2506.05176, section 3, equation 2); None leaves all in. `dims`: also computed on the first so
    many dimensions, renormalised, and averaged with the full size (Matryoshka, arXiv 2205.13147).
    """

    temperature: float
    hard_negatives: Literal["all", "own"] = "all"
    margin: float | None = None
    dims: tuple[int, ...] = ()


def loss_and_gradient(
    embeddings_TH: torch.Tensor, contrast: Contrast, settings: InfoNCE, *, rows: int | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """The loss (a float32 scalar without a graph) and its gradient by the embeddings, float32 of shape (T, H).

    The score matrix is never in memory as a whole: `rows` queries at a time, or as many as give SCORES scores.
    """
    import torch

    rows = rows or max(1, SCORES // len(contrast.passage_D))
    with torch.enable_grad():
        leaf_TH = embeddings_TH.detach().float().requires_grad_()
        sides = [_sides(leaf_TH, contrast, dim) for dim in _sizes(settings, leaf_TH.shape[1])]
        cut = [
            (queries.detach().requires_grad_(), passages.detach().requires_grad_())
            for queries, passages in sides
        ]
        total = leaf_TH.new_zeros(())
        for begin in range(0, len(contrast.query_Q), rows):
            part = _loss_of_rows(cut, contrast, settings, begin, begin + rows)
            part.backward()
            total += part.detach()
        tensors = [tensor for pair in sides for tensor in pair]
        torch.autograd.backward(tensors, [tensor.grad for pair in cut for tensor in pair])
    assert leaf_TH.grad is not None
    return total, leaf_TH.grad


def contrastive_loss(embeddings_TH: torch.Tensor, contrast: Contrast, settings: InfoNCE) -> torch.Tensor:
    """The same number in one piece, differentiable by the embeddings: what the rows of `loss_and_gradient` sum to."""
    sides = [_sides(embeddings_TH.float(), contrast, dim) for dim in _sizes(settings, embeddings_TH.shape[1])]
    return _loss_of_rows(sides, contrast, settings, 0, len(contrast.query_Q))


def _sizes(settings: InfoNCE, full: int) -> list[int]:
    """The sizes a vector is compared at, the full one first."""
    return [full, *sorted({dim for dim in settings.dims if dim < full}, reverse=True)]


def _sides(embeddings_TH: torch.Tensor, contrast: Contrast, dim: int) -> tuple[torch.Tensor, torch.Tensor]:
    import torch

    unit_TH = torch.nn.functional.normalize(embeddings_TH[:, :dim], dim=-1)
    return unit_TH[contrast.query_Q], unit_TH[contrast.passage_D]


def _loss_of_rows(
    sides: list[tuple[torch.Tensor, torch.Tensor]],
    contrast: Contrast,
    settings: InfoNCE,
    begin: int,
    end: int,
) -> torch.Tensor:
    """The share of queries `begin` to `end` in the mean loss over all queries and sizes."""
    import torch

    total: torch.Tensor | None = None
    unseen_RD: torch.Tensor | None = None
    positive_R1 = contrast.positive_Q[begin:end, None]
    for queries_QH, passages_DH in sides:
        scores_RD = queries_QH[begin:end] @ passages_DH.T
        if unseen_RD is None:  # the full size comes first and decides for all
            unseen_RD = _unseen(scores_RD.detach(), positive_R1, contrast, settings, begin, end)
        logits_RD = (scores_RD / settings.temperature).masked_fill(unseen_RD, -torch.inf)
        loss = (torch.logsumexp(logits_RD, dim=1) - logits_RD.gather(1, positive_R1)[:, 0]).sum()
        total = loss if total is None else total + loss
    assert total is not None
    return total / (len(sides) * len(contrast.query_Q))


def _unseen(
    scores_RD: torch.Tensor,
    positive_R1: torch.Tensor,
    contrast: Contrast,
    settings: InfoNCE,
    begin: int,
    end: int,
) -> torch.Tensor:
    """True where a passage does not count for a query; never its positive."""
    own_RD = _marked(contrast.own_QN[begin:end], scores_RD)
    unseen_RD = _marked(contrast.hidden_QK[begin:end], scores_RD)
    if settings.hard_negatives == "own":
        unseen_RD = unseen_RD | ~(own_RD | contrast.is_positive_D)
    if settings.margin is not None:
        limit_R1 = scores_RD.gather(1, positive_R1) + settings.margin
        unseen_RD = unseen_RD | ((scores_RD > limit_R1) & ~own_RD)
    return unseen_RD.scatter(1, positive_R1, False)


def _marked(columns_RK: torch.Tensor, scores_RD: torch.Tensor) -> torch.Tensor:
    """A mask of the scores' shape that is True in the columns named; D names none."""
    import torch

    rows, count = scores_RD.shape
    mask = torch.zeros(rows, count + 1, dtype=torch.bool, device=scores_RD.device)
    return mask.scatter_(1, columns_RK, True)[:, :count]
