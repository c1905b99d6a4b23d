"""Pairs by the million on disk: gathered from a stream of documents, each text once, read back by row number.

A folder holds `pairs.jsonl` and, once it is finished, `rows.safetensors` with the byte offset of each row. While it is
being filled, `state.safetensors` says up to where: a killed process goes on in the middle of a shard and ends with
the same rows. Where more pairs are found than wanted, those with the smallest hash are kept, which is a random draw
that depends on nothing but seed and texts.
"""

from __future__ import annotations

import json
import os
import time
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import astuple
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from medley.documents import Place, Shard, read_documents
from medley.errors import PairsError
from medley.files import remove, writing
from medley.fingerprint import fingerprint
from medley.pairs import TrainingPair, pairs_from_row
from medley.progress import progress
from medley.train.batches import text_key
from medley.train.settings import PretrainSettings
from medley.train.unlabelled import pairs_of

if TYPE_CHECKING:
    import numpy as np

PAIRS, ROWS, STATE = "pairs.jsonl", "rows.safetensors", "state.safetensors"
CHECKPOINT_S = 60.0
MERGE_AT = 1_000_000
"""New keys that are held as Python numbers before they move into the array."""


class PairStore(Sequence[TrainingPair]):
    """The pairs of a finished folder, read from disk one at a time; in no order that means anything."""

    def __init__(self, folder: Path) -> None:
        arrays, _ = _read(folder / ROWS)
        self._path = folder / PAIRS
        self._offsets = arrays["offsets"]

    def __len__(self) -> int:
        return len(self._offsets)

    def __getitem__(self, row: int | slice) -> TrainingPair | list[TrainingPair]:  # type: ignore[override]
        if isinstance(row, slice):
            return [self._at(index) for index in range(*row.indices(len(self)))]
        return self._at(range(len(self))[row])

    def __iter__(self) -> Iterator[TrainingPair]:
        with self._path.open("rb") as stream:
            for row in range(len(self)):
                yield self._read(stream, row)

    def _at(self, row: int) -> TrainingPair:
        with self._path.open("rb") as stream:
            return self._read(stream, row)

    def _read(self, stream: IO[bytes], row: int) -> TrainingPair:
        stream.seek(int(self._offsets[row]))
        (pair,) = pairs_from_row(json.loads(stream.readline()), f"{self._path}: row {row}", row)
        return pair


def gather_pairs(
    shards: Sequence[Shard],
    settings: PretrainSettings,
    folder: Path,
    *,
    seed: int,
    content: str = "",
    checkpoint_s: float = CHECKPOINT_S,
) -> PairStore:
    """Fill a folder with the pairs of all documents, at most `settings.max_pairs`, or go on where that was killed.

    A pair is left out when its query or its positive stood in an earlier pair (but for case and punctuation), so
    that no batch holds a text twice and a heading that every document has counts once. `content` is a fingerprint
    of the documents, where one is known: a folder filled from others is filled anew.
    Raises PairsError when fewer than two pairs are found.
    """
    names = [
        [shard.name, shard.stat().st_size] if isinstance(shard, Path) else len(shard) for shard in shards
    ]
    identity = fingerprint([names, content, settings.model_dump(mode="json", exclude={"train"}), seed])
    if not (folder / ROWS).is_file() or _read(folder / ROWS)[1] != identity:
        folder.mkdir(parents=True, exist_ok=True)
        remove(folder / ROWS)
        gathering = _Gathering(folder, identity, settings.max_pairs, seed)
        with progress("read documents", None) as advance, gathering.open():
            last = time.monotonic()
            for document, place in read_documents(shards, gathering.place):
                for pair in pairs_of(document, settings, seed=seed):
                    gathering.add(pair)
                gathering.place = place
                advance(1)
                if time.monotonic() - last >= checkpoint_s:
                    gathering.checkpoint()
                    last = time.monotonic()
            gathering.finish()
    store = PairStore(folder)
    if len(store) < 2:
        raise PairsError(
            f"pretrain: the documents give {len(store)} pairs, a contrast needs two; give more or longer ones."
        )
    return store


