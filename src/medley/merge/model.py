"""From a merge file to a merged model: open base and experts, merge, export through the gate; or search
first.

The base is opened in float32, so that small deltas are scored and folded without rounding. A weighted sum of
adapters is attached for scoring and folded for saving, and the gate compares the two; any other method goes
through mergekit's kernels tensor by tensor.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from medley.collections import load_collection
from medley.encoder import Retriever
from medley.errors import RecipeError
from medley.expert import Expert, base_fingerprint, base_tensors, check_compatible, open_base, read_expert
from medley.fingerprint import fingerprint_file, fingerprint_folder
from medley.lowrank import backbone
from medley.merge.candidates import candidates
from medley.merge.coefficients import Layout, layer_cuts, weights_array
from medley.merge.concatenated import ConcatenatedAdapter, dense_merge, merge_adapters
from medley.merge.dev_pools import dev_pools, ranking_retrievers
from medley.merge.export import GateReport, Probe, ProbeVectors, encode_probe, export, model_card
from medley.merge.fullweights import merge_weights
from medley.merge.learned import Learnable
from medley.merge.methods import is_linear_in_deltas
from medley.merge.outcome import SearchResult
from medley.merge.pool import DevPool, PoolVectors, embed_pool
from medley.merge.search import search, store_folder
from medley.merge.settings import MergeFile, MergeParameters
from medley.merge.space import SearchSpace


@dataclass(frozen=True)
class Merge:
    """A merge file with its base and experts opened and checked."""

    file: MergeFile
    base: Retriever
    base_identity: str
    experts: tuple[Expert, ...]
    layout: Layout
    parameters: MergeParameters

    @property
    def is_adapter(self) -> bool:
        """Whether the merge is a weighted sum of adapters."""
        return is_linear_in_deltas(self.file.method, self.parameters, self.experts)

    def space(self) -> SearchSpace:
        """The candidates of the file's search."""
        if self.file.search is None:
            raise RecipeError("search: is missing; say the strategy, encodings and dev collections.")
        return search_space(self.file, self.layout.segment_count)


def search_space(file: MergeFile, segment_count: int) -> SearchSpace:
    """The candidates of a merge file with a search."""
    grid = file.search.grid if file.search is not None else ()
    scale = file.parameters.lambda_
    return SearchSpace(
        tuple(file.experts),
        grid,
        segment_count,
        file.method,
        file.parameters.normalize,
        1.0 if scale is None else scale,
    )


def open_merge(file: MergeFile, *, device: str | None = None) -> Merge:
    """Open and check what a merge file names.

    Raises ModelError when experts do not fit the base or one another, RecipeError when the file does not fit
    them.
    """
    names = list(file.experts)
    experts = tuple(read_expert(Path(path), name=name) for name, path in file.experts.items())
    base = open_base(
        file.base,
        experts,
        settings=file.retriever,
        instruction=file.instruction,
        dtype="float32",
        device=device,
    )
    identity = base_fingerprint(base)
    check_compatible(experts, base_identity=identity, same_template=file.templates == "same")
    tensors = base_tensors(base)
    cuts = layer_cuts(file.segments, int(backbone(base).config.num_hidden_layers))
    layout = Layout(cuts, kinds=file.kinds)
    if file.keep is not None:
        for part in file.keep.tensors:
            if not any(part in name for name in tensors):
                raise RecipeError(
                    f"keep.tensors: {part!r} is in no tensor's name of {file.base}; check its spelling."
                )
        kept_from = None if file.keep.source == "base" else names.index(file.keep.source)
        layout = Layout(cuts, file.keep.tensors, kept_from, file.kinds)
    parameters = file.parameters.in_order(names)
    if is_linear_in_deltas(file.method, parameters, experts):
        _check_parameters(file.method, parameters)
    elif file.output == "adapter":
        raise RecipeError(
            "output: an adapter can only be made of adapters; some experts are full checkpoints."
        )
    return Merge(file, base, identity, experts, layout, parameters)


def _check_parameters(method: str, parameters: MergeParameters) -> None:
    """Refuse parameters that the exact adapter merge would silently ignore."""
    allowed = {"normalize"} if method == "linear" else {"normalize", "lambda"}
    for key in parameters.given():
        if key not in allowed:
            raise RecipeError(f"parameters: a {method} merge of adapters has no {key}; remove it.")


