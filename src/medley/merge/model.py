"""From a merge file to a merged model: merge, export through the gate; or search first.

A weighted sum of adapters is attached for scoring and folded for saving, and the gate compares the two; any other
merge is streamed into the base's weights (fullweights.py), or from files to files (stream.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from medley.backbone import backbone
from medley.errors import ModelError, RecipeError
from medley.expert import Expert, read_expert
from medley.files import read_json, writing
from medley.fingerprint import fingerprint_file, fingerprint_folder
from medley.leaks.chosen import ChosenOn, as_extra, read_chosen
from medley.leaks.dev import open_dev
from medley.lowrank import attach, detach
from medley.merge.apply import apply_weights, encode_exactly
from medley.merge.candidates import candidates
from medley.merge.checkpoint import local_folder
from medley.merge.coefficients import weights_array
from medley.merge.concatenated import ConcatenatedAdapter, merge_adapters
from medley.merge.dev_pools import dev_pools, ranking_retrievers
from medley.merge.export import (
    GateReport,
    Probe,
    ProbeVectors,
    encode_probe,
    export,
    judge,
    licences,
    model_card,
)
from medley.merge.learned import Learnable
from medley.merge.mergekit_file import write_mergekit
from medley.merge.opening import Merge, open_merge, read_experts, search_space
from medley.merge.outcome import SearchResult
from medley.merge.pool import DevPool, PoolVectors, embed_pool
from medley.merge.search import search, store_folder
from medley.merge.settings import MergeFile
from medley.merge.shrink import best_ratios, score_ratios


def merge_model(
    file: MergeFile,
    folder: Path,
    *,
    probe: Probe | None = None,
    details: Mapping[str, Any] | None = None,
    device: str | None = None,
    dev: Sequence[ChosenOn] = (),
) -> GateReport | None:
    """What `medley merge` does: write the merged model or adapter (gated), or a plain checkpoint (then None is
    returned).

    `details` are further lines of the model card, `dev` what the weights were chosen on.
    Raises the errors of open_merge and export.
    """
    if file.output == "checkpoint":
        from medley.merge.stream import merge_to_checkpoint

        merge_to_checkpoint(
            file, folder, card=_card(file, folder.name, identities(read_experts(file)), details)
        )
        return None
    merge = open_merge(file, device=device)
    weights_KS = _weights(merge)
    probe = probe or Probe()
    facts = dict(details or {}) | {"segments": merge.layout.segment_count}
    card = _card(file, folder.name, identities(merge.experts), facts)
    if file.output == "adapter":
        return _export_adapter(merge, weights_KS, folder, probe=probe, card=card, dev=dev)
    base = encode_exactly(merge.base, probe)
    scored = apply_merge(merge, weights_KS, probe)
    backbone(merge.base).to(getattr(_torch(), file.dtype))
    return export(
        merge.base,
        folder,
        card=card,
        scored=scored,
        base=base,
        probe=probe,
        extra={"merge": provenance(merge), **_chosen(merge, dev)},
    )


def _export_adapter(
    merge: Merge,
    weights_KS: np.ndarray,
    folder: Path,
    *,
    probe: Probe,
    card: str,
    dev: Sequence[ChosenOn],
) -> GateReport:
    """Write the merged adapter; it appears only if, read back from disk, it encodes as the merge does."""
    effective_KS = search_space(merge.file, merge.layout.segment_count).effective(weights_KS)
    base = encode_probe(merge.base, probe)
    with ConcatenatedAdapter(merge.base, merge.experts, layout=merge.layout) as adapter:
        adapter.set_coefficients(effective_KS)
        scored = encode_probe(merge.base, probe)
    extra = {"merge": provenance(merge), "base": merge.file.base, **_chosen(merge, dev)}
    with writing(folder) as temporary:
        merge_adapters(merge.experts, effective_KS, temporary, layout=merge.layout, extra=extra)
        (temporary / "README.md").write_text(card, encoding="utf-8")
        attach(merge.base, read_expert(temporary).layers, where=str(folder))
        try:
            reread = encode_probe(merge.base, probe)
        finally:
            detach(merge.base)
        prompts = {"query": merge.base.query_prompt(), "document": merge.base.document_prompt}
        return judge(reread, prompts, merge.base, scored=scored, base=base, name=str(folder))


def write_as_mergekit(file: MergeFile, path: Path, *, force: bool = True) -> None:
    """Write the merge as a file that `mergekit-yaml` takes; without `force` never over a file.

    Raises RecipeError where mergekit has no counterpart.
    """
    from medley.yaml_file import dump_yaml

    folder = local_folder(file.base)
    layer_count = int(read_json(folder / "config.json", ModelError)["num_hidden_layers"])
    experts = read_experts(file)
    whole = file.model_copy(
        update={
            "base": str(folder.resolve()),
            "experts": {expert.name: str(expert.path.resolve()) for expert in experts},
        }
    )
    adapters = [expert.name for expert in experts if expert.is_adapter]
    with writing(path, force=force) as temporary:
        content = write_mergekit(whole, layer_count, adapters)
        temporary.write_text(dump_yaml(content), encoding="utf-8")


def apply_merge(merge: Merge, weights_KS: np.ndarray, probe: Probe) -> ProbeVectors:
    """Merge into the weights of `merge.base`, and give the probe's vectors of the model as a search scores
    it."""
    return apply_weights(
        merge.base, merge.experts, weights_KS, space=search_space(merge.file, merge.layout.segment_count),
        parameters=merge.parameters, layout=merge.layout, probe=probe, settings_of=merge.settings_of,
    )  # fmt: skip


def _weights(merge: Merge) -> np.ndarray:
    """The file's weights; 1 each where the method takes none, an error where it does and none are given."""
    file = merge.file
    if file.mergekit is not None:
        return np.ones((len(file.experts), merge.layout.segment_count))
    if file.weights:
        flat = {name: merge.layout.flat(weight, f"weights.{name}") for name, weight in file.weights.items()}
        return weights_array(flat, list(file.experts), merge.layout.segment_count)
    from mergekit import merge_methods

    if any(parameter.name == "weight" for parameter in merge_methods.get(file.method).spec.parameters):
        raise RecipeError(
            "weights: the merge file has none; give each expert one, or search for them with search-merge."
        )
    return np.ones((len(file.experts), merge.layout.segment_count))


