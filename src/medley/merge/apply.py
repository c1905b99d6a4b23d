"""The chosen merge, put into a retriever's own weights, and the vectors by which the export gate knows it.

In: base and experts opened, the method's weights. Out: the base changed for good, and what the model encodes as the
search scored it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from medley.backbone import backbone
from medley.encoder import Retriever
from medley.expert import Expert
from medley.merge.coefficients import Layout
from medley.merge.concatenated import ConcatenatedAdapter, dense_merge
from medley.merge.export import Probe, ProbeVectors, encode_probe
from medley.merge.fullweights import SettingsOf, merge_weights
from medley.merge.methods import is_linear_in_deltas
from medley.merge.settings import MergeParameters
from medley.merge.space import SearchSpace


def apply_weights(
    retriever: Retriever,
    experts: Sequence[Expert],
    weights_KS: np.ndarray,
    *,
    space: SearchSpace,
    parameters: MergeParameters,
    layout: Layout,
    probe: Probe,
    settings_of: SettingsOf | None = None,
) -> ProbeVectors:
    """Merge experts into the retriever's weights; give the probe's vectors of the model as a search scores it.

    `weights_KS` are the method's own weights (K experts, S segments); `space` says the method and what its weights
    mean. Sums of adapters are scored with the adapter attached, before it is folded in; every other merge as it stands
    in the weights, computed in float32. Raises RecipeError where the method refuses the experts or parameters.
    """
    if settings_of is None and is_linear_in_deltas(space.method, parameters, experts):
        effective_KS = space.effective(weights_KS)
        with ConcatenatedAdapter(retriever, experts, layout=layout) as adapter:
            adapter.set_coefficients(effective_KS)
            scored = encode_probe(retriever, probe)
        dense_merge(retriever, experts, effective_KS, layout=layout)
        return scored
    merge_weights(
        retriever, experts, weights_KS, method=space.method, parameters=parameters, layout=layout,
        settings_of=settings_of,
    )  # fmt: skip
    return encode_exactly(retriever, probe)


def encode_exactly(retriever: Retriever, probe: Probe) -> ProbeVectors:
    """The probe's vectors computed in float32, whatever dtype the weights are stored in; that stays."""
    import torch

    model = backbone(retriever)
    stored = next(model.parameters()).dtype
    model.to(torch.float32)  # exact, and so is the way back
    try:
        return encode_probe(retriever, probe)
    finally:
        model.to(stored)
