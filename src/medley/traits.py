"""How text becomes a vector, as data: what is asked for, what a model folder says of itself, and where they differ.

A finished retriever (a sentence-transformers folder) has its pooling, attention, prompts, length and similarity; an
adapter was trained with some. Used with others it is another model, so a difference is an error that names both.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from medley.errors import ModelError
from medley.files import read_json
from medley.model_name import adapter_base, file_of, is_adapter, is_decoder_type, resolve_base
from medley.template import TEMPLATES, Template

DESCRIPTION = "medley.json"
"""The file in a model or expert folder that keeps what sentence-transformers has no place for."""
PLAIN = ("Transformer", "Pooling", "Normalize")
"""Modules that Medley's own retrievers have."""
POOLINGS = {"lasttoken": "last"}
"""Medley's word for sentence-transformers' where it is another."""


class RetrieverSettings(BaseModel):
    """How a decoder becomes a retriever (the recipe's `retriever:`)."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    pooling: Literal["last", "mean"] = Field("last", description="which hidden states make the vector")
    attention: Literal["bidirectional", "causal"] = Field(
        "bidirectional", description="whether a token sees the tokens after it"
    )
    max_length: int = Field(
        512, ge=4, description="tokens a text is cut to, the end-of-sequence token included"
    )
    template: Literal["bmretriever", "e5", "plain"] | Template = Field(
        "bmretriever",
        description="how instruction and text are joined: a name, or {query: ..., document: ...}",
    )
    normalize: bool = Field(True, description="whether vectors have length 1")
    dtype: Literal["bfloat16", "float32", "float16"] = Field(
        "bfloat16", description="of the weights in memory"
    )

    @property
    def template_value(self) -> Template:
        """The template itself, whether it was given by name or in full."""
        return TEMPLATES[self.template] if isinstance(self.template, str) else self.template

    @property
    def similarity(self) -> Literal["cosine", "dot"]:
        """How vectors are compared."""
        return "cosine" if self.normalize else "dot"


@dataclass(frozen=True)
class Traits:
    """What decides a text's vector beside the weights; None where a folder does not say."""

    pooling: str | None = None
    attention: str | None = None
    normalize: bool | None = None
    max_length: int | None = None
    similarity: str | None = None
    template: Template | None = None
    further_modules: tuple[str, ...] | None = None

    def differing(self, other: Traits, settled: Collection[str] = ()) -> tuple[str, str]:
        """Both sides of all that differs, in words; two empty ones where nothing does. What is `settled`, or unknown
        to one of them, is not compared."""
        names = [
            name
            for name, mine in self.known().items()
            if name not in settled and (theirs := getattr(other, name)) is not None and mine != theirs
        ]
        return _in_words(self, names), _in_words(other, names)

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """All traits."""
        return tuple(field.name for field in fields(cls))

    def known(self) -> dict[str, Any]:
        """The traits that the folder states, by name."""
        return {name: getattr(self, name) for name in self.names() if getattr(self, name) is not None}


def _in_words(traits: Traits, names: Collection[str]) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {shown(getattr(traits, name))}" for name in names)


def shown(value: Any) -> str:
    """A trait's value in a message."""
    if isinstance(value, Template):
        named = next((name for name, template in TEMPLATES.items() if template == value), None)
        return named or f"{value.query!r} for queries and {value.document!r} for passages"
    if isinstance(value, tuple):
        return ", ".join(value) or "none"
    return str(value).lower() if isinstance(value, bool) else str(value)


def asked_traits(settings: RetrieverSettings) -> Traits:
    """What settings make of a base."""
    return Traits(
        settings.pooling, settings.attention, settings.normalize, settings.max_length, settings.similarity,
        settings.template_value, (),
    )  # fmt: skip


def published_traits(location: str) -> Traits | None:
    """What a finished retriever says of itself, by folder or hub id; None for a model that is none.

    A model without `is_causal` in its config.json has its architecture's attention.
    """
    if file_of(location, "modules.json") is None:
        return None
    modules = _read(location, "modules.json", list)
    kinds = {str(module["type"]).rpartition(".")[2]: str(module.get("path", "")) for module in modules}
    first = str(modules[0].get("path", "")) if modules else ""
    config = _read(location, f"{first}/config.json".lstrip("/"))
    if not config and is_adapter(location):
        config = _config_of_base(Path(location))
    whole = _read(location, "config_sentence_transformers.json")
    description = describing(location)
    pooling = _read(location, f"{kinds['Pooling']}/config.json") if "Pooling" in kinds else {}
    template = description.get("template")
    return Traits(
        pooling=pooling_words(pooling),
        attention=attention_words(config),
        normalize="Normalize" in kinds,
        max_length=_max_length(location, first, config),
        similarity=whole.get("similarity_fn_name") or "cosine",
        template=read_template(template, location) if template else template_of(whole.get("prompts") or {}),
        further_modules=tuple(kind for kind in kinds if kind not in PLAIN),
    )


