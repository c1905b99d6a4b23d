"""The only place where text becomes a vector: build, open, encode with and save a retriever.

A retriever is a `SentenceTransformer` (decoder, pooling, optional normalisation) whose tokenizer appends the
end-of-sequence token itself, whose attention direction stands in config.json and whose template stands in its
prompts. So the saved folder encodes the same in Medley, plain sentence-transformers, MTEB and embedding servers.
Mining, training, evaluation and export all come here; no other module tokenizes.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from medley.batches import encode_in_batches, takes_tokens, were_cut
from medley.collections import Passage
from medley.errors import ModelError
from medley.files import explained_write_errors, write_json, writing
from medley.fingerprint import fingerprint
from medley.finite import check_finite, check_vectors
from medley.loading import check_vocabulary, opening, quiet_loading
from medley.model_name import check_decoder, location_of
from medley.noticed import CUT, LENGTH_UNKNOWN, ZERO, notice
from medley.progress import say
from medley.template import Template
from medley.traits import (
    DESCRIPTION,
    PLAIN,
    RetrieverSettings,
    Traits,
    attention_words,
    check_asked,
    describing,
    pooling_words,
    published_traits,
    read_template,
    template_of,
)

if TYPE_CHECKING:
    import torch
    from sentence_transformers import SentenceTransformer

FORMAT = 1
KINDS = {"query": "queries", "document": "passages"}
TEXTS_AT_ONCE = 256
"""Texts tokenized in one call: offsets, words and what was cut off take some 100 bytes a token."""
TOKENS_A_TEXT, TOKENS_A_TEXT_CPU = 256, 32
"""`batch_size` times this is the number of tokens in a batch, on an accelerator and on a CPU. The products of 2,048
tokens stay in a CPU core's cache; an accelerator needs more to be busy."""


@dataclass(frozen=True)
class Retriever:
    """A model with all that decides what a text's vector is.

    `template` is None for a foreign sentence-transformers model: then the prompts it was saved with are used and
    an instruction cannot be changed.
    """

    model: SentenceTransformer
    template: Template | None = None
    instruction: str = ""

    def query_prompt(self, instruction: str | None = None) -> str:
        """The text that precedes each query; `instruction` replaces the retriever's own."""
        if self.template is None:
            if instruction:
                raise ModelError(
                    "this model was not made by Medley and has no template, so no instruction can be put in; "
                    "use the prompts it was saved with."
                )
            return (self.model.prompts or {}).get("query") or ""
        return self.template.query_prefix(self.instruction if instruction is None else instruction)

    @property
    def document_prompt(self) -> str:
        """The text that precedes each passage."""
        if self.template is None:
            return (self.model.prompts or {}).get("document") or ""
        return self.template.document

    def traits(self) -> Traits:
        """What decides a vector beside the weights."""
        modules = {type(module).__name__: module for module in self.model}
        pooling: Any = modules.get("Pooling")
        first: Any = self.model[0]
        return Traits(
            pooling=None if pooling is None else pooling_words(pooling.get_config_dict()),
            attention=attention_words(first.config.to_dict()),
            normalize="Normalize" in modules,
            max_length=self.model.max_seq_length,
            similarity=self.model.similarity_fn_name,
            template=self.template or template_of(self.model.prompts),
            further_modules=tuple(name for name in modules if name not in PLAIN),
        )

    def identity(self) -> str:
        """Fingerprint of everything that decides a vector: weights, tokenizer, pooling, attention, prompts, dtype."""
        return fingerprint(
            {
                "weights": _fingerprint_tensors(self.model.state_dict()),
                "tokenizer": _tokenizer_content(self.model.tokenizer),
                "modules": [str(module) for module in list(self.model)[1:]],
                "attention": getattr(self.model[0].config, "is_causal", True),
                "max_length": self.model.max_seq_length,
                "prompts": [self.query_prompt(), self.document_prompt],
            }
        )


