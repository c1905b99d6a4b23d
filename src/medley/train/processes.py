"""Training in several processes, one a device: join the others, agree with them, know who writes files.

A launcher (torchrun, accelerate launch) starts the same command once for each device and says in the environment how
many there are. Without a launcher all of this does nothing.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TypeVar

from medley.errors import InputError

Value = TypeVar("Value")


def join() -> None:
    """Join the other processes where a launcher started several; a second call does nothing.

    Raises InputError where the launcher itself is to divide the model (FSDP, DeepSpeed).
    """
    if count() == 1:
        return
    for name, what in (("ACCELERATE_USE_FSDP", "FSDP"), ("ACCELERATE_USE_DEEPSPEED", "DeepSpeed")):
        if os.environ.get(name, "false").lower() == "true":
            raise InputError(
                f"the launcher asks for {what}, but the model is not its to divide: start plain processes, and set "
                "train.shard_base where a device does not hold the base."
            )
    import torch
    import torch.distributed as dist

    if dist.is_initialized():
        return
    if not torch.cuda.is_available():
        os.environ["ACCELERATE_USE_CPU"] = (
            "true"  # else accelerate sees no device and leaves each process alone
        )
    from accelerate import PartialState

    PartialState(cpu=not torch.cuda.is_available())


def count() -> int:
    """How many processes train together; 1 without a launcher."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_first() -> bool:
    """Whether this process writes the files: the first of several, joined yet or not, or the only one."""
    if count() == 1:
        return True
    import torch.distributed as dist

    return dist.get_rank() == 0 if dist.is_initialized() else os.environ.get("RANK", "0") == "0"


def shared(make: Callable[[], Value], *, everywhere: bool = False) -> Value:
    """The first process's value, in all of them; with `everywhere` each makes one all the same."""
    import torch.distributed as dist

    if not dist.is_initialized():
        return make()
    box = [make() if everywhere or is_first() else None]
    dist.broadcast_object_list(box, src=0)
    return box[0]  # type: ignore[return-value]


def wait() -> None:
    """Go on when all processes are here."""
    import torch.distributed as dist

    if dist.is_initialized():
        dist.barrier()
