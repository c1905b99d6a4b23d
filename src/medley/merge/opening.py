"""A merge file with its base and experts opened, checked against one another, and its tensors laid out.

Adapters whose weighted sum is searched or folded have their base in float32, so that small updates are scored and
folded without rounding. For any other merge the base is stored in the dtype that the file saves, and computed in
float32 (fullweights.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from medley.backbone import backbone, base_fingerprint, base_tensors
from medley.encoder import Retriever, RetrieverSettings, append_end_of_sequence
from medley.errors import ModelError, RecipeError
from medley.expert import Expert, open_base, read_expert
from medley.loading import opening
from medley.merge.checkpoint import Checkpoint, local_folder
from medley.merge.coefficients import Layout, before_layers, kind_of, layer_cuts
from medley.merge.compatible import Resolved, check_experts, check_layers
from medley.merge.fullweights import SettingsOf
from medley.merge.mergekit_file import settings_by_tensor
from medley.merge.methods import is_linear_in_deltas
from medley.merge.settings import SUMS, TOKENIZER, MergeFile, MergeParameters
from medley.merge.space import SearchSpace
from medley.model_name import location_of
from medley.traits import published_traits, settings_of


@dataclass(frozen=True)
class Merge:
    """A merge file with its base and experts opened and checked."""

    file: MergeFile
    base: Retriever
    base_identity: str
    experts: tuple[Expert, ...]
    layout: Layout
    parameters: MergeParameters
    settings_of: SettingsOf | None = None

    @property
    def is_adapter(self) -> bool:
        """Whether the merge is a weighted sum of adapters."""
        if self.settings_of is not None:
            return False
        return is_linear_in_deltas(self.file.method, self.parameters, self.experts)

    def space(self) -> SearchSpace:
        """The candidates of the file's search."""
        if self.file.search is None:
            raise RecipeError("search: is missing; say the strategy, encodings and dev collections.")
        if self.settings_of is not None:
            raise RecipeError("search: a mergekit file with gradients or filters says its weights already.")
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


def read_experts(file: MergeFile) -> tuple[Expert, ...]:
    """The file's experts in its order, each with how far it is shrunk."""
    return tuple(
        replace(read_expert(Path(path), name=name), shrink=file.shrunk(name))
        for name, path in file.experts.items()
    )


def open_merge(file: MergeFile, *, device: str | None = None) -> Merge:
    """Open and check what a merge file names.

    Raises ModelError when experts do not fit the base or one another, RecipeError when the file does not fit
    them.
    """
    names = list(file.experts)
    experts = read_experts(file)
    parameters = file.parameters.in_order(names)
    sum_of_adapters = is_linear_in_deltas(file.method, parameters, experts) and file.mergekit is None
    base = open_base(
        file.base,
        experts,
        settings=_retriever_settings(file, experts),
        settled=resolved(file).traits,
        instruction=file.instruction,
        dtype="float32" if sum_of_adapters else file.dtype,
        device=device,
    )
    folder = local_folder(file.base)
    identity = base_fingerprint(base)
    check_experts(file.base, folder, experts, resolved(file), base_identity=identity, target=base.traits())
    tensors = base_tensors(base)
    check_layers(file.base, {name: tensor.shape for name, tensor in tensors.items()}, experts)
    layer_count = int(backbone(base).config.num_hidden_layers)
    layout = lay_out(file, list(tensors), layer_count)
    if layout.kinds:
        check_kinds(layout, experts, list(tensors))
    if file.keep is not None and file.keep.tokenizer and layout.kept_from is not None:
        take_tokenizer(base, experts[layout.kept_from], layout)
    if sum_of_adapters:
        _check_parameters(file.method, parameters)
    elif file.output == "adapter":
        raise RecipeError(
            "output: an adapter can only be made of adapters; some experts are full checkpoints."
        )
    settings_of = None
    if file.mergekit is not None:
        settings_of = settings_by_tensor(file.mergekit, file.method, names, layer_count, seed=parameters.seed)
    return Merge(file, base, identity, experts, layout, parameters, settings_of)


