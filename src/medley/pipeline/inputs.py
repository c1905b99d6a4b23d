"""What a run reads, opened once: collections with their identities, files and code with their fingerprints."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from medley.collections import Collection, FolderCorpus, Passage, load_collection, load_corpus
from medley.documents import shards_of
from medley.encoder import Retriever
from medley.errors import InputError, PairsError
from medley.fingerprint import fingerprint, fingerprint_file, fingerprint_path, fingerprint_texts
from medley.model_name import model_identity
from medley.pair_files import located
from medley.pairs import iter_pairs
from medley.text_file import as_path

ALL = "all"
"""Name of the model trained on all the data together."""


@dataclass
class Inputs:
    """Opened collections and computed fingerprints of one planning, so that no file is read twice."""

    keep_empty: bool = False
    collections: dict[str, Collection] = field(default_factory=dict)
    corpora: dict[str, Sequence[Passage]] = field(default_factory=dict)
    identities: dict[str, str] = field(default_factory=dict)
    pairs: dict[str, int] = field(default_factory=dict)
    shares_cut: dict[str, float | None] = field(default_factory=dict)
    """By collection or source: the share of texts that are longer than the model reads, by a sample; None: unknown."""
    bases: dict[str, Retriever] = field(default_factory=dict)
    """An open base without an adapter, by its place, that the next expert starts from."""
    left_out: dict[str, int] = field(default_factory=dict)
    """For each dev collection how many of its queries were left out, since a test set has them too."""

    def collection(self, spec: str) -> Collection:
        """The collection that `SPEC:SPLIT` names."""
        if spec not in self.collections:
            self.collections[spec] = load_collection(spec, keep_empty=self.keep_empty)
        return self.collections[spec]

    def collection_identities(self, specs: Iterable[str]) -> dict[str, str]:
        """Content fingerprints by name and split: where the files lie does not count."""
        collections = [self.collection(spec) for spec in specs]
        return {f"{collection.name}:{collection.split}": collection.identity for collection in collections}

    def corpus(self, spec: str) -> Sequence[Passage]:
        """The passages of the collection that `SPEC` names, which needs no queries."""
        if spec not in self.corpora:
            self.corpora[spec] = load_corpus(spec, keep_empty=self.keep_empty)
        return self.corpora[spec]

    def corpus_identity(self, spec: str) -> str:
        """Content fingerprint of a corpus."""
        key = f"corpus of {spec}"
        if key not in self.identities:
            corpus = self.corpus(spec)
            self.identities[key] = (
                fingerprint_file(corpus.path)
                if isinstance(corpus, FolderCorpus)
                else fingerprint_texts(text for passage in corpus for text in (passage.id, passage.full_text))
            )
        return self.identities[key]

    def text_identities(self, collections: Iterable[str], documents: Iterable[str]) -> list[str]:
        """Content fingerprints of corpora, and of files or folders of raw text."""
        found = [self.corpus_identity(spec) for spec in collections]
        for source in documents:
            if source not in self.identities:
                self.identities[source] = fingerprint(
                    [fingerprint_file(f) for f in shards_of(expanded(source))]
                )
            found.append(self.identities[source])
        return found

    def file(self, path: str) -> str:
        """Content fingerprint of a user's own prompt or table."""
        if path not in self.identities:
            location = expanded(path)
            if not location.is_file():
                raise InputError(f"{path}: no such file; check the path in the recipe.")
            self.identities[path] = fingerprint_file(location)
        return self.identities[path]

    def pairs_file(self, path: str) -> str:
        """Content fingerprint of a pairs file, or of a split of a data-set folder; every row of it is checked."""
        if path not in self.identities:
            location = expanded(path)
            if not located(location).exists():
                raise PairsError(f"{path}: no such pairs file; check the path in the recipe's sources.")
            self.pairs[path] = sum(1 for _ in iter_pairs(location))
            self.identities[path] = fingerprint_path(located(location))
        return self.identities[path]

    def pairs_in(self, path: str) -> int:
        """How many pairs a file holds: one for each positive of each row."""
        self.pairs_file(path)
        return self.pairs[path]

    def model(self, name: str) -> str:
        """Content fingerprint of a model folder, or id and revision of a hub model."""
        if name not in self.identities:
            self.identities[name] = model_identity(name)
        return self.identities[name]


def expanded(path: str) -> Path:
    """A recipe's path with `~` and `$VARIABLES` filled in; PairsError where a variable is unset."""
    filled = as_path(os.path.expandvars(path), PairsError)
    if "$" in str(filled):
        raise PairsError(f"{path}: the environment variable is not set; export it or write the path out.")
    return filled
