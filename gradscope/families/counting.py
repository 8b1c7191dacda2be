"""Numbers of timesteps and lags as a column, to compare with lengths."""

from __future__ import annotations

import functools

import torch
from torch import Tensor


@functools.lru_cache(maxsize=64)
def column(count: int, device: torch.device) -> Tensor:
    """The numbers from 0 to `count - 1`, [count, 1]; everybody gets the same tensor, so nobody writes to it."""
    with torch.inference_mode(False):
        return torch.arange(count, device=device).unsqueeze(1)
