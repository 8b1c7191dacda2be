"""How many units of a gate are near the ends of its range, over time and unit by unit."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gradscope.types import Gate


class Saturation:
    """Counts the units of some gates beyond their limits, `(low, high)` each, over timesteps and over units."""

    def __init__(self, limits: Sequence[tuple[float, float]], like: Tensor) -> None:
        self.limits = limits
        self.scratch = like.new_empty(0)
        self.ones = like.new_ones(like.shape[-1])
        self.by_time: list[Tensor] = []
        self.by_unit: list[Tensor] = []
        self.count: list[Tensor] = []

    def add(self, x: Tensor, valid: Tensor) -> None:
        """Count a piece, [t, B, G, H], where `valid`, [t, B]: gate by gate, for one gate fits the cache."""
        rows = valid.to(x.dtype).flatten()
        by_time, by_unit = x.new_empty(3, x.shape[2], len(rows)), x.new_empty(2, x.shape[2], x.shape[3])
        beyond = self.scratch.resize_(len(rows), x.shape[3])  # floats: sums of booleans are ten times slower
        for gate, (value, limits) in enumerate(zip(x.unbind(2), self.limits, strict=True)):
            value = value.flatten(0, 1)
            torch.mv(value, self.ones, out=by_time[2, gate])
            for side, compare in enumerate((torch.lt, torch.gt)):
                compare(value, limits[side], out=beyond)
                torch.mv(beyond, self.ones, out=by_time[side, gate])
                torch.mv(beyond.mT, rows, out=by_unit[side, gate])
        self.by_time.append(by_time.div_(x.shape[3]).unflatten(2, valid.shape))
        self.by_unit.append(by_unit)
        self.count.append(rows.sum())

    def finish(self) -> list[Gate]:
        """The gates in order."""
        by_time = torch.cat(self.by_time[::-1], 2)
        by_unit = torch.stack(self.by_unit).sum(0) / torch.stack(self.count).sum()
        return [Gate(*gate) for gate in zip(*by_time, *by_unit, strict=True)]
