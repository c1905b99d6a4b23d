"""Whether a base and its experts can be one model: shape, tokenizer, and how text becomes a vector.

What differs is named, with the two that differ and what resolves it: `keep` for a tokenizer and its embeddings,
`retriever` for pooling, attention, normalisation and template. What a folder does not say is not compared.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medley.encoder import DESCRIPTION
from medley.errors import ModelError
from medley.expert import Expert
from medley.files import read_json
from medley.merge.settings import TOKENIZER

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
    base: str, base_folder: Path, experts: Sequence[Expert], resolved: Resolved, *, base_identity: str
) -> None:
    """Raises ModelError naming what differs between the base and the experts, and how to resolve it."""
    check_compatible(
        experts,
        base_identity=base_identity,
        settled=resolved.traits,
    )
    check_shapes(base, base_folder, experts)
    if resolved.tokenizer_of is None:
        check_tokenizers(base, base_folder, experts)
    _check_base_traits(base, base_folder, experts, settled=resolved.traits)


def check_compatible(
    experts: Sequence[Expert],
    *,
    base_identity: str | None = None,
    settled: Collection[str] = (),
) -> None:
    """Refuse experts that were not trained on one base in one way.

    Compared: base fingerprint (also with `base_identity` where given), template, pooling, attention and
    normalisation, without those that are `settled` by name. What a foreign folder does not say is not compared.
    Raises ModelError naming the two experts and the difference.
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
        for what, value in _traits(expert).items():
            if what in settled:
                continue
            first, expected = seen.setdefault(what, (expert.name, value))
            if value != expected:
                told = ", or set `templates: first` to use the first one's" if what == "template" else ""
                raise ModelError(
                    f"experts {first!r} and {expert.name!r} differ in {what} ({expected!r} and {value!r}); "
                    f"train them alike, leave one out, or say which holds in `retriever`{told}."
                )


def _traits(expert: Expert) -> dict[str, Any]:
    known = expert.description
    traits = {key: known[key] for key in ("base_identity", "template") if key in known}
    settings = expert.settings
    if settings is not None:
        traits |= {
            "pooling": settings.pooling,
            "attention": settings.attention,
            "normalize": settings.normalize,
        }
    elif (expert.path / "modules.json").is_file():
        traits |= _module_traits(expert.path)
    return traits


def _module_traits(folder: Path) -> dict[str, Any]:
    """What a sentence-transformers folder says about its pooling, attention and normalisation."""
    modules = read_json(folder / "modules.json", ModelError)
    traits: dict[str, Any] = {"normalize": any("Normalize" in module["type"] for module in modules)}
    for module in modules:
        path = folder / module["path"] / "config.json"
        if module["type"].endswith("Pooling") and path.is_file():
            pooling = read_json(path, ModelError)
            older = [key.removeprefix("pooling_mode_") for key, on in pooling.items() if on is True]
            mode = pooling.get("pooling_mode") or next(
                (name for name in older if name in ("lasttoken", "mean_tokens", "cls_token")), None
            )
            if mode is not None:
                names = {"lasttoken": "last", "mean_tokens": "mean", "cls_token": "cls"}
                traits["pooling"] = names.get(mode, mode)
    config = folder / "config.json"
    if config.is_file() and "is_causal" in (content := read_json(config, ModelError)):
        traits["attention"] = "causal" if content["is_causal"] else "bidirectional"
    return traits


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
    base: str, base_folder: Path, experts: Sequence[Expert], *, settled: Collection[str]
) -> None:
    """A base that is a retriever already encodes as its experts were trained."""
    if not (base_folder / "modules.json").is_file():
        return
    description = (
        read_json(base_folder / DESCRIPTION, ModelError) if (base_folder / DESCRIPTION).is_file() else {}
    )
    check_compatible([Expert(f"base {base}", base_folder, {}, description), *experts], settled=settled)


def _config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    config: dict[str, Any] = read_json(path, ModelError) if path.is_file() else {}
    return config
