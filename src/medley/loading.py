"""Opening model files: quietly, only when they are whole, and never running code that comes with them.

transformers draws tensors that a file lacks at random and leaves out those it has no place for, with a warning at
most. Here both are refused, with their names. What may be missing: weights that are tied to others, and a pooler
(BERT's), which no vector of ours passes through. What may be left over: heads, which stand beside the backbone.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medley.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

NAMED = 3
"""How many tensors a message names."""


class quiet_loading:  # noqa: N801 (used as a statement: `with quiet_loading():`)
    """Keep transformers' weight-loading bars and reports out of the user's terminal, warnings included."""

    def __enter__(self) -> None:
        """Remember and lower the verbosity."""
        from transformers.utils import logging as transformers_logging

        self._verbosity = transformers_logging.get_verbosity()
        self._bars = transformers_logging.is_progress_bar_enabled()
        transformers_logging.set_verbosity_error()
        transformers_logging.disable_progress_bar()
        logging.getLogger("sentence_transformers").setLevel(logging.ERROR)

    def __exit__(self, *_: object) -> None:
        """Restore it."""
        from transformers.utils import logging as transformers_logging

        transformers_logging.set_verbosity(self._verbosity)
        if self._bars:
            transformers_logging.enable_progress_bar()
        logging.getLogger("sentence_transformers").setLevel(logging.NOTSET)


@contextmanager
def opening(name: str, kind: str) -> Iterator[None]:
    """Within, transformers and sentence-transformers open models quietly and whole.

    `name` is the user's, `kind` what it is opened as. Raises ModelError naming the tensors that are missing, left over
    or of another shape, and for everything that the libraries cannot read.
    """
    from safetensors import SafetensorError

    try:
        with quiet_loading(), _whole(name):
            yield
    except (
        OSError, ValueError, RuntimeError, LookupError, TypeError, AttributeError, ImportError, SafetensorError,
    ) as problem:  # fmt: skip
        if "trust_remote_code" in str(problem):
            raise ModelError(
                f"{name}: needs Python code of its own to be opened, which Medley never runs; choose a model that "
                "transformers knows by itself."
            ) from problem
        reason = next(iter(str(problem).strip().splitlines()), "") or type(problem).__name__
        raise ModelError(
            f"{name}: cannot be opened as {kind} ({reason.rstrip('.:')}); check its files."
        ) from problem


@contextmanager
def _whole(name: str) -> Iterator[None]:
    """Within, `from_pretrained` of any transformers model checks what it found in the files."""
    from transformers import PreTrainedModel

    original = PreTrainedModel.__dict__["from_pretrained"]

    def checked(cls: type[PreTrainedModel], *args: Any, **options: Any) -> Any:
        told = options.pop("output_loading_info", False)
        options |= {"output_loading_info": True, "ignore_mismatched_sizes": True, "trust_remote_code": False}
        model, found = original.__func__(cls, *args, **options)
        check_tensors(model, found, name)
        return (model, found) if told else model

    PreTrainedModel.from_pretrained = classmethod(checked)  # type: ignore
    try:
        yield
    finally:
        PreTrainedModel.from_pretrained = original  # type: ignore


def check_whole(folder: Path, name: str) -> None:
    """Check a model folder's files as opening it does, by their headers: no weights are read. Raises ModelError."""
    from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

    with opening(name, "a model"):
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        with_head = any("CausalLM" in architecture for architecture in config.architectures or ())
        kind: Any = AutoModelForCausalLM if with_head else AutoModel
        kind.from_pretrained(folder, device_map="meta", trust_remote_code=False)


def check_tensors(model: PreTrainedModel, found: dict[str, Any], name: str) -> None:
    """Refuse a file that lacks tensors of the model, has some that it has no place for, or other shapes.

    `found` is transformers' loading information. A pooler that is missing becomes zero, the same in every process.
    Raises ModelError.
    """
    poolers = {key for key in found["missing_keys"] if "pooler" in key.split(".")}
    for key in poolers:
        model.get_parameter(key).data.zero_()
    if missing := set(found["missing_keys"]) - poolers:
        raise ModelError(
            f"{name}: its files lack {_counted(missing)} of the model that its config.json describes; copy or download "
            "it again, or save it whole."
        )
    if found["mismatched_keys"]:
        key, stored, expected = sorted(found["mismatched_keys"], key=str)[0]
        raise ModelError(
            f"{name}: {key} is {tuple(stored)} in its files and {tuple(expected)} by its config.json "
            f"({len(found['mismatched_keys'])} such); its files are of two models, copy it again."
        )
    parts = {part for part, _ in model.base_model.named_children()}
    prefix = f"{model.base_model_prefix}."
    if over := {key for key in found["unexpected_keys"] if key.removeprefix(prefix).split(".")[0] in parts}:
        raise ModelError(
            f"{name}: its files hold {_counted(over)} for which the model that its config.json describes has no place; "
            "its files are of two models, copy it again."
        )


def check_vocabulary(model: Any, tokenizer: Any, name: str) -> None:
    """Refuse a tokenizer that knows a word for which the embeddings have no row. Raises ModelError.

    Special tokens may lack one (Gemma's text models name an image token): texts do not hold them.
    """
    rows = int(model.get_input_embeddings().weight.shape[0])
    special = set(tokenizer.all_special_ids) | {
        number for number, token in tokenizer.added_tokens_decoder.items() if token.special
    }
    beyond = {
        number: token
        for token, number in tokenizer.get_vocab().items()
        if number >= rows and number not in special
    }
    if beyond:
        first = min(beyond)
        raise ModelError(
            f"{name}: its tokenizer knows {beyond[first]!r} as token {first}, but the embeddings end at row {rows - 1} "
            f"({len(beyond)} such); resize them "
            "with `model.resize_token_embeddings(len(tokenizer))` and train the new rows."
        )


def _counted(keys: Iterable[str]) -> str:
    """The first few names, and how many there are."""
    names = sorted(keys)
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return f"{len(names)} tensor{'s' if len(names) > 1 else ''} ({', '.join(names[:NAMED])}{more})"
