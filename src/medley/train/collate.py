"""From row numbers to tensors: the texts of a batch, each once and in order of length, and who is compared with whom.

Every text is tokenized and encoded once, however many pairs share it. A passage is hidden from a query to which it is
known or suspected to be relevant: it equals (but for case and punctuation) one of the query's positives anywhere in
the training data, or nearly equals its positive. With several processes each makes the same batch and keeps its
share of the texts, dealt in order of length, so the loss is that of one process and no one waits for another.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from medley.encoder import Retriever, token_ids
from medley.noticed import Count
from medley.overlap import normal_form, shingles
from medley.pairs import TrainingPair
from medley.train.batches import Keys, text_key
from medley.train.settings import TrainSettings

if TYPE_CHECKING:
    import torch


KINDS = ("training queries", "positives", "negatives")
NEAR_ROWS = 256
"""Positives that are held against all passages at a time."""


@dataclass(frozen=True)
class Texts:
    """The texts of a batch as the model reads them, prompts included, and their places.

    `positives` and `negatives` give for each query rows of `passages`, and those and `queries` rows of `texts`.
    """

    texts: list[str]
    queries: list[int]
    passages: list[int]
    positives: list[int]
    negatives: list[list[int]]


def known_positives(keys: Keys) -> Mapping[int, frozenset[int]]:
    """The positives of each query that has more than one, by key."""

    order_N = np.argsort(keys.query_N, kind="stable")
    sorted_N = keys.query_N[order_N]
    repeated_N = np.zeros(len(order_N), dtype=bool)
    repeated_N[1:] = sorted_N[1:] == sorted_N[:-1]
    repeated_N[:-1] |= repeated_N[1:]
    found: dict[int, set[int]] = {}
    for row in order_N[repeated_N].tolist():
        found.setdefault(int(keys.query_N[row]), set()).add(int(keys.positive_N[row]))
    return {query: frozenset(positives) for query, positives in found.items()}


def batch_texts(retriever: Retriever, pairs: Sequence[TrainingPair], *, negatives: int) -> Texts:
    """The texts of some pairs, each once; a pair brings its first `negatives` explicit negatives, or what it has."""
    texts: dict[str, int] = {}
    passages: dict[int, int] = {}
    prompt = retriever.document_prompt

    def passage(text: str) -> int:
        place = texts.setdefault(prompt + text, len(texts))
        return passages.setdefault(place, len(passages))

    queries = [
        texts.setdefault(retriever.query_prompt(pair.instruction or None) + pair.query, len(texts))
        for pair in pairs
    ]
    positives = [passage(pair.positive) for pair in pairs]
    own = [list(dict.fromkeys(map(passage, pair.negatives[:negatives]))) for pair in pairs]
    return Texts(list(texts), queries, list(passages), positives, own)


class Collator:
    """Makes a batch of the trainer's rows (`{"row": i}`); `rank` and `world` say which process of how many asks."""

    def __init__(
        self,
        retriever: Retriever,
        pairs: Sequence[TrainingPair],
        settings: TrainSettings,
        keys: Keys,
        *,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self.valid_label_columns: list[str] = []
        self._retriever, self._pairs, self._settings, self._keys = retriever, pairs, settings, keys
        self._known = known_positives(keys)
        # of each row seen so far how many texts it brings and how many of them are cut: query, positive, negatives
        self._seen_N3 = np.zeros((len(pairs), 3), dtype=np.uint16)
        self._cut_N3 = np.zeros((len(pairs), 3), dtype=np.uint16)
        self._rank, self._world = rank, world

    def __call__(self, rows: Sequence[Mapping[str, int]]) -> dict[str, torch.Tensor]:
        """The features of the loss; the prefix `text_` makes sentence-transformers' trainer hand them on as one."""
        numbers = [row["row"] for row in rows]
        pairs = [self._pairs[number] for number in numbers]
        batch = batch_texts(self._retriever, pairs, negatives=self._settings.negatives)
        hidden = self._hidden(batch, numbers)
        ids, cut = token_ids(self._retriever, batch.texts)
        self._count(batch, numbers, cut)
        features = dealt(batch, ids, hidden, rank=self._rank, world=self._world)
        return {f"text_{name}": tensor for name, tensor in features.items()}

    def _count(self, batch: Texts, numbers: Sequence[int], cut: np.ndarray) -> None:
        """Note which texts of these rows were cut; the same however often a row comes."""
        for row, query, positive, negatives in zip(
            numbers, batch.queries, batch.positives, batch.negatives, strict=True
        ):
            places = [[query], [batch.passages[positive]], [batch.passages[column] for column in negatives]]
            self._seen_N3[row] = [len(own) for own in places]
            self._cut_N3[row] = [int(cut[own].sum()) for own in places]

    def counts(self) -> dict[str, Count]:
        """Training texts by kind that came since the start or the last resume, and how many were cut to the model's
        length; a text counts once for each row that brings it."""
        seen, cut = self._seen_N3.sum(axis=0).tolist(), self._cut_N3.sum(axis=0).tolist()
        return {kind: Count(*numbers) for kind, *numbers in zip(KINDS, seen, cut, strict=True) if numbers[0]}

    def _hidden(self, batch: Texts, numbers: Sequence[int]) -> list[list[int]]:
        """For each query the passages that are no negatives for it, its positive aside."""
        rules = self._settings.false_negatives
        prompt = len(self._retriever.document_prompt)
        passages = [batch.texts[place][prompt:] for place in batch.passages]
        hidden: list[set[int]] = [set() for _ in numbers]
        if rules.known:
            holders: dict[int, list[int]] = {}
            for column, text in enumerate(passages):
                holders.setdefault(text_key(text), []).append(column)
            for query, row in enumerate(numbers):
                own = int(self._keys.positive_N[row])
                for positive in self._known.get(int(self._keys.query_N[row]), frozenset((own,))):
                    hidden[query].update(holders.get(positive, ()))
        if rules.near is not None:
            near = near_texts(passages, batch.positives, rules.near)
            for query, (columns, own_negatives) in enumerate(zip(near, batch.negatives, strict=True)):
                hidden[query] |= columns.difference(own_negatives)
        return [sorted(columns - {own}) for columns, own in zip(hidden, batch.positives, strict=True)]


def near_texts(passages: Sequence[str], positives: Sequence[int], threshold: float) -> list[set[int]]:
    """For each positive the passages whose word shingles have a Jaccard similarity with it of at least `threshold`."""
    from scipy.sparse import csr_array

    names: dict[str, int] = {}
    sets = [shingles(normal_form(text)) for text in passages]
    indices = [names.setdefault(shingle, len(names)) for elements in sets for shingle in elements]
    sizes = np.array([len(elements) for elements in sets])
    data = np.ones(len(indices), dtype=np.int32)
    bounds = np.concatenate([[0], np.cumsum(sizes)])
    held_DS = csr_array(
        (data, np.array(indices, dtype=np.int64), bounds), shape=(len(passages), max(len(names), 1))
    )
    found: list[set[int]] = [set() for _ in positives]
    for begin in range(0, len(positives), NEAR_ROWS):
        part = np.asarray(positives[begin : begin + NEAR_ROWS])
        shared_RD = (held_DS[part] @ held_DS.T).tocoo()
        union = sizes[part][shared_RD.row] + sizes[shared_RD.col] - shared_RD.data
        near = shared_RD.data >= threshold * union - 1e-9
        for row, column in zip(shared_RD.row[near].tolist(), shared_RD.col[near].tolist(), strict=True):
            found[begin + row].add(column)
    return found


def dealt(
    batch: Texts, ids: Sequence[Sequence[int]], hidden: Sequence[Sequence[int]], *, rank: int, world: int
) -> dict[str, torch.Tensor]:
    """A batch as tensors: this process's tokens, and everybody's places in the embeddings of all, rank by rank.

    Texts are dealt longest first; where they don't come out even, the shortest is dealt again and not used.
    `widths` are the lengths of the first process's texts, the longest of each round: all cut their mini-batches alike.
    """
    import torch

    order = sorted(range(len(ids)), key=lambda text: (-len(ids[text]), text))
    order += [order[-1]] * (-len(order) % world)
    rounds = len(order) // world
    place = {
        text: position % world * rounds + position // world
        for position, text in reversed(list(enumerate(order)))
    }
    mine = order[rank::world]
    count = len(batch.passages)

    def filled(rows: Sequence[Sequence[int]]) -> torch.Tensor:
        width = max(map(len, rows), default=0)
        return torch.tensor(
            [[*row, *[count] * (width - len(row))] for row in rows], dtype=torch.int64
        ).reshape(len(rows), width)

    is_positive = torch.zeros(count, dtype=torch.bool)
    is_positive[batch.positives] = True
    return {
        "input_ids": torch.tensor([token for text in mine for token in ids[text]], dtype=torch.int64),
        "lengths": torch.tensor([len(ids[text]) for text in mine]),
        "widths": torch.tensor([len(ids[text]) for text in order[::world]]),
        "query": torch.tensor([place[text] for text in batch.queries]),
        "passage": torch.tensor([place[text] for text in batch.passages]),
        "positive": torch.tensor(batch.positives),
        "own": filled(batch.negatives),
        "hidden": filled(hidden),
        "is_positive": is_positive,
    }


def as_contrast(features: Mapping[str, Any]) -> Any:
    """The part of a batch's tensors that the loss reads."""
    from medley.train.loss import Contrast

    return Contrast(
        features["query"], features["passage"], features["positive"], features["own"], features["hidden"],
        features["is_positive"],
    )  # fmt: skip