class _Gathering:
    """A folder being filled."""

    def __init__(self, folder: Path, identity: str, max_pairs: int | None, seed: int) -> None:
        self.place = Place()
        self._folder, self._identity, self._max_pairs, self._seed = folder, identity, max_pairs, seed
        self._offsets, self._draws = array("q"), array("q")
        self._limit, self._size = 2**63, 0
        self._seen = SeenKeys()
        self._resume()

    def _resume(self) -> None:
        if not (self._folder / STATE).is_file():
            return
        arrays, text = _read(self._folder / STATE)
        state = json.loads(text)
        if state["identity"] == self._identity:
            self.place, self._size, self._limit = Place(*state["place"]), state["size"], state["limit"]
            self._offsets, self._draws = array("q", arrays["offsets"]), array("q", arrays["draws"])
            self._seen = SeenKeys(arrays["seen"])

    def open(self) -> Any:
        """Open the file of pairs where the last checkpoint left it."""
        path = self._folder / PAIRS
        path.touch()
        self._stream = path.open("r+b")
        self._stream.truncate(self._size)
        self._stream.seek(self._size)
        return self._stream

    def add(self, pair: TrainingPair) -> None:
        """Keep a pair if both its texts are new and the draw falls on it."""
        keys = text_key(pair.query), text_key(pair.positive)
        if keys[0] == keys[1] or any(key in self._seen for key in keys):
            return
        for key in keys:
            self._seen.add(key)
        draw = int(fingerprint([self._seed, *keys])[:15], 16)
        if draw >= self._limit:
            return
        line = json.dumps(pair.as_row(), ensure_ascii=False).encode() + b"\n"
        self._stream.write(line)
        self._offsets.append(self._size)
        self._draws.append(draw)
        self._size += len(line)
        if self._max_pairs is not None and len(self._draws) >= 2 * self._max_pairs:
            self._thin(self._max_pairs)

    def _thin(self, count: int) -> None:
        """Keep the `count` rows with the smallest draws, and none with a larger one from now on."""
        import numpy as np

        offsets, draws = np.array(self._offsets), np.array(self._draws)
        if len(draws) > count:
            self._limit = int(np.partition(draws, count)[count])
            kept = draws < self._limit
            self._offsets, self._draws = array("q", offsets[kept]), array("q", draws[kept])

    def checkpoint(self) -> None:
        """Make what is there so far survive a kill."""
        self._stream.flush()
        os.fsync(self._stream.fileno())
        state = {
            "identity": self._identity,
            "place": astuple(self.place),
            "size": self._size,
            "limit": self._limit,
        }
        arrays = {"offsets": self._offsets, "draws": self._draws, "seen": self._seen.all()}
        _write(self._folder / STATE, arrays, json.dumps(state))

    def finish(self) -> None:
        """Draw what is kept for good and write where each row stands."""
        if self._max_pairs is not None:
            self._thin(self._max_pairs)
        self._stream.flush()
        os.fsync(self._stream.fileno())
        _write(self._folder / ROWS, {"offsets": self._offsets}, self._identity)
        remove(self._folder / STATE)


class SeenKeys:
    """A set of 63-bit keys in 8 bytes each: a sorted array, and the newest in a Python set until they are many."""

    def __init__(self, keys: np.ndarray | None = None) -> None:
        import numpy as np

        self._sorted = np.sort(keys) if keys is not None else np.zeros(0, dtype=np.int64)
        self._new: set[int] = set()

    def __contains__(self, key: int) -> bool:
        if key in self._new:
            return True
        at = int(self._sorted.searchsorted(key))
        return at < len(self._sorted) and int(self._sorted[at]) == key

    def add(self, key: int) -> None:
        """Put a key in."""
        self._new.add(key)
        if len(self._new) >= MERGE_AT:
            self._sorted, self._new = self.all(), set()

    def all(self) -> np.ndarray:
        """Every key, sorted."""
        import numpy as np

        new = np.fromiter(self._new, dtype=np.int64, count=len(self._new))
        return np.union1d(self._sorted, new)


def _write(path: Path, arrays: dict[str, Any], text: str) -> None:
    import numpy as np
    from safetensors.numpy import save_file

    with writing(path) as temporary:
        save_file(
            {name: np.asarray(values, dtype=np.int64) for name, values in arrays.items()},
            temporary,
            {"text": text},
        )


def _read(path: Path) -> tuple[dict[str, np.ndarray], str]:
    from safetensors import safe_open

    with safe_open(path, "np") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata()["text"]  # noqa: SIM118
