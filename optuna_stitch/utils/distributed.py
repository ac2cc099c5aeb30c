"""Several processes that work on one job, started by ``torchrun``."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor


@contextmanager
def process_group() -> Iterator[None]:
    """Join the other processes where ``torchrun`` started several; else do nothing.

    They talk through gloo, and on GPUs through nccl.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or dist.is_initialized():
        yield
        return
    dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
    try:
        yield
    finally:
        dist.destroy_process_group()


def rank() -> int:
    """The number of this process, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """How many processes there are; 1 without a process group."""
    return dist.get_world_size() if dist.is_initialized() else 1


def all_reduce(tensors: Sequence[Tensor]) -> None:
    """Replace every tensor, in place, by its sum over all processes.

    Args:
        tensors: On one device; of the same shapes and in the same order in every process.
    """
    if world_size() == 1:
        return
    for tensor in tensors:
        dist.all_reduce(tensor)


def barrier() -> None:
    """Return when all processes have come here."""
    if world_size() > 1:
        dist.barrier()
