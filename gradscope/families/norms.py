"""Norms, and differences of norms, of values whose squares may leave the range of float32."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

SAFE = 1e-15, 1e15
"""Norms between these are exact in float32: no square that matters has left its range."""


def norm(x: Tensor) -> Tensor:
    """2-norm over the last dimension, in float64."""
    return norms([x])[0]


def norms(parts: Sequence[Tensor]) -> list[Tensor]:
    """2-norms over the last dimension of each part, in float64, with rows scaled if their squares leave the range."""
    if parts[0].device.type != "cpu":  # one kernel each; a check of the range would wait for the device
        return [torch.linalg.vector_norm(x, dim=-1, dtype=torch.float64) for x in parts]
    return [_in_range(x, torch.linalg.vector_norm(x, dim=-1)) for x in parts]


def _in_range(x: Tensor, rough: Tensor) -> Tensor:
    """The norms in float64, from rough norms in float32."""
    size = rough.double()
    low, high = torch.aminmax(rough)
    if x.dtype == torch.float64 or (float(low) > SAFE[0] and float(high) < SAFE[1]):
        return size
    doubtful = ~((size > SAFE[0]) & (size < SAFE[1]))
    rows = x[doubtful]  # most of them are 0: nothing enters there
    peak = rows.abs().amax(-1, keepdim=True)
    if bool(peak.any()):
        peak.clamp_(min=torch.finfo(x.dtype).tiny)
        size[doubtful] = torch.linalg.vector_norm(rows / peak, dim=-1).double() * peak.squeeze(-1)
    return size


def drop_nearly_subnormal(x: Tensor) -> Tensor:
    """Replace values below 1e-34 (float32, on a CPU) by 0: a step or two later they would be subnormal."""
    return x if x.device.type != "cpu" else torch.nn.functional.hardshrink(x, torch.finfo(x.dtype).tiny * 2**13)


def relative_parts(rebuilt: Tensor, kernel: Tensor, valid: Tensor | None = None) -> Tensor:
    """Squared norms of the difference and of the kernel's values, over the valid rows: [2], in float64.

    If a kernel's value is not finite, the difference is 0 if the rebuilt value is not finite either, else infinite.
    """
    difference = rebuilt - kernel
    if valid is not None:
        difference.masked_fill_(~valid.unsqueeze(-1), 0)
    parts = torch.stack([torch.linalg.vector_norm(x) for x in (difference, kernel)]).double().square()
    if math.isfinite(parts.sum()):
        return parts
    finite = kernel.isfinite()
    agree = finite == rebuilt.isfinite()
    if valid is not None:
        agree |= ~valid.unsqueeze(-1)
    difference.masked_fill_(~finite, 0).masked_fill_(~agree, torch.inf)
    known = kernel.masked_fill(~finite, 0)
    return torch.stack([torch.linalg.vector_norm(x, dtype=torch.float64).square() for x in (difference, known)])


def relative(parts: Tensor) -> Tensor:
    """||difference|| / ||reference||, 0-dim; 0 if both vanish."""
    difference, reference = parts.sqrt()
    return torch.where(difference == 0, difference, difference / reference)