def as_a_recipe(settings: RetrieverSettings) -> str:
    """What is told where a model is opened that does not say how."""
    return (
        f"so it is opened as a recipe's base is ({settings.pooling} token, {settings.attention}, template "
        f"{settings.template})"
    )


def check_asked(base: str, location: str, settings: RetrieverSettings, settled: Collection[str] = ()) -> bool:
    """Refuse to use a finished retriever in another way than it was published for.

    `settled` are traits that the user set against its own on purpose: whether any of them differs is returned.
    Raises ModelError with both values of what else differs.
    """
    published = published_traits(location)
    if published is None:
        return False
    positions = _positions(_read(location, "config.json"))
    asked = asked_traits(settings)
    asked = replace(asked, max_length=min(settings.max_length, positions or settings.max_length))
    theirs, ours = published.differing(asked, settled)
    if theirs:
        raise ModelError(
            f"{base}: is a finished retriever with {theirs}; here it would be used with {ours}, which is another "
            "model; set the same under `retriever`, or take the language model that it was made of as the base."
        )
    return published.differing(asked) != ("", "")


def settings_of(traits: Traits | None) -> RetrieverSettings | None:
    """The settings under which a decoder gets these traits; None where there are none such."""
    if traits is None or traits.further_modules:
        return None
    known = {key: value for key, value in traits.known().items() if key in RetrieverSettings.model_fields}
    try:
        return RetrieverSettings.model_validate(known)
    except ValidationError:
        return None


def describing(location: str) -> dict[str, Any]:
    """A model folder's medley.json; empty where it has none."""
    return _read(location, DESCRIPTION)


def template_of(prompts: Mapping[str, str | None]) -> Template:
    """The prompts that sentence-transformers puts before queries and passages, whatever others a folder names."""
    query, document = (prompts.get(name) or "" for name in ("query", "document"))
    return Template(query=query, query_without_instruction=query, document=document)


def read_template(value: Any, where: str) -> Template:
    """The template in a folder's medley.json or prompts. Raises ModelError where it is none."""
    try:
        return Template.model_validate(value)
    except ValidationError as problem:
        first = problem.errors()[0]
        place = ".".join(["template", *map(str, first["loc"])])
        raise ModelError(f"{Path(where) / DESCRIPTION}: {place}: {first['msg']}.") from problem


def _read(location: str, name: str, kind: type = dict) -> Any:
    """A JSON file of a model; empty where there is none."""
    path = file_of(location, name)
    if path is None:
        return kind()
    value = read_json(path, ModelError)
    if not isinstance(value, kind):
        raise ModelError(f"{path}: holds a {type(value).__name__}, no {kind.__name__}; copy the model again.")
    return value


def _config_of_base(adapter: Path) -> dict[str, Any]:
    """The configuration of an adapter's base; where that is not here, of a decoder that says nothing."""
    try:
        return _read(resolve_base(adapter_base(adapter)), "config.json")
    except (ModelError, OSError):
        return {"is_causal": True}


def pooling_words(config: dict[str, Any]) -> str | None:
    """Of a pooling module's configuration, in Medley's words; older folders have a switch for each kind."""
    older = [key.removeprefix("pooling_mode_").removesuffix("_tokens").removesuffix("_token")
             for key, on in config.items() if on is True and key.startswith("pooling_mode_")]  # fmt: skip
    found = config.get("pooling_mode") or older
    modes = [found] if isinstance(found, str) else list(found)
    words = "+".join(POOLINGS.get(mode, mode) for mode in modes)
    return f"{words} without the prompt" if words and config.get("include_prompt") is False else words or None


def attention_words(config: dict[str, Any]) -> str | None:
    """Of a model's config; one that does not say has its architecture's."""
    if not config:
        return None
    causal = config.get("is_causal", is_decoder_type(str(config.get("model_type"))))
    return "causal" if causal and not config.get("use_bidirectional_attention") else "bidirectional"


def _max_length(location: str, first: str, config: dict[str, Any]) -> int | None:
    """sentence-transformers' own, or else the tokenizer's, bounded by the positions that the model has."""
    own = _read(location, f"{first}/sentence_bert_config.json".lstrip("/"))
    said = own.get("max_seq_length") or (own.get("processor_kwargs") or {}).get("model_max_length")
    if said:
        return int(said)
    tokenizer = _read(location, f"{first}/tokenizer_config.json".lstrip("/"))
    bounds = [bound for bound in (tokenizer.get("model_max_length"), _positions(config)) if bound]
    return min(map(int, bounds)) if bounds else None


def _positions(config: dict[str, Any]) -> int | None:
    """How many positions a model has; None where it sets no bound (xlnet writes -1)."""
    positions = int(config.get("max_position_embeddings") or 0)
    return positions if positions > 0 else None
