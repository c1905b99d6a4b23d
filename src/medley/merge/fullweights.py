"""Merges in a retriever's own weights, a few rows at a time: one that stays, or candidates that leave no trace.

Weights are stored in the retriever's dtype and computed in float32. Candidates start from a copy of the base's
weights in that dtype, so memory is two models and some rows whatever the number of experts: full checkpoints are
read from their files at each candidate, and what trimming keeps is held as bits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from medley.backbone import base_tensors
from medley.encoder import Retriever
from medley.expert import Expert
from medley.merge.checkpoint import row_count
from medley.merge.coefficients import Layout
from medley.merge.methods import KeptEntries, TensorMerge, merge_tensor
from medley.merge.settings import MergeParameters
from medley.merge.sources import BaseRows, Source, open_sources

if TYPE_CHECKING:
    import torch

SettingsOf = Callable[[str], tuple[np.ndarray, MergeParameters]]
"""Weights (K,) and parameters of a tensor, where they follow neither segments nor kinds."""


@dataclass(frozen=True)
class Streamed:
    """A merge of opened experts, tensor by tensor."""

    method: str
    parameters: MergeParameters
    layout: Layout
    sources: Sequence[Source]
    kept: KeptEntries = field(default_factory=KeptEntries)
    settings_of: SettingsOf | None = None

    def rows(
        self, tensor: str, shape: Sequence[int], base: BaseRows, weights_KS: np.ndarray
    ) -> Iterator[tuple[int, int, torch.Tensor]] | None:
        """The merged rows of a tensor as (start, stop, rows); None where the base's stays as it is."""
        shape = tuple(shape)
        if self.layout.keeps(tensor):
            return self._unmerged(tensor, shape, base)
        segment = self.layout.segment(tensor)
        if segment is None:
            return None
        weights, parameters = weights_KS[:, segment], self.parameters
        if self.settings_of is not None:
            weights, parameters = self.settings_of(tensor)
        if not weights.any():
            return None
        merge = TensorMerge(tensor, shape, base, self.sources, weights, parameters)
        scales_base = self.method == "linear" and parameters.normalize is False
        touched = any(source.changes(tensor) for source in self.sources)
        return merge_tensor(self.method, merge, self.kept) if touched or scales_base else None

    def _unmerged(
        self, tensor: str, shape: tuple[int, ...], base: BaseRows
    ) -> Iterator[tuple[int, int, torch.Tensor]] | None:
        if self.layout.kept_from is None or not self.sources[self.layout.kept_from].changes(tensor):
            return None
        alone_K = np.zeros(len(self.sources))
        alone_K[self.layout.kept_from] = 1.0
        merge = TensorMerge(tensor, shape, base, self.sources, alone_K, MergeParameters(seed=0))
        return merge_tensor("task_arithmetic", merge, self.kept)


def merge_weights(
    retriever: Retriever,
    experts: Sequence[Expert],
    weights_KS: np.ndarray,
    *,
    method: str,
    parameters: MergeParameters,
    layout: Layout | None = None,
    settings_of: SettingsOf | None = None,
) -> None:
    """Merge experts into the retriever's weights by a mergekit method; changes the retriever.

    `weights_KS` are the method's own weights, one per expert and segment; `settings_of` replaces them and the
    parameters. Raises RecipeError when the method
    refuses the experts or parameters, ModelError when an expert's tensors do not fit the base.
    """
    tensors = base_tensors(retriever)
    with open_sources(experts) as sources:
        merge = Streamed(method, parameters, layout or Layout(), sources, settings_of=settings_of)
        _merge_into(tensors, tensors, merge, weights_KS, once=True)


def _merge_into(
    target: Mapping[str, torch.Tensor],
    base: Mapping[str, torch.Tensor],
    merge: Streamed,
    weights_KS: np.ndarray,
    *,
    once: bool = False,
) -> set[str]:
    """Write the merge into the target's tensors; the names of those written. The base may be the target: a row
    is written after all that is computed from it."""
    import torch

    written = set()
    with torch.no_grad():
        for name, tensor in target.items():
            rows = merge.rows(name, tensor.shape, rows_of(base[name]), weights_KS)
            if rows is not None:
                written.add(name)
                whole = tensor.detach().view(row_count(tensor.shape), *tensor.shape[1:])
                for start, stop, merged in rows:
                    whole[start:stop].copy_(merged.view(stop - start, *tensor.shape[1:]))
                if once:
                    merge.kept.forget()
    return written


def rows_of(tensor: torch.Tensor) -> BaseRows:
    """A tensor in memory as rows in float32."""
    whole = tensor.detach().view(row_count(tensor.shape), *tensor.shape[1:])
    return lambda start, stop: whole[start:stop].float().cpu()


class FullWeights:
    """Candidates in a retriever's weights; a context manager, leaving it restores them bit by bit."""

    def __init__(
        self,
        retriever: Retriever,
        experts: Sequence[Expert],
        *,
        method: str,
        parameters: MergeParameters,
        layout: Layout,
    ) -> None:
        self._tensors = base_tensors(retriever)
        self._base = {name: tensor.detach().clone() for name, tensor in self._tensors.items()}
        self._changed: set[str] = set()
        self._open = ExitStack()
        sources = self._open.enter_context(open_sources(experts))
        self._merge = Streamed(method, parameters, layout, sources)

    def apply(self, weights_KS: np.ndarray, *, density: Sequence[float] | None = None) -> None:
        """Put the merge with these weights (K, S), and densities (K,), into the retriever."""
        merge = self._merge
        if density is not None:
            parameters = merge.parameters.model_copy(update={"density": tuple(density)})
            merge = Streamed(merge.method, parameters, merge.layout, merge.sources, merge.kept)
        before, self._changed = self._changed, set(self._tensors)  # all, should it fail half-way
        written = _merge_into(self._tensors, self._base, merge, weights_KS)
        self._put_back(before - written)  # where this candidate leaves the base's weights
        self._changed = written

    def restore(self) -> None:
        """Put the base's weights back."""
        self._put_back(self._changed)
        self._changed = set()

    def _put_back(self, names: set[str]) -> None:
        import torch

        with torch.no_grad():
            for name in names:
                self._tensors[name].copy_(self._base[name])

    def close(self) -> None:
        """Restore the base and close the experts' files."""
        self.restore()
        self._open.close()

    def __enter__(self) -> FullWeights:
        """The candidates themselves."""
        return self

    def __exit__(self, *_: object) -> None:
        """Restore the base."""
        self.close()
