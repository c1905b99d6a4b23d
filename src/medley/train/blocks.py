"""Raw text as blocks of tokens of equal length, on disk: nothing is padded, and memory does not grow with the text."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medley.documents import Shard, read_documents
from medley.errors import ModelError
from medley.files import writing
from medley.progress import progress

if TYPE_CHECKING:
    import numpy as np

TEXTS_AT_A_TIME = 256


def token_file(tokenizer: Any, shards: Sequence[Shard], path: Path) -> np.ndarray:
    """The tokens of all documents (title, blank line, text, end token) as an array on disk, int32.

    Written once; a file that is there is taken as it is.
    """
    import numpy as np

    end = tokenizer.eos_token_id
    if end is None:
        raise ModelError("the base's tokenizer has no end-of-sequence token, which must stand between texts.")
    if not path.is_file():
        with (
            writing(path) as temporary,
            temporary.open("wb") as stream,
            progress("tokenize", None) as advance,
        ):
            waiting: list[str] = []

            def flush() -> None:
                if waiting:
                    for ids in tokenizer(waiting, add_special_tokens=False)["input_ids"]:
                        stream.write(np.array([*ids, end], dtype=np.int32).tobytes())
                    advance(len(waiting))
                    waiting.clear()

            for document, _ in read_documents(shards):
                waiting.append(f"{document.title}\n\n{document.text}".strip())
                if len(waiting) == TEXTS_AT_A_TIME:
                    flush()
            flush()
    return np.memmap(path, dtype=np.int32, mode="r") if path.stat().st_size else np.zeros(0, np.int32)


class Blocks:
    """The blocks of a token array as the data set that the trainer wants; a last incomplete one is left out."""

    def __init__(self, tokens: np.ndarray, length: int) -> None:
        self._tokens, self._length = tokens, length

    def __len__(self) -> int:
        return len(self._tokens) // self._length

    def __getitem__(self, index: int) -> dict[str, Any]:
        import numpy as np
        import torch

        block = self._tokens[index * self._length : (index + 1) * self._length]
        ids = torch.from_numpy(block.astype(np.int64))
        return {"input_ids": ids, "labels": ids.clone()}


def held_out_blocks(blocks: int, share: float, seed: int) -> set[int]:
    """Blocks that are not trained on, drawn at random; at least one where the share is above zero."""
    import numpy as np

    count = min(blocks - 1, max(1, round(share * blocks))) if share else 0
    return set(np.random.default_rng(seed).choice(blocks, count, replace=False).tolist())
