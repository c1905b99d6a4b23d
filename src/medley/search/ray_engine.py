"""Ray as the engine: passages are encoded by workers on one machine or many; search and scores stay here.

In: a model's name and its dtype. Out: an embedder whose passages are encoded chunk by chunk by as many workers as the
cluster has accelerators, or CPUs where it has none. The chunks and the order are those of one process, so the vectors
are the same. Workers open the model by its name, so a folder has to be one that all machines see. `RAY_ADDRESS`
names a cluster; without it Ray starts on this machine.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from medley.errors import InputError
from medley.search.embedder import Embedder, embedder_of

if TYPE_CHECKING:
    from medley.encoder import Retriever

AHEAD = 2
"""Chunks that wait for each worker, so that none is idle."""


def ray_engine(dtype: str | None = None, workers: int | None = None) -> Callable[[str, Retriever], Embedder]:
    """A function that makes an embedder of a model's name and the model opened here (for queries and identity).

    Raises InputError where Ray is not installed.
    """
    try:
        import ray
    except ImportError as problem:
        raise InputError(
            "--engine ray: Ray is not installed; pip install 'medley-retrieval[ray]'."
        ) from problem
    if not ray.is_initialized():
        ray.init(log_to_driver=False, include_dashboard=False, logging_level="ERROR")

    def engine(name: str, retriever: Retriever) -> Embedder:
        return replace(
            embedder_of(retriever), encode_passages=_distributed(ray, name, retriever, dtype, workers)
        )

    return engine


class _Worker:
    """A process that has the model open. Threads are those of the process that evaluates, for equal results."""

    def __init__(self, name: str, dtype: str | None, threads: int) -> None:
        import torch

        from medley.encoder import open_retriever
        from medley.expert import open_expert

        torch.set_num_threads(threads)
        is_expert = (Path(name) / "adapter_config.json").is_file()
        self._retriever = (
            open_expert(Path(name), dtype=dtype) if is_expert else open_retriever(name, dtype=dtype)
        )

    def use(self, template: Any) -> None:
        """Take the template that the evaluating process uses."""
        self._retriever = replace(self._retriever, template=template)

    def encode(self, texts: list[str]) -> np.ndarray:
        """Vectors of one chunk."""
        from medley.encoder import encode_passages

        return encode_passages(self._retriever, texts)


def _distributed(
    ray: Any, name: str, retriever: Retriever, dtype: str | None, workers: int | None
) -> Callable[[Iterable[list[str]]], Iterator[np.ndarray]]:
    def encode(chunks: Iterable[list[str]]) -> Iterator[np.ndarray]:
        import torch

        resources = ray.cluster_resources()
        gpus = int(resources.get("GPU", 0))
        count = workers or gpus or max(1, int(resources.get("CPU", 1)) // max(1, torch.get_num_threads()))
        remote = ray.remote(num_gpus=1)(_Worker) if gpus else ray.remote(num_cpus=1)(_Worker)
        pool = [remote.remote(name, dtype, torch.get_num_threads()) for _ in range(count)]
        ray.get([worker.use.remote(retriever.template) for worker in pool])
        waiting: deque[Any] = deque()
        try:
            for number, chunk in enumerate(chunks):
                waiting.append(pool[number % count].encode.remote(chunk))
                if len(waiting) >= AHEAD * count:
                    yield ray.get(waiting.popleft())
            while waiting:
                yield ray.get(waiting.popleft())
        finally:
            for worker in pool:
                ray.kill(worker)

    return encode
