"""A base that no single device holds: its frozen weights are divided among the processes that train an adapter on it.

PyTorch's fully sharded data parallelism (FSDP2, `fully_shard`): each process keeps its share of every tensor, and a
layer is put together from all shares just before it computes, in both directions. Only the base is divided. The adapter
is small and whole in every process, so the optimiser, checkpoints and what is saved are those of an undivided base, and
so are the gradients (gradient_cache.py adds them up). All processes must compute equally many mini-batches: they do,
because mini-batches are cut by the widths that collate.py has agreed on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from medley.backbone import backbone
from medley.encoder import Retriever
from medley.train.processes import count

if TYPE_CHECKING:
    from medley.train.settings import TrainSettings


def is_sharded(settings: TrainSettings) -> bool:
    """Whether a training divides its base: the settings ask for it, and a launcher has started several processes."""
    return settings.shard_base and count() > 1


def loading_device(settings: TrainSettings) -> str | None:
    """Where a base is opened: in main memory if no device is to hold all of it, else where models go by themselves."""
    return "cpu" if is_sharded(settings) else None


def shard_base(retriever: Retriever) -> None:
    """Divide the weights of a retriever's decoder among the processes, layer by layer; a second call does nothing.

    An adapter is put on afterwards. All processes call this together.
    """
    import torch
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method

    decoder = backbone(retriever)
    if isinstance(decoder, FSDPModule):
        return
    decoder.requires_grad_(False)
    devices = "cuda" if torch.cuda.is_available() else "cpu"
    mesh = init_device_mesh(devices, (dist.get_world_size(),))
    for layer in decoder.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(decoder, mesh=mesh)
    # sentence-transformers calls `forward` itself, past the hooks that put the weights together
    register_fsdp_forward_method(decoder, "forward")
