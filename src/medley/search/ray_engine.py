"""Ray as the engine: passages are encoded by workers on one machine or many; search and scores stay here.

In: a model's name and how it is opened. Out: an embedder whose passages are encoded chunk by chunk, by as many workers
as the cluster has accelerators, or CPUs where it has none. The chunks and the order are those of one process, so the
vectors are the same. Workers open the model by its name, so a folder has to be one that all machines see; that it is
the same model there is checked. `RAY_ADDRESS` names a cluster; without it Ray starts on this machine.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from medley.errors import InputError, ModelError
from medley.search.embedder import Embedder, embedder_of

if TYPE_CHECKING:
    from medley.encoder import Retriever

AHEAD = 2
"""Chunks that wait for each worker, so that none is idle."""


def ray_engine(
    opening: Callable[[str], Retriever], workers: int | None = None
) -> Callable[[str, Retriever], Embedder]:
    """A function that makes an embedder of a model's name and the model opened here (for queries and identity).

    `opening` opens a model by its name, here and on the workers. Raises InputError where Ray is not installed, and
    ModelError, when passages are encoded, where a worker finds another model under the name.
    """
    try:
        import ray
    except ImportError as problem:
        raise InputError(
            "--engine ray: Ray is not installed; pip install 'medley-retrieval[ray]'."
        ) from problem
    if not ray.is_initialized():
        ray.init(log_to_driver=False, include_dashboard=False, logging_level=logging.ERROR)

    def engine(name: str, retriever: Retriever) -> Embedder:
        embedder = embedder_of(retriever)
        return replace(embedder, encode_passages=_distributed(ray, name, opening, embedder, workers))

    return engine


class _Worker:
    """A process that has the model open. Threads are those of the process that evaluates, for equal results."""

    def __init__(self, name: str, opening: Callable[[str], Retriever], threads: int) -> None:
        import torch

        torch.set_num_threads(threads)
        self._retriever = opening(name)

    def identity(self) -> str:
        """What this worker has open."""
        return embedder_of(self._retriever).identity()

    def encode(self, texts: list[str]) -> np.ndarray:
        """Vectors of one chunk."""
        from medley.encoder import encode_passages

        return encode_passages(self._retriever, texts)


def _distributed(
    ray: Any, name: str, opening: Callable[[str], Retriever], embedder: Embedder, workers: int | None
) -> Callable[[Iterable[list[str]]], Iterator[np.ndarray]]:
    def encode(chunks: Iterable[list[str]]) -> Iterator[np.ndarray]:
        import torch

        threads = torch.get_num_threads()
        resources = ray.cluster_resources()
        gpus = int(resources.get("GPU", 0))
        count = workers or gpus or max(1, int(resources.get("CPU", 1)) // max(1, threads))
        remote = ray.remote(num_gpus=1)(_Worker) if gpus else ray.remote(num_cpus=1)(_Worker)
        pool = [remote.remote(name, opening, threads) for _ in range(count)]
        waiting: deque[Any] = deque()
        try:
            if set(ray.get([worker.identity.remote() for worker in pool])) != {embedder.identity()}:
                raise ModelError(
                    f"{name}: is another model on a worker than here; put the same folder on all machines."
                )
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
