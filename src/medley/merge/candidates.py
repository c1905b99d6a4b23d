"""Merge candidates in memory: put one into a retriever, then the next, and leave the retriever as it was.

    with candidates(retriever, experts, method="ties", parameters=parameters, layout=layout) as apply:
        for weights_KS in ...:
            vectors = encode_queries(apply(weights_KS), texts)

A weighted sum of adapters is a rescale of one concatenated adapter (concatenated.py); every other merge is
streamed into the weights tensor by tensor (fullweights.py). Each candidate starts from the base's own weights,
never from the last candidate, so nothing drifts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

import numpy as np

from medley.encoder import Retriever
from medley.expert import Expert
from medley.merge.coefficients import Layout
from medley.merge.concatenated import ConcatenatedAdapter
from medley.merge.fullweights import FullWeights
from medley.merge.methods import is_linear_in_deltas, sums_deltas
from medley.merge.settings import MergeParameters


class Apply(Protocol):
    """Puts a candidate into the retriever, and gives the retriever."""

    def __call__(self, coefficients_KS: np.ndarray, *, density: Sequence[float] | None = None) -> Retriever:
        """Coefficients as SearchSpace.effective gives them: of the deltas for linear and task arithmetic
        (normalised or scaled already), the method's own weights otherwise. `density`, one an expert, replaces the
        parameters'; only for methods that have one.
        """


@contextmanager
def candidates(
    retriever: Retriever,
    experts: Sequence[Expert],
    *,
    method: str,
    parameters: MergeParameters,
    layout: Layout | None = None,
) -> Iterator[Apply]:
    """A function that puts candidates into the retriever; leaving restores its weights bit by bit."""
    layout = layout or Layout()
    if is_linear_in_deltas(method, parameters, experts):
        with ConcatenatedAdapter(retriever, experts, layout=layout) as adapter:

            def rescaled(coefficients_KS: np.ndarray, *, density: Sequence[float] | None = None) -> Retriever:
                if density is not None:
                    raise ValueError(f"{method} has no density")
                adapter.set_coefficients(coefficients_KS)
                return retriever

            yield rescaled
        return
    if sums_deltas(method, parameters):  # the coefficients are normalised and scaled already
        method, parameters = "task_arithmetic", MergeParameters(seed=parameters.seed)  # type: ignore[call-arg]
    with FullWeights(retriever, experts, method=method, parameters=parameters, layout=layout) as weights:

        def merged(coefficients_KS: np.ndarray, *, density: Sequence[float] | None = None) -> Retriever:
            weights.apply(coefficients_KS, density=density)
            return retriever

        yield merged
