"""Numbers that have to be finite: the weights of a model that is opened or written, and vectors.

A value that is NaN or infinite in one rare token's embedding shows in no score until that token comes; so every tensor
is looked at, in one pass that keeps nothing (0.2 s a gigabyte on one core).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from medley.errors import ModelError, VectorError

if TYPE_CHECKING:
    import numpy as np
    import torch


def is_finite(tensor: torch.Tensor) -> bool:
    """Whether a tensor holds neither NaN nor infinity; one of whole numbers always."""
    import torch

    if not tensor.is_floating_point() or not tensor.numel():
        return True
    # the smallest and the largest value: NaN is passed on, and no mask as large as the tensor is made
    ends = torch.aminmax(tensor.detach() if tensor.element_size() > 1 else tensor.detach().float())
    return bool(torch.isfinite(ends.min) & torch.isfinite(ends.max))


def check_finite(tensors: Iterable[tuple[str, torch.Tensor]], where: str) -> None:
    """Refuse a model of which a tensor is not finite. Raises ModelError naming `where`, the tensor and how many values.

    In float16 a number past 65,504 becomes infinite, so there the dtype may be the cause.
    """
    for name, tensor in tensors:
        if not is_finite(tensor):
            raise ModelError(f"{where}: {not_finite_in_words(name, tensor)}.")


def not_finite_in_words(name: str, tensor: torch.Tensor) -> str:
    """What is wrong with a tensor that is not finite, and what to do."""
    import torch

    count = int((~torch.isfinite(tensor.float())).sum())
    dtype = str(tensor.dtype).removeprefix("torch.")
    remedy = (
        "it is damaged or its training diverged: take another copy, or train again with a lower learning rate"
    )
    if dtype == "float16":
        remedy += "; or its numbers are too large for float16 (past 65,504): use bfloat16 or float32"
    return f"tensor {name} has NaN or infinity in {count:,} of its {tensor.numel():,} numbers ({dtype}); {remedy}"


def check_vectors(vectors_NH: np.ndarray, texts: Sequence[str]) -> np.ndarray:
    """Which vectors (N,) are zero. Raises VectorError with the first text whose vector is not finite."""
    import numpy as np

    squares_N = np.einsum("nh,nh->n", vectors_NH, vectors_NH)  # one pass, and no mask as large as the vectors
    if np.isfinite(squares_N).all():
        return squares_N == 0
    wrong = np.flatnonzero(~np.isfinite(squares_N))
    raise VectorError(
        f"the model gives vectors that are not finite numbers to {len(wrong):,} of {len(texts):,} texts, the first "
        f"being {texts[wrong[0]][:80]!r}; its training diverged, its weights are damaged, or its dtype overflows: load "
        "it in float32, or train it again with a lower learning rate.",
        texts[wrong[0]],
    )
