"""Norms, and differences of norms, of values whose squares may leave the range of float32."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from gradscope.private import foreach_norm

SAFE = 1e-15, 1e15
"""Norms between these are exact in float32: no square that matters has left its range."""


def norm(x: Tensor) -> Tensor:
    """2-norm over the last dimension, in float64."""
    return norms([x])[0]


def norms(parts: Sequence[Tensor]) -> list[Tensor]:
    """2-norms over the last dimension of each part, in float64, from float32 where the squares stay in its range."""
    if parts[0].device.type != "cpu" or parts[0].dtype == torch.float64:  # a check of the range would wait for a device
        return [torch.linalg.vector_norm(x, dim=-1, dtype=torch.float64) for x in parts]
    flat = [x.flatten(0, -3) if x.dim() > 3 else x for x in parts]
    rough = torch.cat([torch.linalg.vector_norm(x, dim=-1) for x in flat])
    lengths = [len(x) for x in flat]
    sizes = rough.double().split(lengths)
    doubtful = rough != rough.clamp(*SAFE)
    somewhere = iter((doubtful.any(1) if doubtful.dim() > 1 else doubtful).tolist())
    for x, size, some in zip(flat, sizes, doubtful.split(lengths), strict=True):
        if any(list(itertools.islice(somewhere, len(x)))):
            rows = x[some]  # most of them are 0: nothing enters there
            if any(map(float, torch.aminmax(rows))):
                size[some] = torch.linalg.vector_norm(rows, dim=-1, dtype=torch.float64)
    return [s.view(x.shape[:-1]) if x.dim() > 3 else s for x, s in zip(parts, sizes, strict=True)]


def drop_nearly_subnormal(x: Tensor) -> Tensor:
    """Replace values below 1e-34 (float32, on a CPU) by 0, in place: a step or two later they would be subnormal."""
    if x.device.type != "cpu":
        return x
    return torch.ops.aten.hardshrink.out(x, torch.finfo(x.dtype).tiny * 2**13, out=x)


def relative_parts(rebuilt: Tensor, kernel: Tensor, valid: Tensor | None = None) -> Tensor:
    """Norms of the difference and of the kernel's values, over the valid rows: [2].

    If a kernel's value is not finite, the difference is 0 if the rebuilt value is not finite either, else infinite.
    """
    difference = rebuilt - kernel
    if valid is not None:
        difference.masked_fill_(~valid.unsqueeze(-1), 0)
    parts = torch.stack(list(foreach_norm([difference, kernel], 2)))
    if all(map(math.isfinite, parts.tolist())):
        return parts
    finite = kernel.isfinite()
    agree = finite == rebuilt.isfinite()
    if valid is not None:
        agree |= ~valid.unsqueeze(-1)
    difference.masked_fill_(~finite, 0).masked_fill_(~agree, torch.inf)
    known = kernel.masked_fill(~finite, 0)
    return torch.stack([torch.linalg.vector_norm(x, dtype=torch.float64) for x in (difference, known)])


def combined(parts: Sequence[Tensor]) -> Tensor:
    """Norms over several pieces from those of each, all of one shape."""
    return parts[0] if len(parts) == 1 else torch.linalg.vector_norm(torch.stack(list(parts)), dim=0)


def relative(parts: Tensor) -> Tensor:
    """||difference|| / ||reference|| of [..., 2], [...], in float64; 0 if both vanish."""
    difference, reference = parts.double().unbind(-1)
    return torch.where(difference == 0, difference, difference / reference)
