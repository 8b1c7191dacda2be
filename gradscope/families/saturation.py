"""Counts the units of a gate near the ends of its range, over time and unit by unit."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from gradscope.types import Gate

AT_ONCE = 1 << 17
"""Elements to compare at once on a CPU."""


@functools.lru_cache(maxsize=16)
def _ends(limits: tuple[tuple[float, float], ...], dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """Lower and upper limits, [G, 1, 1] each."""
    low, high = torch.tensor(limits, dtype=dtype, device=device).view(-1, 2, 1, 1).unbind(1)
    return low, high


@functools.lru_cache(maxsize=16)
def _ones(width: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """[1, H, 1]."""
    return torch.ones(1, width, 1, dtype=dtype, device=device)


class Saturation:
    """Counts units of gates beyond their limits, `(low, high)` each, by timestep and by unit."""

    def __init__(self, limits: Sequence[tuple[float, float]], like: Tensor) -> None:
        self.limits = _ends(tuple(limits), like.dtype, like.device)
        self.scratch: Tensor | None = None
        self.ones = _ones(like.shape[-1], like.dtype, like.device)
        self.by_time: list[Tensor] = []
        self.by_unit: list[Tensor] = []
        self.count: list[Tensor] = []

    def add(self, groups: Sequence[Tensor], valid: Tensor) -> None:
        """Count a piece where `valid`, [t, B].

        Args:
            groups: [t, B, g, H] each; together the gates, in the order of their limits.
            valid: the places to count.
        """
        flat = [group.movedim(2, 0).flatten(1, 2) for group in groups]
        width, gates = flat[0].shape[-1], len(self.limits[0])
        at_once = max(1, AT_ONCE // (valid.numel() * width)) if valid.device.type == "cpu" else gates
        parts = [some for x in flat for some in (x.split(at_once) if len(x) > at_once else (x,))]  # that fit the cache
        low, high = (end.split([len(some) for some in parts]) for end in self.limits)
        rows = valid.to(flat[0].dtype).view(1, 1, -1)
        counts = [self._count(*part, rows) for part in zip(parts, low, high, strict=True)]
        by_time, by_unit = (torch.cat([x[n] for n in kinds for x in counts]) for kinds in ((0, 1, 2), (3, 4)))
        self.by_time.append(by_time.div_(width).view(3 * gates, *valid.shape))
        self.by_unit.append(by_unit)
        self.count.append(valid.sum())

    def _count(self, x: Tensor, low: Tensor, high: Tensor, rows: Tensor) -> tuple[Tensor, ...]:
        """By timestep the units of x, [g, t * B, H], below and above, and the sum; by unit those below and above.

        Sums are products: sums of booleans are ten times slower.
        """
        down, across = self.ones.expand(len(x), -1, -1), rows.expand(len(x), -1, -1)
        beyond = self.scratch = x.new_empty(x.shape) if self.scratch is None else self.scratch.resize_(x.shape)
        (below, unit_below), (above, unit_above) = [
            (torch.bmm(compare(x, end, out=beyond), down), torch.bmm(across, beyond))
            for compare, end in ((torch.lt, low), (torch.gt, high))
        ]
        return below, above, torch.bmm(x, down), unit_below, unit_above

    def finish(self) -> list[Gate]:
        """The gates in order."""
        by_time, by_unit, count = self.by_time[0], self.by_unit[0], self.count[0]
        if len(self.count) > 1:
            by_time = torch.cat(self.by_time[::-1], 1)
            by_unit, count = torch.stack(self.by_unit).sum(0), torch.stack(self.count).sum()
        gates = len(self.limits[0])
        parts = [*by_time.unbind(0), *(by_unit / count).squeeze(1).unbind(0)]
        return [Gate(*gate) for gate in zip(*(parts[n * gates :][:gates] for n in range(5)), strict=True)]
