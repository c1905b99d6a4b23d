"""Medley turns a decoder-only language model into a retriever for one domain: synthesize, train, merge, evaluate.

A whole recipe is `medley run` on the command line. Step by step, in Python:

    import medley

    mined = medley.mine("pairs.jsonl", "mined.jsonl", corpus="data/handbook")
    forum = medley.train("Qwen/Qwen3-0.6B", "mined.jsonl", "forum-expert", dev=["data/handbook:dev"])
    found = medley.search_merge("merge.yaml", "searched")        # names the experts, the method and dev
    tested = medley.evaluate([str(found.model), "bm25"], ["data/handbook:test"], out="results.json")
    print(tested.to_frame(), medley.compare("results.json").to_frame())

    retriever = medley.open_retriever("searched/model")
    queries_QH = medley.encode_queries(retriever, ["how do I get a new badge"])
    passages_DH = medley.encode_passages(retriever, ["Badges are issued at the front desk."])

mine, train, train_on_text, merge, search_merge, evaluate and compare do what the commands of these names do; each
result has `to_frame()`, a pandas data frame. Settings are the recipe's: MiningSettings, TrainSettings, MergeFile.
Public names load on first use, so that `import medley` stays fast.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from medley.api.compare import compare as compare
    from medley.api.evaluate import evaluate as evaluate
    from medley.api.merge import merge as merge
    from medley.api.merge import search_merge as search_merge
    from medley.api.mine import mine as mine
    from medley.api.train import train as train
    from medley.api.train import train_on_text as train_on_text

__version__ = "0.1.0"

_HOMES = {
    "mine": "medley.api.mine",
    "train": "medley.api.train",
    "train_on_text": "medley.api.train",
    "merge": "medley.api.merge",
    "search_merge": "medley.api.merge",
    "open_tasks": "medley.api.evaluate",
    "evaluate": "medley.api.evaluate",
    "compare": "medley.api.compare",
    "MiningSettings": "medley.mine.settings",
    "TrainSettings": "medley.train.settings",
    "LanguageSettings": "medley.train.settings",
    "MergeFile": "medley.merge.settings",
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


class _Package(ModuleType):
    """This package, in which `train` stays the function also when the subpackage `medley.train` is imported.

    The import system binds a subpackage to its name in the package above, which would hide the function; the
    subpackage itself is found by its full name all the same.
    """

    def __setattr__(self, name: str, value: object) -> None:
        if not (name in _HOMES and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'medley' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