def resolved(file: MergeFile) -> Resolved:
    """What the file settles where base and experts differ. Raises RecipeError where it does so by half."""
    keep = file.keep
    stated = set() if file.retriever is None else set(file.retriever.model_fields_set)
    anyhow = Resolved(None, frozenset(stated | ({"template"} if file.templates == "first" else set())))
    if keep is None or not keep.tokenizer:
        return anyhow
    if not any(before_layers(part) for part in keep.parts):
        raise RecipeError(
            f"keep.tensors: {TOKENIZER} alone would read one model's tokens with another's embeddings; "
            "add embed_tokens."
        )
    return replace(anyhow, tokenizer_of=keep.source)


def _retriever_settings(file: MergeFile, experts: Sequence[Expert]) -> RetrieverSettings | None:
    """As the experts were trained, or else as the base is, except for what the file states; None where none says."""
    trained = next((expert.settings for expert in experts if expert.settings is not None), None)
    if file.retriever is None:
        return trained
    known = trained or settings_of(published_traits(location_of(file.base)))
    stated = file.retriever.model_dump(exclude_unset=True)
    return RetrieverSettings.model_validate((known.model_dump() if known else {}) | stated)


def lay_out(file: MergeFile, tensors: Sequence[str], layer_count: int) -> Layout:
    """Which coefficients each tensor gets. Raises RecipeError where segments or `keep` do not fit the model."""
    cuts = layer_cuts(file.segments, layer_count)
    if file.keep is None:
        return Layout(cuts, kinds=file.kinds)
    for part in file.keep.parts:
        if not any(part in name for name in tensors):
            raise RecipeError(
                f"keep.tensors: {part!r} is in no tensor's name of {file.base}; check its spelling."
            )
    kept_from = None if file.keep.source == "base" else list(file.experts).index(file.keep.source)
    return Layout(cuts, file.keep.parts, kept_from, file.kinds)


def check_kinds(layout: Layout, experts: Sequence[Expert], tensors: Sequence[str]) -> None:
    """Refuse kinds that leave out tensors which an expert changes. Raises RecipeError naming the kind."""
    for expert in experts:
        changed = [f"{name}.weight" for name in expert.layers] if expert.is_adapter else tensors
        for name in changed:
            if not layout.keeps(name) and layout.segment(name) is None:
                raise RecipeError(
                    f"kinds: expert {expert.name!r} changes {name}, which is {kind_of(name)!r}; add that kind, or "
                    "`other` for all that are not named."
                )


def take_tokenizer(retriever: Retriever, expert: Expert, layout: Layout) -> None:
    """Give the retriever an expert's tokenizer, and embeddings of that size (their values are merged later)."""
    from transformers import AutoTokenizer

    if expert.is_adapter or not (expert.path / "tokenizer.json").is_file():
        raise ModelError(
            f"{expert.path}: expert {expert.name!r} has no tokenizer.json, so its tokenizer cannot be kept."
        )
    with opening(str(expert.path), "a tokenizer"):
        tokenizer = AutoTokenizer.from_pretrained(expert.path, trust_remote_code=False)
    tokenizer.model_max_length = retriever.model.max_seq_length
    append_end_of_sequence(tokenizer, str(expert.path))
    first: Any = retriever.model[0]
    first.processor = tokenizer
    model = backbone(retriever)
    stored = Checkpoint(expert.path, name=expert.name).tensors
    embedding = next(name for name in stored if layout.keeps(name) and before_layers(name))
    rows = stored[embedding].shape[0]
    if rows != model.get_input_embeddings().weight.shape[0]:
        model.resize_token_embeddings(rows, mean_resizing=False)


def _check_parameters(method: str, parameters: MergeParameters) -> None:
    """Refuse parameters that the exact adapter merge would silently ignore."""
    for key in parameters.given():
        if key not in SUMS[method]:
            raise RecipeError(f"parameters: a {method} merge of adapters has no {key}; remove it.")
