"""Medley turns a decoder-only language model into a retriever for one domain.

Synthesize, train, merge, evaluate: see README.md, or `medley demo`. The public names load on first use, so that
`import medley` stays fast.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "Collection": "medley.collections",
    "Passage": "medley.collections",
    "load_collection": "medley.collections",
    "TrainingPair": "medley.pairs",
    "read_pairs": "medley.pairs",
    "write_pairs": "medley.pairs",
    "Retriever": "medley.encoder",
    "RetrieverSettings": "medley.encoder",
    "build_retriever": "medley.encoder",
    "open_retriever": "medley.encoder",
    "save_retriever": "medley.encoder",
    "encode_queries": "medley.encoder",
    "encode_passages": "medley.encoder",
    "Template": "medley.template",
    "MedleyError": "medley.errors",
    "InputError": "medley.errors",
}

__all__ = ["__version__", *sorted(_HOMES)]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'medley' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
