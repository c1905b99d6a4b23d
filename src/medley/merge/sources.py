"""Where the experts' updates come from, by rows: low-rank factors, a checkpoint's files, or either shrunk.

`delta` is theta_k - theta_0 in float32 on rows of one tensor; None says that the expert leaves it as it is. Nothing
is kept between calls but file handles and what shrinking knows of a tensor (two numbers).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from medley.expert import Expert
from medley.lowrank import LowRank
from medley.merge.checkpoint import Checkpoint, row_blocks

if TYPE_CHECKING:
    import torch

PARALLEL = 0.9995
"""Cosine beyond which two tensors are interpolated linearly, as in mergekit's SLERP."""
SMALLEST_NORM = 1e-8


class BaseRows(Protocol):
    """The base's rows [start, stop) of a tensor, in float32."""

    def __call__(self, start: int, stop: int, /) -> torch.Tensor:
        """The rows."""


class Source(Protocol):
    """An expert's update of any tensor."""

    def delta(
        self, tensor: str, shape: Sequence[int], base: BaseRows, start: int, stop: int
    ) -> torch.Tensor | None:
        """Its update of rows [start, stop) in float32; None where it has none for this tensor."""

    def changes(self, tensor: str) -> bool:
        """Whether it has an update of a tensor."""


@dataclass(frozen=True)
class AdapterSource:
    """The update of a LoRA adapter, B diag(scale) A by rows of B."""

    expert: Expert

    def delta(
        self, tensor: str, shape: Sequence[int], base: BaseRows, start: int, stop: int
    ) -> torch.Tensor | None:
        """Its update of rows [start, stop)."""
        layer: LowRank | None = self.expert.layers.get(tensor.removesuffix(".weight"))
        if layer is None:
            return None
        return (layer.up[start:stop].float() * layer.scale.float()) @ layer.down.float()

    def changes(self, tensor: str) -> bool:
        """Whether the adapter has a layer of that name."""
        return tensor.removesuffix(".weight") in self.expert.layers


@dataclass(frozen=True)
class CheckpointSource:
    """The difference of a checkpoint to the base."""

    checkpoint: Checkpoint

    def delta(
        self, tensor: str, shape: Sequence[int], base: BaseRows, start: int, stop: int
    ) -> torch.Tensor | None:
        """Its difference to the base on rows [start, stop)."""
        import torch

        rows = self.checkpoint.rows(self.checkpoint.stored(tensor, shape), start, stop).float()
        return torch.sub(rows, base(start, stop), out=rows)

    def changes(self, tensor: str) -> bool:
        """A checkpoint has every tensor."""
        return True


@dataclass(frozen=True)
class ShrunkSource:
    """An expert moved toward the base along the arc between them: SLERP from it to the base at `ratio`.

    That is a theta_0 + b theta_k for two numbers of each tensor, so the update is b delta_k + (a + b - 1) theta_0.
    Where the two are almost parallel (small updates) it is (1 - ratio) delta_k.
    """

    source: Source
    ratio: float
    known: dict[str, tuple[float, float]] = field(default_factory=dict)

    def delta(
        self, tensor: str, shape: Sequence[int], base: BaseRows, start: int, stop: int
    ) -> torch.Tensor | None:
        """The shrunk update of rows [start, stop)."""
        delta = self.source.delta(tensor, shape, base, start, stop)
        if delta is None:
            return None
        if tensor not in self.known:
            self.known[tensor] = arc_coefficients(self.source, tensor, shape, base, self.ratio)
        of_base, of_expert = self.known[tensor]
        excess = of_base + of_expert - 1.0
        delta = delta * of_expert
        return delta.add_(base(start, stop), alpha=excess) if excess else delta

    def changes(self, tensor: str) -> bool:
        """Whether the expert has an update of a tensor."""
        return self.source.changes(tensor)


def arc_coefficients(
    source: Source, tensor: str, shape: Sequence[int], base: BaseRows, ratio: float
) -> tuple[float, float]:
    """The factors (of the base, of the expert) of SLERP from the expert to the base at `ratio`.

    sin(ratio w) / sin w and sin((1 - ratio) w) / sin w with w the angle between the tensors (Shoemake 1985,
    section 3.3), computed as mergekit does: linear beyond a cosine of 0.9995. Sums in float64.
    """
    dot = base_square = expert_square = 0.0
    for start, stop in row_blocks(shape):
        rows = base(start, stop).double()
        delta = source.delta(tensor, shape, base, start, stop)
        expert = rows if delta is None else rows + delta
        dot += float((rows * expert).sum())
        base_square += float(rows.square().sum())
        expert_square += float(expert.square().sum())
    norms = [math.sqrt(square) for square in (base_square, expert_square)]
    norms = [norm if norm > SMALLEST_NORM else 1.0 for norm in norms]
    cosine = max(-1.0, min(1.0, dot / (norms[0] * norms[1])))
    if abs(cosine) > PARALLEL:
        return ratio, 1.0 - ratio
    angle = math.acos(cosine)
    return math.sin(ratio * angle) / math.sin(angle), math.sin((1.0 - ratio) * angle) / math.sin(angle)


@contextmanager
def open_sources(experts: Sequence[Expert]) -> Iterator[tuple[Source, ...]]:
    """The experts' updates, each shrunk by the expert's `shrink`; leaving closes their files."""
    checkpoints = {
        index: Checkpoint(expert.path, name=expert.name)
        for index, expert in enumerate(experts)
        if not expert.is_adapter
    }
    sources: list[Source] = []
    for index, expert in enumerate(experts):
        source: Source = AdapterSource(expert) if expert.is_adapter else CheckpointSource(checkpoints[index])
        sources.append(ShrunkSource(source, expert.shrink) if expert.shrink else source)
    try:
        yield tuple(sources)
    finally:
        for checkpoint in checkpoints.values():
            checkpoint.close()
