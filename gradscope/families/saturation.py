"""Counts the units of a gate near the ends of its range, over time and unit by unit."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gradscope.types import Gate

AT_ONCE = 1 << 17
"""Elements to compare at once on a CPU."""


class Saturation:
    """Counts units of gates beyond their limits, `(low, high)` each, by timestep and by unit."""

    def __init__(self, limits: Sequence[tuple[float, float]], like: Tensor) -> None:
        ends = torch.tensor(limits, dtype=like.dtype, device=like.device)
        self.limits = ends.mT.unsqueeze(-1).unsqueeze(-1).unbind(0)
        self.scratch = like.new_empty(0)
        self.ones = like.new_ones(1, like.shape[-1], 1)
        self.by_time: list[Tensor] = []
        self.by_unit: list[Tensor] = []
        self.count: list[Tensor] = []

    def add(self, x: Tensor, valid: Tensor) -> None:
        """Count a piece, [t, B, G, H], where `valid`, [t, B], with as many gates at once as fit the cache.

        Sums are products: sums of booleans are ten times slower.
        """
        x = x.movedim(2, 0).flatten(1, 2)
        gates, count, width = x.shape
        at_once = min(gates, max(1, AT_ONCE // (count * width))) if x.device.type == "cpu" else gates
        rows = valid.to(x.dtype).view(1, 1, -1)
        by_time, by_unit = list[list[Tensor]](), list[list[Tensor]]()
        for some, low, high in zip(*(part.split(at_once) for part in (x, *self.limits)), strict=True):
            down, across = self.ones.expand(len(some), -1, -1), rows.expand(len(some), -1, -1)
            beyond = self.scratch.resize_(some.shape)
            sums = [(torch.bmm(compare(some, end, out=beyond), down), torch.bmm(across, beyond))
                    for compare, end in ((torch.lt, low), (torch.gt, high))]  # fmt: skip
            by_time.append([*(each for each, _ in sums), torch.bmm(some, down)])
            by_unit.append([each for _, each in sums])
        self.by_time.append(_stacked(by_time).div_(width).view(3, gates, *valid.shape))
        self.by_unit.append(_stacked(by_unit).view(2, gates, width))
        self.count.append(valid.sum())

    def finish(self) -> list[Gate]:
        """The gates in order."""
        by_time, by_unit, count = self.by_time[0], self.by_unit[0], self.count[0]
        if len(self.count) > 1:
            by_time = torch.cat(self.by_time[::-1], 2)
            by_unit, count = torch.stack(self.by_unit).sum(0), torch.stack(self.count).sum()
        parts = [*by_time.unbind(0), *(by_unit / count).unbind(0)]
        return [Gate(*gate) for gate in zip(*(part.unbind(0) for part in parts), strict=True)]


def _stacked(parts: list[list[Tensor]]) -> Tensor:
    """Join sums of several kinds over groups of gates, [kinds, G, ...]."""
    return torch.cat([torch.cat(kind) for kind in zip(*parts, strict=True)])
