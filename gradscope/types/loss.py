"""From what to what the loss went: the same two numbers wherever a person looks."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

Frame = Any
SHARE, EARLY, LATE = 10, 10, 100
"""Both ends are a tenth of the steps, for one batch tells little: at most 10 at the beginning, where the loss falls
fast, and at most 100 at the end."""


class Change(NamedTuple):
    """The loss at both ends of a training.

    Attributes:
        first: median over the first steps; infinite where more than half of them were not finite.
        last: median over the last steps.
        early: how many steps the first are.
        late: how many the last are; 0 where there is but one step.
    """

    first: float
    last: float
    early: int
    late: int

    def __str__(self) -> str:
        """Both, as in `2.30 -> 1.39`; the only one of one step."""
        return f"{number(self.first)} -> {number(self.last)}" if self.late else number(self.first)


def seen(steps: Frame) -> Frame:
    """Those rows of a frame of `steps` whose loss was seen.

    NaN means that nobody saw the loss, unless something of the same step was not finite: then that is its value.
    """
    known = steps["loss"].notna()
    return steps[known | (steps["nonfinite"] > 0)] if known.any() else steps[known]


def change(steps: Frame) -> Change | None:
    """From what to what the loss went in a frame of `steps`; None where no loss was seen."""
    found = seen(steps)
    if found.empty:
        return None
    return ends(found["step"].to_numpy(), found["loss"].fillna(math.inf).to_numpy(float))


def ends(step: Any, loss: Any) -> Change:
    """The same of the numbers of steps and their losses, one at least."""
    begin, end = int(step.min()), int(step.max())
    early, late = (min(most, max(1, (end - begin + 1) // SHARE)) for most in (EARLY, LATE))
    with np.errstate(invalid="ignore"):  # the mean of both infinities
        first, last = (float(np.median(loss[near])) for near in (step < begin + early, step > end - late))
    return Change(first, last, early, late if end > begin else 0)


def number(value: float) -> str:
    """A loss with three digits, zeros at its end included, so that 2.30 and 1.39 stand beside each other."""
    if not math.isfinite(value):
        return "not finite"
    if 1000 <= abs(value) < 1e6:
        return f"{value:,.0f}"
    return "0" if value == 0 else f"{value:#.3g}".rstrip(".")