def _tokenizer_content(tokenizer: Any) -> dict[str, Any]:
    """A tokenizer as data, without how its last call cut and padded: that changes when it is used."""
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    return {key: value for key, value in content.items() if key not in ("truncation", "padding")}


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """A weight as one tensor, wherever its parts are; all processes that hold parts call this together."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def _fingerprint_tensors(tensors: dict[str, torch.Tensor]) -> str:
    import hashlib

    import torch

    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = whole(tensors[name]).detach().contiguous().cpu()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.view(torch.uint8).numpy().data if tensor.ndim else tensor.numpy().tobytes())
    return digest.hexdigest()


def build_retriever(
    base: str,
    settings: RetrieverSettings,
    *,
    instruction: str = "",
    device: str | None = None,
    settled: Collection[str] = (),
) -> Retriever:
    """Make a retriever of any decoder-only language model.

    The tokenizer is changed so that it appends the end-of-sequence token itself (its post-processor does, hence
    every server does), truncation leaves room for it, and `config.is_causal` says the attention's direction.

    Raises ModelError for a base that is no decoder, is not whole, or is a finished retriever with other traits than
    the settings' (but for those that are `settled`: set against its own on purpose).
    """
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer

    location = location_of(base)
    check_decoder(base)
    finished = published_traits(location) is not None and not check_asked(base, location, settings, settled)
    with opening(base, "a language model"):
        transformer = Transformer(
            location,
            model_kwargs={"dtype": getattr(torch, settings.dtype)},
            processor_kwargs={"model_max_length": settings.max_length},
        )
    check_finite(transformer.model.named_parameters(), base)
    check_vocabulary(transformer.model, transformer.tokenizer, base)
    positions = getattr(transformer.model.config, "max_position_embeddings", None) or settings.max_length
    # sentence-transformers reads no more than this either when it opens the saved model
    transformer.max_seq_length = min(settings.max_length, positions)
    if positions < settings.max_length:
        say(
            f"{base}: has {positions} positions, so texts are cut to that and not to {settings.max_length} tokens"
        )
    transformer.model.config.is_causal = settings.attention == "causal"
    changed = append_end_of_sequence(transformer.tokenizer, base)
    if finished and changed:
        raise ModelError(
            f"{base}: is a finished retriever whose tokenizer appends no end-of-sequence token, and one would be "
            "appended here, which is another model; take the language model that it was made of as the base."
        )
    pooling = Pooling(
        transformer.get_embedding_dimension(),
        pooling_mode="lasttoken" if settings.pooling == "last" else "mean",
    )
    template = settings.template_value
    model = SentenceTransformer(
        modules=[transformer, pooling, *([Normalize()] if settings.normalize else [])],
        prompts={"query": template.query_prefix(instruction), "document": template.document},
        similarity_fn_name=settings.similarity,
        device=device,
    )
    model.eval()
    return Retriever(model, template, instruction)


def with_instruction(retriever: Retriever, instruction: str) -> Retriever:
    """The same model under another instruction. The model is not copied: its saved prompt changes along."""
    if retriever.template is None:
        raise ModelError("this model was not made by Medley, so its instruction cannot be changed.")
    retriever.model.prompts["query"] = retriever.template.query_prefix(instruction)
    return replace(retriever, instruction=instruction)


def append_end_of_sequence(tokenizer: Any, base: str) -> bool:
    """Make a fast tokenizer end every text with one end-of-sequence token, and give it a padding token.

    An existing post-processor (a leading BOS, say) is kept and runs first. Returns whether it had to be changed.
    """
    from tokenizers.processors import Sequence as ProcessorSequence
    from tokenizers.processors import TemplateProcessing

    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise ModelError(
            f"{base}: has no fast tokenizer (tokenizer.json); convert it with transformers first."
        )
    if tokenizer.eos_token is None:
        raise ModelError(f"{base}: its tokenizer names no eos_token; set one in tokenizer_config.json.")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "right"
    lacking = tokenizer("a")["input_ids"][-1] != tokenizer.eos_token_id
    if lacking:
        eos = (tokenizer.eos_token, tokenizer.eos_token_id)
        appending = TemplateProcessing(
            single=f"$A {eos[0]}", pair=f"$A {eos[0]} $B {eos[0]}", special_tokens=[eos]
        )
        existing = backend.post_processor
        backend.post_processor = ProcessorSequence([existing, appending]) if existing else appending
    token_ids = tokenizer("a a a a a a a a", truncation=True, max_length=4)["input_ids"]
    if token_ids[-1] != tokenizer.eos_token_id or len(token_ids) > 4:
        raise ModelError(
            f"{base}: its tokenizer does not keep a final {tokenizer.eos_token} when it cuts a text."
        )
    return lacking


def open_retriever(path: str, *, device: str | None = None, dtype: str | None = None) -> Retriever:
    """Open a saved retriever, or any sentence-transformers model by folder or hub id.

    Raises ModelError when it cannot be opened.
    """
    location = location_of(path)
    import torch
    from sentence_transformers import SentenceTransformer

    with opening(path, "a retriever"):
        model = SentenceTransformer(
            location, device=device, model_kwargs={"dtype": getattr(torch, dtype)} if dtype else None
        )
    check_finite(model.named_parameters(), path)
    if takes_tokens(model):
        first: Any = model[0]
        check_vocabulary(first.model, model.tokenizer, path)
    model.eval()
    description = describing(location)
    if not description:
        return Retriever(model)
    template = read_template(description.get("template"), location)
    return Retriever(model, template, str(description.get("instruction") or ""))


def save_retriever(
    retriever: Retriever, folder: Path, *, card: str, extra: dict[str, Any] | None = None
) -> None:
    """Write a model folder that `SentenceTransformer(folder)` opens; atomic.

    `card` becomes README.md; `extra` is kept in medley.json beside template and instruction.
    """
    with writing(folder) as temporary, explained_write_errors(folder), quiet_loading():
        retriever.model.save_pretrained(str(temporary), create_model_card=False)
        (temporary / "README.md").write_text(card, encoding="utf-8")
        write_json(temporary / DESCRIPTION, describe(retriever) | (extra or {}))


def describe(retriever: Retriever) -> dict[str, Any]:
    """What medley.json keeps of a retriever."""
    template = retriever.template or Template(
        query=retriever.query_prompt(), document=retriever.document_prompt
    )
    return {"format": FORMAT, "template": template.model_dump(), "instruction": retriever.instruction}


def encode_queries(
    retriever: Retriever, texts: Sequence[str], *, instruction: str | None = None, batch_size: int = 64
) -> np.ndarray:
    """Encode queries under the retriever's instruction, or another one.

    Returns float32 of shape (Q, H), in the order given; length 1 where the retriever normalises. `batch_size` bounds
    memory: a batch is filled by tokens, as many as that number of texts of usual length hold.
    """
    return _encode(retriever, texts, retriever.query_prompt(instruction), "query", batch_size)


def encode_queries_under(retriever: Retriever, queries: Sequence[tuple[str, str]]) -> np.ndarray:
    """Encode (text, instruction) pairs: under their own instruction where there is one and the model takes one.

    Returns float32 of shape (Q, H), in the order given; see `encode_queries`.
    """
    groups: dict[str | None, list[int]] = {}
    for place, (_, instruction) in enumerate(queries):
        groups.setdefault((instruction or None) if retriever.template else None, []).append(place)
    if not groups:
        return encode_queries(retriever, [])
    vectors_QH = np.concatenate(
        [encode_queries(retriever, [queries[p][0] for p in own], instruction=i) for i, own in groups.items()]
    )
    return vectors_QH[np.argsort(np.concatenate(list(groups.values())))]


def encode_passages(
    retriever: Retriever, passages: Sequence[Passage | str], *, batch_size: int = 64
) -> np.ndarray:
    """Encode passages (title, space, text). Returns float32 of shape (D, H), in the order given."""
    texts = [passage if isinstance(passage, str) else passage.full_text for passage in passages]
    return _encode(retriever, texts, retriever.document_prompt, "document", batch_size)


def encode_with_gradient(
    retriever: Retriever, texts: Sequence[str], *, task: Literal["query", "document"], prompt: str
) -> torch.Tensor:
    """A batch of texts as `encode_queries` and `encode_passages` make them: float32 (N, H), with gradient."""
    from sentence_transformers.util import batch_to_device

    model = retriever.model
    features = batch_to_device(model.preprocess(list(texts), prompt=prompt), model.device)
    vectors: torch.Tensor = model(features, task=task)["sentence_embedding"].float()
    if _normalizes(model):
        import torch

        vectors = torch.nn.functional.normalize(vectors, dim=-1)
    return vectors


def _encode(
    retriever: Retriever, texts: Sequence[str], prompt: str, task: str, batch_size: int
) -> np.ndarray:
    """The one place where a model runs. A passage and a query may differ in route as well as in prompt."""
    import torch

    model = retriever.model
    if not texts:
        return np.zeros((0, model.get_embedding_dimension() or 0), dtype=np.float32)
    if takes_tokens(model):
        per_text = TOKENS_A_TEXT_CPU if model.device.type == "cpu" else TOKENS_A_TEXT
        vectors, cut_N = encode_in_batches(model, [prompt + text for text in texts], batch_size * per_text)
        flags_N = CUT * cut_N.astype(np.uint8)
        vectors = vectors[:, : model.truncate_dim].float()
    else:
        encode = model.encode_query if task == "query" else model.encode_document
        vectors = encode(
            list(texts), prompt=prompt, batch_size=batch_size, convert_to_tensor=True, show_progress_bar=False
        ).float()
        flags_N = np.full(len(texts), LENGTH_UNKNOWN, np.uint8)
    if _normalizes(model):
        # the model normalises in its own dtype; in bfloat16 lengths are off by up to half a percent
        vectors = torch.nn.functional.normalize(vectors, dim=-1)
    vectors_NH = vectors.cpu().numpy()
    flags_N |= ZERO * check_vectors(vectors_NH, texts).astype(np.uint8)
    notice(KINDS[task], flags_N, max_tokens=model.max_seq_length)
    return vectors_NH


def token_ids(retriever: Retriever, texts: Sequence[str]) -> tuple[list[list[int]], np.ndarray]:
    """The tokens that the model reads for texts which carry their prompts already, cut to its length, unpadded.

    And which texts (N,) were cut.
    """
    ids: list[list[int]] = []
    cut = [np.zeros(0, dtype=bool)]
    for start in range(0, len(texts), TEXTS_AT_ONCE):
        encoded = retriever.model.tokenizer(
            list(texts[start : start + TEXTS_AT_ONCE]),
            truncation=True,
            max_length=retriever.model.max_seq_length,
            return_attention_mask=False,
        )
        ids += encoded["input_ids"]
        cut.append(were_cut(encoded, retriever.model.max_seq_length))
    return ids, np.concatenate(cut)


def _normalizes(model: SentenceTransformer) -> bool:
    from sentence_transformers.sentence_transformer.modules import Normalize

    return any(isinstance(module, Normalize) for module in model)
