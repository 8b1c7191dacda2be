"""Which of several processes this one is; asked without a word to the others."""

from __future__ import annotations

import os

import torch


def processes() -> tuple[int, int]:
    """Rank of this process, and how many there are.

    From the process group where one has been made, else from what a launcher such as `torchrun` has put into the
    environment; a process on its own has rank 0 of 1.
    """
    distributed = torch.distributed
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    try:
        rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    except (KeyError, ValueError):
        return 0, 1
    return (rank, size) if 0 <= rank < size else (0, 1)
