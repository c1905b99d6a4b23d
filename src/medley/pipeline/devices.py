"""Experts on several devices: side by side, one process a device; or one after another, each on all of them.

Experts know nothing of one another, so as many train at a time as there are devices, each in a process that sees one
device only. With a launcher (`torchrun --nproc-per-node 8`, `accelerate launch --num_processes 8`) one expert at a time
trains on all devices that the launcher starts processes for. Results are the same files as from one device.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from medley.errors import InputError, MedleyError
from medley.progress import say
from medley.run import Step, states

POLL_S = 0.2


@dataclass(frozen=True)
class Devices:
    """How many processes train at a time, and the command that starts one (Python's, without a launcher)."""

    count: int = 1
    launcher: str = ""

    def __post_init__(self) -> None:
        if self.count < 1:
            raise InputError(f"--devices {self.count}: give at least 1.")
        if self.launcher and self.count > 1:
            raise InputError(
                "--launcher and --devices exclude each other: a launcher has its own number of devices."
            )

    @property
    def in_this_process(self) -> bool:
        """Whether nothing needs a process of its own."""
        return self.count == 1 and not self.launcher


def train_on(devices: Devices, folder: Path, steps: Sequence[Step], *, stage: str, lock: int) -> None:
    """Make all steps of a stage that are to do or stale, each in a process of its own (see worker.py).

    The steps must not need one another. `lock` is the descriptor of the folder's lock: the processes inherit it, so
    that no other run begins while one of them lives; and they end when this process does, however it ends, because
    then their standard input does. Raises what the first failing process reports, after ending the others; finished
    artefacts stay.
    """
    waiting = [s.step for s in states(folder, steps) if s.step.stage == stage and s.state != "done"]
    running: dict[int, tuple[Step, subprocess.Popen[bytes]]] = {}
    with _ended(running):
        while waiting or running:
            for slot in range(devices.count):
                if waiting and slot not in running:
                    step = waiting.pop(0)
                    say(f"{step.id}: on device {slot}" if devices.count > 1 else step.id)
                    command = [
                        *_python(devices.launcher),
                        "-m",
                        "medley.pipeline.worker",
                        str(folder),
                        step.id,
                    ]
                    running[slot] = (
                        step,
                        subprocess.Popen(
                            command,
                            stdin=subprocess.PIPE,
                            pass_fds=(lock,),
                            env=_environment(devices, slot),
                        ),
                    )
            for slot, (step, process) in list(running.items()):
                code = process.poll()
                if code is not None:
                    del running[slot]
                    process.communicate()  # closes its standard input
                    _check(step, code)
            time.sleep(POLL_S)


def _python(launcher: str) -> list[str]:
    return shlex.split(launcher) if launcher else [sys.executable]


def _environment(devices: Devices, slot: int) -> Mapping[str, str]:
    """What a process sees: one of the GPUs, or its share of the CPU's cores."""
    if devices.launcher:
        return os.environ
    import torch

    if torch.cuda.is_available():
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        names = visible.split(",") if visible else [str(index) for index in range(torch.cuda.device_count())]
        if devices.count > len(names):
            raise InputError(f"--devices {devices.count}: there are only {len(names)} here.")
        return {**os.environ, "CUDA_VISIBLE_DEVICES": names[slot]}
    threads = max(1, (os.cpu_count() or 1) // devices.count)
    return {"OMP_NUM_THREADS": str(threads), **os.environ}


def _check(step: Step, code: int) -> None:
    if code == InputError.exit_code:
        raise InputError(f"{step.id} could not be made; the reason stands above.")
    if code:
        raise MedleyError(f"{step.id} ended with code {code}; the reason stands above.")


@contextlib.contextmanager
def _ended(running: Mapping[int, tuple[Step, subprocess.Popen[bytes]]]) -> Iterator[None]:
    """End what still runs, however the block is left."""
    try:
        yield
    finally:
        for _, process in running.values():
            process.terminate()
        for _, process in running.values():
            process.communicate()