def merge_model(
    file: MergeFile,
    folder: Path,
    *,
    probe: Probe | None = None,
    details: Mapping[str, Any] | None = None,
    device: str | None = None,
) -> GateReport | None:
    """What `medley merge` does: write the merged model (gated), or the merged adapter (then None is
    returned).

    `details` are further lines of the model card. Raises the errors of open_merge and export.
    """
    merge = open_merge(file, device=device)
    weights_KS = _weights(merge)
    if file.output == "adapter":
        effective_KS = search_space(file, merge.layout.segment_count).effective(weights_KS)
        merge_adapters(
            merge.experts,
            effective_KS,
            folder,
            layout=merge.layout,
            extra=provenance(merge) | {"base": file.base},
        )
        return None
    probe = probe or Probe()
    base = encode_probe(merge.base, probe)
    scored = apply_merge(merge, weights_KS, probe)
    backbone(merge.base).to(getattr(_torch(), file.dtype))
    card = model_card(
        folder.name, base=file.base, method=file.method, experts=_identities(merge),
        weights={name: merge.layout.flat(weight, name) for name, weight in file.weights.items()},
        details=dict(details or {}) | {"segments": merge.layout.segment_count},
    )  # fmt: skip
    return export(
        merge.base,
        folder,
        card=card,
        scored=scored,
        base=base,
        probe=probe,
        extra={"merge": provenance(merge)},
    )


def apply_merge(merge: Merge, weights_KS: np.ndarray, probe: Probe) -> ProbeVectors:
    """Merge into the weights of `merge.base`, and give the probe's vectors of the model as a search scores
    it."""
    if not merge.is_adapter:
        _merge_dense(merge, weights_KS)
        return encode_probe(merge.base, probe)
    effective_KS = search_space(merge.file, merge.layout.segment_count).effective(weights_KS)
    with ConcatenatedAdapter(merge.base, merge.experts, layout=merge.layout) as adapter:
        adapter.set_coefficients(effective_KS)
        scored = encode_probe(merge.base, probe)
    dense_merge(merge.base, merge.experts, effective_KS, layout=merge.layout)
    return scored


def _merge_dense(merge: Merge, weights_KS: np.ndarray) -> None:
    merge_weights(
        merge.base, merge.experts, weights_KS, method=merge.file.method, parameters=merge.parameters,
        layout=merge.layout,
    )  # fmt: skip


def _weights(merge: Merge) -> np.ndarray:
    """The file's weights; 1 each where the method takes none, an error where it does and none are given."""
    file = merge.file
    if file.weights:
        flat = {name: merge.layout.flat(weight, f"weights.{name}") for name, weight in file.weights.items()}
        return weights_array(flat, list(file.experts), merge.layout.segment_count)
    from mergekit import merge_methods

    if any(parameter.name == "weight" for parameter in merge_methods.get(file.method).spec.parameters):
        raise RecipeError("weights: are missing; give each expert one, or search for them with search-merge.")
    return np.ones((len(file.experts), merge.layout.segment_count))


def search_merge(
    file: MergeFile,
    pools: Sequence[DevPool] | None = None,
    *,
    device: str | None = None,
    unfinished: Path | None = None,
) -> SearchResult:
    """What `medley search-merge` does: score candidates on the pools in memory.

    Without `pools` they are made of the collections of `file.search.dev`. The folder `unfinished` keeps encodings, so
    that a search that was killed goes on where it was.
    """
    merge = open_merge(file, device=device)
    space = merge.space()
    assert file.search is not None  # space() raised otherwise
    model = merge.base.identity()  # before anything is attached: template, pooling and dtype are in it
    with candidates(
        merge.base, merge.experts, method=file.method, parameters=merge.parameters, layout=merge.layout
    ) as apply:
        if pools is None:
            collections = {spec: load_collection(spec, default_split="dev") for spec in file.search.dev}
            each = ranking_retrievers(apply, space.shape, file.search.rankers)
            pools = dev_pools(file.search, collections, retrievers=each, seed=file.search.seed)
        chosen = pools

        def embed(effective_KS: np.ndarray) -> list[PoolVectors]:
            retriever = apply(effective_KS)
            return [embed_pool(retriever, pool) for pool in chosen]

        store = None
        if unfinished is not None:
            made_of = {**provenance(merge), "weights": None}
            store = store_folder(unfinished, pools, space, model=model, made_of=made_of)
        learnable = Learnable(merge.base, merge.experts, merge.layout) if merge.is_adapter else None
        return search(embed, pools, space, file.search, store=store, learnable=learnable)


def provenance(merge: Merge) -> dict[str, Any]:
    """What medley.json keeps of a merge: enough to make it again."""
    file = merge.file
    return {
        "method": file.method,
        "weights": file.model_dump(mode="json")["weights"],
        "cuts": list(merge.layout.cuts),
        "kinds": list(merge.layout.kinds),
        "parameters": merge.parameters.given(),
        "keep": None if file.keep is None else file.keep.model_dump(mode="json", by_alias=True),
        "base": file.base,
        "base_identity": merge.base_identity,
        "experts": _identities(merge),
    }


def _identities(merge: Merge) -> dict[str, str]:
    return {expert.name: _identity(expert) for expert in merge.experts}


def _identity(expert: Expert) -> str:
    weights = expert.path / "adapter_model.safetensors"
    return fingerprint_file(weights) if weights.is_file() else fingerprint_folder(expert.path)


def _torch() -> Any:
    import torch

    return torch
