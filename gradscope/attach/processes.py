"""The rank of this process, found without communication."""

from __future__ import annotations

import os

import torch


def processes() -> tuple[int, int]:
    """The rank of this process, and the number of processes.

    Reads the process group if there is one, else the environment variables of a launcher such as `torchrun`. A single
    process has rank 0 of 1.
    """
    distributed = torch.distributed
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    try:
        rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    except (KeyError, ValueError):
        return 0, 1
    return (rank, size) if 0 <= rank < size else (0, 1)
