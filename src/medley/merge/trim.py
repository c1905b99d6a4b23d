"""Which entries of an update a sparsifying method keeps: one bit an entry, found once for each density.

TIES keeps the largest magnitudes (arXiv 2306.01708), DARE a random share (2311.03099), breadcrumbs those between two
quantiles (2312.06795), DELLA a random share that favours large ranks (2406.11617); definitions as in mergekit. The
bits and one factor (rescaling, DARE) are all that a candidate needs besides the update itself, at a sixteenth of
the memory of the update in bfloat16.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from medley.errors import ModelError, RecipeError
from medley.merge.checkpoint import row_blocks

if TYPE_CHECKING:
    import torch

SAMPLED = 1 << 16
"""Entries from which a quantile is guessed before it is found exactly."""
LEAST_SUM = 1e-7
"""Sum of magnitudes below which nothing is rescaled (mergekit's)."""

Blocks = Callable[[], Iterable["torch.Tensor"]]
"""Gives a tensor's update in row blocks, anew at each call."""


@dataclass(frozen=True)
class TrimSettings:
    """How one expert's update is trimmed: mergekit's sparsification and its parameters."""

    kind: str
    density: float
    gamma: float = 0.0
    epsilon: float = 0.0
    rescale: bool = False
    seed: int = 0


@dataclass(frozen=True)
class Kept:
    """The kept entries as packed bits in flat order, and the factor on them."""

    bits: np.ndarray
    factor: float

    def apply(self, delta: torch.Tensor, first: int) -> torch.Tensor:
        """Zero what is not kept in a block whose first entry has flat index `first`; changes the block."""
        import torch

        last = first + delta.numel()
        unpacked = np.unpackbits(self.bits[first // 8 : -(-last // 8)])[first % 8 :][: delta.numel()]
        delta.mul_(torch.from_numpy(unpacked).view(delta.shape))
        return delta.mul_(self.factor) if self.factor != 1.0 else delta


def find_kept(settings: TrimSettings, blocks: Blocks, shape: Sequence[int]) -> Kept | None:
    """What is kept of an update; None where all of it is. Raises RecipeError where mergekit refuses."""
    if settings.density >= 1:
        return None
    count = math.prod(shape)
    if settings.kind == "magnitude":
        wanted = max(1, int(settings.density * count)) if settings.density > 0 else 0
        masks = _largest(blocks, count, wanted)
    elif settings.kind == "magnitude_outliers":
        wanted = int(settings.density * count)
        smallest = max(0, count - wanted - int(settings.gamma * count))
        masks = _between(blocks, count, count - smallest, count - smallest - wanted)
    elif settings.kind == "random":
        masks = _at_random(blocks, settings)
    elif settings.kind == "della_magprune":
        masks = _by_rank(blocks, settings, shape)
    else:
        raise RecipeError(f"mergekit's sparsification {settings.kind} is not known here; update Medley.")
    before = after = 0.0
    packed, rest = [], np.zeros(0, dtype=bool)
    for block, mask in masks:
        if settings.rescale:
            magnitude = block.abs()
            before += float(magnitude.sum(dtype=_float64()))
            after += float((magnitude * mask.reshape(block.shape)).sum(dtype=_float64()))
        bits = np.concatenate([rest, mask.numpy().ravel()])
        whole = len(bits) // 8 * 8
        packed.append(np.packbits(bits[:whole]))
        rest = bits[whole:]
    packed.append(np.packbits(rest))
    rescaled = settings.rescale and before >= LEAST_SUM and after >= LEAST_SUM
    return Kept(np.concatenate(packed), before / after if rescaled else 1.0)


Masks = Iterator[tuple["torch.Tensor", "torch.Tensor"]]
"""Blocks of an update with what is kept of each (bool, flat or of its shape)."""


def _largest(blocks: Blocks, count: int, wanted: int) -> Masks:
    """The `wanted` largest magnitudes; of equal ones at the threshold, the first in flat order."""
    import torch

    if not wanted:
        yield from ((block, torch.zeros(block.numel(), dtype=torch.bool)) for block in blocks())
        return
    threshold, ties, equals = order_statistic(blocks, count, wanted)
    for block in blocks():
        magnitude = block.abs().view(-1)
        if ties == equals:
            yield block, magnitude >= threshold
            continue
        mask, equal = magnitude > threshold, magnitude == threshold
        equal &= torch.cumsum(equal, 0) <= ties
        ties -= int(equal.sum())
        equals = -1  # the count is used up block by block
        yield block, mask | equal


def _between(blocks: Blocks, count: int, upper: int, lower: int) -> Masks:
    """The `upper` largest without the `lower` largest of them."""
    for (block, mask), (_, dropped) in zip(
        _largest(blocks, count, upper), _largest(blocks, count, lower), strict=True
    ):
        yield block, mask & ~dropped


def _at_random(blocks: Blocks, settings: TrimSettings) -> Masks:
    """Each entry with probability `density`, drawn as torch.bernoulli draws over the whole tensor."""
    import torch

    generator = torch.Generator().manual_seed(settings.seed)
    for block in blocks():
        chance = torch.full(block.shape, settings.density)
        yield block, torch.bernoulli(chance, generator=generator).bool()


def _by_rank(blocks: Blocks, settings: TrimSettings, shape: Sequence[int]) -> Masks:
    """Each entry with a probability that grows with its magnitude's rank in its row, density +- epsilon."""
    import torch

    low, high = settings.density - settings.epsilon, settings.density + settings.epsilon
    if settings.density > 0 and (low <= 0 or high >= 1):
        raise RecipeError(
            f"parameters.epsilon: density {settings.density} +- epsilon {settings.epsilon} must lie between 0 "
            "and 1; make epsilon smaller."
        )
    generator = torch.Generator().manual_seed(settings.seed)
    found = blocks() if len(shape) > 1 else [torch.cat(list(blocks())).view(1, -1)]  # a vector is one row
    for block in found:
        if settings.density <= 0:
            yield block, torch.zeros(block.numel(), dtype=torch.bool)
            continue
        rows = block if block.dim() > 1 else block.view(1, -1)
        ranks = rows.abs().argsort(dim=1).argsort(dim=1).float() + 1
        least, most = ranks.amin(dim=1, keepdim=True), ranks.amax(dim=1, keepdim=True)
        chance = low + ((ranks - least) / (most - least)).clamp(0, 1) * 2 * settings.epsilon
        yield block, torch.bernoulli(chance, generator=generator).bool()


def order_statistic(blocks: Blocks, count: int, place: int) -> tuple[float, int, int]:
    """The `place`-th largest magnitude (from 1), how many equal to it are among the `place` largest, and how many
    equal to it there are.

    Exact: a sample gives a range that the value should lie in, what lies above is counted, what lies inside is
    sorted; the range is widened until it holds the value. Raises ModelError where an entry is not a number.
    """
    stride = max(1, count // SAMPLED)
    sample = np.sort(np.concatenate([block.abs().numpy().ravel()[::stride] for block in blocks()]))[::-1]
    position, margin = place * len(sample) // count, len(sample) // 64 + 2
    while True:
        first, last = position - margin, position + margin
        high = np.float32(np.inf) if first < 0 else sample[first]
        low = np.float32(0.0) if last >= len(sample) else sample[last]
        above, inside = 0, []
        for block in blocks():
            magnitude = block.abs().numpy().ravel()
            above += int(np.count_nonzero(magnitude > high))
            inside.append(magnitude[(magnitude >= low) & (magnitude <= high)])
        within = np.concatenate(inside)
        if above < place <= above + len(within):
            rank = len(within) - (place - above)
            value = np.partition(within, rank)[rank]
            larger = above + int(np.count_nonzero(within > value))
            return float(value), place - larger, int(np.count_nonzero(within == value))
        if margin > count:
            raise ModelError("an expert's update is not a number in places; its weights are damaged.")
        margin *= 4


def trim_seed(seed: int, tensor: str, expert: int) -> int:
    """The seed of the random choice on one tensor of one expert: the same for every candidate."""
    return int.from_bytes(hashlib.sha256(f"{seed} {tensor} {expert}".encode()).digest()[:7], "little")


def flat_starts(shape: Sequence[int]) -> list[tuple[int, int, int]]:
    """Row blocks of a tensor with the flat index of each one's first entry: (start, stop, first)."""
    inner = math.prod(shape[1:])
    return [(start, stop, start * inner) for start, stop in row_blocks(shape)]


def _float64() -> torch.dtype:
    import torch

    return torch.float64