def with_shrinking(file: MergeFile, *, device: str | None = None) -> MergeFile:
    """The file with each expert's best ratio of `search.shrink` by dev; as it is where there are none to try."""
    if file.search is None or not file.search.shrink:
        return file
    collections = {spec: open_dev(spec) for spec in file.search.dev}
    pools = dev_pools(file.search, collections, seed=file.search.seed)
    scores = score_ratios(open_merge(file, device=device), pools, file.search.shrink)
    return file.model_copy(update={"shrink": best_ratios(scores)})


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
            collections = {spec: open_dev(spec) for spec in file.search.dev}
            each = ranking_retrievers(apply, space.shape, file.search.rankers)
            pools = dev_pools(file.search, collections, retrievers=each, seed=file.search.seed)
        chosen = pools

        def embed(effective_KS: np.ndarray) -> list[PoolVectors]:
            retriever = apply(effective_KS)
            return [embed_pool(retriever, pool) for pool in chosen]

        store = None
        if unfinished is not None:
            settings = file.model_dump(mode="json", exclude={"weights", "search", "experts"})
            made_of = {**provenance(merge), "weights": None, "settings": settings}
            store = store_folder(unfinished, pools, space, model=model, made_of=made_of)
        learnable = Learnable(merge.base, merge.experts, merge.layout) if merge.is_adapter else None
        return search(embed, pools, space, file.search, store=store, learnable=learnable)


def _chosen(merge: Merge, dev: Sequence[ChosenOn]) -> dict[str, Any]:
    """What base, experts and weights were chosen on."""
    parts = [local_folder(merge.file.base), *(expert.path for expert in merge.experts)]
    return as_extra([*read_chosen(*parts), *dev])


def provenance(merge: Merge) -> dict[str, Any]:
    """What medley.json keeps of a merge: enough to make it again."""
    file = merge.file
    return {
        "method": file.method,
        "weights": file.model_dump(mode="json")["weights"],
        "cuts": list(merge.layout.cuts),
        "kinds": list(merge.layout.kinds),
        "parameters": merge.parameters.given(),
        "shrink": {name: file.shrunk(name) for name in file.experts if file.shrunk(name)},
        "mergekit": None if file.mergekit is None else file.mergekit.model_dump(mode="json"),
        "keep": None if file.keep is None else file.keep.model_dump(mode="json", by_alias=True),
        "base": file.base,
        "base_identity": merge.base_identity,
        "experts": identities(merge.experts),
    }


def _card(file: MergeFile, title: str, experts: Mapping[str, str], details: Mapping[str, Any] | None) -> str:
    """The model card of a merge."""
    from medley.model_name import resolve_base

    folders = {"base": Path(resolve_base(file.base)), **{name: Path(at) for name, at in file.experts.items()}}
    parameters = file.parameters.in_order(list(file.experts)).given()
    facts: dict[str, Any] = {f"parameter {key}": value for key, value in parameters.items()}
    if file.shrink:
        facts["moved toward the base first (SLERP)"] = {name: file.shrunk(name) for name in file.experts}
    if file.keep is not None:
        facts["taken unmerged"] = f"{', '.join(file.keep.tensors)} from {file.keep.source}"
    if file.kinds:
        facts["weights by kind of tensor"] = ", ".join(file.kinds)
    return model_card(
        title, base=file.base, method=file.method, experts=experts,
        weights=file.model_dump(mode="json")["weights"], details=facts | dict(details or {}),
        licences=licences(folders),
    )  # fmt: skip


def identities(experts: Sequence[Expert]) -> dict[str, str]:
    """Fingerprint of each expert's weights, by name."""
    return {expert.name: _identity(expert) for expert in experts}


def _identity(expert: Expert) -> str:
    weights = expert.path / "adapter_model.safetensors"
    return fingerprint_file(weights) if weights.is_file() else fingerprint_folder(expert.path)


def _torch() -> Any:
    import torch

    return torch
