"""Whether a base and its experts can be one model: shape, tokenizer, and how text becomes a vector.

What differs is named, with the two that differ and what resolves it: `keep` for a tokenizer and its embeddings,
`retriever` for pooling, attention, normalisation and template. What a folder does not say is not compared.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from medley.errors import ModelError
from medley.expert import Expert
from medley.files import read_json
from medley.loading import check_whole
from medley.merge.settings import TOKENIZER
from medley.traits import Traits, asked_traits, published_traits, read_template, shown

SHAPE_KEYS = (
    "model_type", "hidden_size", "num_hidden_layers", "intermediate_size", "num_attention_heads",
    "num_key_value_heads", "head_dim",
)  # fmt: skip


@dataclass(frozen=True)
class Resolved:
    """What the merge file settles: whose tokenizer (None: nothing said), and the traits that it states itself."""

    tokenizer_of: str | None = None
    traits: frozenset[str] = frozenset()


def check_experts(
    base: str,
    base_folder: Path,
    experts: Sequence[Expert],
    resolved: Resolved,
    *,
    base_identity: str,
    target: Traits | None,
) -> None:
    """Raises ModelError naming what differs between the base and the experts, and how to resolve it.

    `target` is how the merge will make vectors; None where it writes a checkpoint that makes none.
    """
    check_compatible(experts, base_identity=base_identity, settled=resolved.traits)
    check_shapes(base, base_folder, experts)
    for expert in experts:
        if not expert.is_adapter:
            transformer = (
                expert.path if (expert.path / "config.json").is_file() else expert.path / "0_Transformer"
            )
            check_whole(transformer, f"{expert.path}: expert {expert.name!r}")
    if resolved.tokenizer_of is None:
        check_tokenizers(base, base_folder, experts)
    for expert in experts if target is not None else ():
        theirs, ours = traits_of(expert).differing(target or Traits(), resolved.traits)
        if theirs:
            raise ModelError(
                f"{expert.path}: expert {expert.name!r} was trained with {theirs}; merged on {base} it would be used "
                f"with {ours}; say which holds in the merge file's `retriever`, or leave the expert out."
            )


def check_compatible(
    experts: Sequence[Expert],
    *,
    base_identity: str | None = None,
    settled: Collection[str] = (),
) -> None:
    """Refuse experts that were not trained on one base in one way.

    Compared: base fingerprint (also with `base_identity` where given) and traits, without those that are `settled` by
    name. What a foreign folder does not say is not compared. Raises ModelError naming the two experts and the
    difference.
    """
    for expert in experts:
        trained_on = expert.description.get("base_identity")
        if base_identity and trained_on and trained_on != base_identity:
            raise ModelError(
                f"{expert.path}: expert {expert.name!r} was trained on another base ({trained_on}, "
                f"not {base_identity}); merge it with the base it was trained on."
            )
    seen: dict[str, tuple[str, Any]] = {}
    for expert in experts:
        identity = expert.description.get("base_identity")
        traits = traits_of(expert).known() | ({"base_identity": identity} if identity else {})
        for what, value in traits.items():
            if what in settled:
                continue
            first, expected = seen.setdefault(what, (expert.name, value))
            if value != expected:
                told = ", or set `templates: first` to use the first one's" if what == "template" else ""
                raise ModelError(
                    f"experts {first!r} and {expert.name!r} differ in {what} ({shown(expected)} and {shown(value)}); "
                    f"train them alike, leave one out, or say which holds in `retriever`{told}."
                )


def traits_of(expert: Expert) -> Traits:
    """How an expert was trained to make vectors, as far as its folder says."""
    template = expert.description.get("template")
    own = read_template(template, str(expert.path)) if template else None
    if expert.settings is not None:
        asked = asked_traits(expert.settings)
        return replace(asked, template=own or asked.template)
    return published_traits(str(expert.path)) or Traits(template=own)


def check_shapes(base: str, base_folder: Path, experts: Sequence[Expert]) -> None:
    """Full checkpoints have the base's architecture and sizes; the vocabulary is the tokenizers' affair."""
    expected = _config(base_folder)
    for expert in experts:
        if expert.is_adapter or not expected:
            continue
        found = _config(expert.path)
        for key in SHAPE_KEYS:
            if key in expected and key in found and expected[key] != found[key]:
                raise ModelError(
                    f"{expert.path}: expert {expert.name!r} has {key} {found[key]}, the base {base} has "
                    f"{expected[key]}; only models of one architecture can be merged."
                )


def check_layers(base: str, shapes: Mapping[str, Sequence[int]], experts: Sequence[Expert]) -> None:
    """Adapters change layers that the base has, of its sizes; `shapes` are those of the base's tensors."""
    for expert in experts:
        for name, layer in expert.layers.items():
            found = shapes.get(f"{name}.weight")
            if found is None:
                raise ModelError(
                    f"{expert.path}: expert {expert.name!r} changes {name}, which the base {base} does not have; "
                    "use the base that the expert was trained on."
                )
            theirs = (layer.up.shape[0], layer.down.shape[1])
            if tuple(found) != theirs:
                raise ModelError(
                    f"{expert.path}: expert {expert.name!r} changes {name} of size {theirs}, in the base {base} it has "
                    f"{tuple(found)}; use the base that the expert was trained on."
                )


def check_tokenizers(base: str, base_folder: Path, experts: Sequence[Expert]) -> None:
    """Every folder with a tokenizer has the base's: same vocabulary, merges, normalisation and splitting."""
    expected = tokenizer_content(base_folder)
    if expected is None:
        return
    for expert in experts:
        found = tokenizer_content(expert.path)
        if found is not None and found != expected:
            raise ModelError(
                f"{expert.path}: expert {expert.name!r} and the base {base} differ in their tokenizers "
                f"({_difference(found, expected)}); take tokenizer and embeddings from one of them: "
                f"keep: {{from: base, tensors: [embed_tokens, {TOKENIZER}]}}."
            )


def tokenizer_content(folder: Path) -> Mapping[str, Any] | None:
    """What decides a text's tokens, without the post-processor (which only adds an end-of-sequence token)."""
    path = folder / "tokenizer.json"
    if not path.is_file():
        return None
    from tokenizers import Tokenizer

    try:  # parsed and written anew, since files of different age write the same tokenizer differently
        whole = json.loads(Tokenizer.from_file(str(path)).to_str())
    except Exception as problem:  # the library raises plain Exception
        raise ModelError(f"{path}: cannot be read as a tokenizer ({problem}); copy it again.") from problem
    added = sorted((token["id"], token["content"]) for token in whole.get("added_tokens") or [])
    model = whole.get("model") or {}
    return {
        "added tokens": added,
        "vocabulary": model.get("vocab"),
        "merges": model.get("merges"),
        "normalizer": whole.get("normalizer"),
        "splitting": whole.get("pre_tokenizer"),
    }


def _difference(found: Mapping[str, Any], expected: Mapping[str, Any]) -> str:
    """The first part in which two tokenizers differ, in words."""
    part = next(key for key in expected if found[key] != expected[key])
    ours, theirs = found[part], expected[part]
    if isinstance(ours, (dict, list)) and isinstance(theirs, (dict, list)) and len(ours) != len(theirs):
        return f"{part}: {len(ours)} entries, not {len(theirs)}"
    return part


def _config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    config: dict[str, Any] = read_json(path, ModelError) if path.is_file() else {}
    return config
