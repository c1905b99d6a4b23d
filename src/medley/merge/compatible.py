"""Whether a base and its experts can be one model: shape, tokenizer, and how text becomes a vector.

What differs is named, with the two that differ and what resolves it: `keep` for a tokenizer and its embeddings,
`retriever` for pooling, attention, normalisation and template. What a folder does not say is not compared.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medley.encoder import DESCRIPTION
from medley.errors import ModelError
from medley.expert import Expert, check_compatible
from medley.files import read_json
from medley.merge.settings import TOKENIZER

SHAPE_KEYS = (
    "model_type", "hidden_size", "num_hidden_layers", "intermediate_size", "num_attention_heads",
    "num_key_value_heads", "head_dim",
)  # fmt: skip


@dataclass(frozen=True)
class Resolved:
    """What the merge file settles: whose tokenizer (None: nothing said), whether `retriever` is given, and whether
    templates may differ."""

    tokenizer_of: str | None = None
    retriever: bool = False
    templates: bool = False


def check_experts(
    base: str, base_folder: Path, experts: Sequence[Expert], resolved: Resolved, *, base_identity: str
) -> None:
    """Raises ModelError naming what differs between the base and the experts, and how to resolve it."""
    check_compatible(
        experts,
        base_identity=base_identity,
        traits=not resolved.retriever,
        same_template=not resolved.templates,
    )
    check_shapes(base, base_folder, experts)
    if resolved.tokenizer_of is None:
        check_tokenizers(base, base_folder, experts)
    if not resolved.retriever:
        _check_base_traits(base, base_folder, experts, same_template=not resolved.templates)


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


def _check_base_traits(
    base: str, base_folder: Path, experts: Sequence[Expert], *, same_template: bool
) -> None:
    """A base that is a retriever already encodes as its experts were trained."""
    if not (base_folder / "modules.json").is_file():
        return
    description = (
        read_json(base_folder / DESCRIPTION, ModelError) if (base_folder / DESCRIPTION).is_file() else {}
    )
    check_compatible(
        [Expert(f"base {base}", base_folder, {}, description), *experts], same_template=same_template
    )


def _config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    config: dict[str, Any] = read_json(path, ModelError) if path.is_file() else {}
    return config
