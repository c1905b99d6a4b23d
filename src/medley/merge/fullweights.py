"""Candidates of any method in a retriever's own weights, streamed tensor by tensor and restored exactly."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from medley.encoder import Retriever
from medley.expert import Expert, base_tensors
from medley.merge.coefficients import Layout
from medley.merge.methods import merge_weights
from medley.merge.settings import MergeParameters


class FullWeights:
    """Merges into a retriever's weights; a context manager, leaving it restores them bit by bit."""

    def __init__(
        self,
        retriever: Retriever,
        experts: Sequence[Expert],
        *,
        method: str,
        parameters: MergeParameters,
        layout: Layout,
    ) -> None:
        self._retriever, self._experts, self._layout = retriever, tuple(experts), layout
        self._method, self._parameters = method, parameters
        self._base = {name: tensor.detach().clone() for name, tensor in base_tensors(retriever).items()}

    def apply(self, weights_KS: np.ndarray, *, density: Sequence[float] | None = None) -> None:
        """Put the merge with these weights (K, S) into the retriever."""
        self.restore()
        parameters = self._parameters
        if density is not None:
            parameters = parameters.model_copy(update={"density": tuple(density)})
        merge_weights(
            self._retriever, self._experts, weights_KS, method=self._method, parameters=parameters,
            layout=self._layout,
        )  # fmt: skip

    def restore(self) -> None:
        """Put the base's weights back."""
        import torch

        with torch.no_grad():
            for name, tensor in base_tensors(self._retriever).items():
                tensor.copy_(self._base[name])

    def __enter__(self) -> FullWeights:
        """The candidates themselves."""
        return self

    def __exit__(self, *_: object) -> None:
        """Restore the base."""
        self.restore()
