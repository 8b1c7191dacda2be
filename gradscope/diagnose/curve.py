"""The losses of a training as a curve: the levels at which they stand, and their noise."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[np.float64]]

BLOCKS = 20
"""The curve compares medians of so many blocks of steps."""
SPIKE = 2.0
"""A typical early loss so many times the very first shows that the first steps threw the training off."""
SURE = 3.0
"""Standard errors of a significant difference."""


class Curve:
    """Finite losses, and their levels: medians over blocks of steps.

    Differences are compared with their noise in logarithms if no loss is below zero: noise grows with the size.

    Args:
        steps: numbers of the steps, rising, [steps].
        losses: the finite loss of each, [steps].

    Attributes:
        positive: whether no loss is below zero, and one is above.
        levels: median of each block, [blocks].
        tenth: number of blocks in a tenth of the steps.
        thrown: whether the first steps threw the loss up.
        begin: loss at the beginning.
        first: level of the second tenth of the steps.
        end: level of the last tenth.
        late: the lower of `end` and the level of the last quarter.
        lows: level of each tenth that begins with a block, [blocks - tenth + 1].
        best_block: first block of the lowest such tenth.
        best: its level.
    """

    def __init__(self, steps: Array, losses: Array) -> None:
        self.steps, self.losses = steps, losses
        self.positive = float(losses.min()) >= 0 < float(losses.max())
        self._least = float(losses[losses > 0].min()) if self.positive else 0.0
        self._scaled = np.log(np.maximum(losses, self._least)) if self.positive else losses
        count = min(BLOCKS, len(losses) // 4)
        self._blocks = np.array_split(np.arange(len(losses)), count)
        self.levels = np.array([np.median(losses[block]) for block in self._blocks])
        first = float(np.median(losses[: max(1, min(5, len(losses) // 20))]))
        self.thrown = first > SPIKE * losses[0] > 0
        self.begin = float(losses[0]) if self.thrown else first
        self.tenth = tenth = max(1, round(count / 10))
        self.first, self.end = self._level(tenth, 2 * tenth), self._level(count - tenth, count)
        self.late = min(self.end, self._level(count - max(1, count // 4), count))
        self.lows = [self._level(i, i + tenth) for i in range(count - tenth + 1)]
        self.best_block = int(np.argmin(self.lows))
        self.best = self.lows[self.best_block]
        self._noise = self._standard_error()

    def _level(self, block: int, until: int) -> float:
        return float(np.median(self.part(block, until)))

    def _indices(self, block: int, until: int) -> Any:
        return np.concatenate(self._blocks[block:until])

    def _standard_error(self) -> float:
        """Estimate the error of a tenth's median, from differences of successive losses and of successive levels."""
        later = self._scaled[len(self._scaled) // 4 :]
        single = spread(np.diff(later)) / math.sqrt(len(self.losses) / 10)
        levels = np.log(np.maximum(self.levels, self._least)) if self.positive else self.levels
        rough = spread(np.diff(levels, 2)[len(levels) // 4 :]) / math.sqrt(3)
        return max(1.25 * single, rough / math.sqrt(max(1, self.tenth)))

    def part(self, block: int, until: int) -> Array:
        """Return the losses of some blocks."""
        return self.losses[self._indices(block, until)]

    def late_mean(self) -> float:
        """Return the mean loss of the last quarter."""
        count = len(self._blocks)
        return float(self.part(count - max(1, count // 4), count).mean())

    def last_tenth(self) -> Array:
        """Return the losses of the last tenth."""
        count = len(self._blocks)
        return self.part(count - self.tenth, count)

    def best_step(self) -> int:
        """Return the step in the middle of the lowest tenth."""
        return int(self.steps[self._indices(self.best_block, self.best_block + self.tenth)].mean())

    def surely_above(self, above: float, below: float) -> bool:
        """True if one level lies above another by more than the noise."""
        if above <= below:
            return False
        difference = math.log(above / max(below, self._least)) if self.positive else above - below
        return difference > SURE * math.sqrt(2) * self._noise

    def flat_from(self) -> int | None:
        """Return the block from which on no level is above that of the end; None if that part is short."""
        little = min(0.02 * abs(self.end), 0.1 * abs(self.begin - self.end))
        near = self.end + max(little, 3 * (self.end * self._noise if self.positive else self._noise))
        above = np.flatnonzero(self.levels > near)
        since = int(above[-1]) + 1 if len(above) else 0
        return None if since > 0.7 * len(self.levels) else since

    def stopped(self) -> int | None:
        """Return the step since which the loss no longer falls; None if it falls."""
        since = self.flat_from()
        return None if since is None else int(self.steps[self._blocks[since][0]])


def spread(values: Array) -> float:
    """Estimate the standard deviation of single values from differences, by the median of their sizes."""
    return float(np.median(np.abs(values))) / 0.6745 / math.sqrt(2) if len(values) else 0.0
