"""The loss at both ends of a training: the same two numbers in all texts."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

Frame = Any
SHARE, EARLY, LATE = 10, 10, 100
"""Both ends are a tenth of the steps, as one batch shows little: at most 10 at the beginning, where the loss falls
fast, and at most 100 at the end."""


class Change(NamedTuple):
    """The loss at both ends of a training.

    Attributes:
        first: median over the first steps; infinite if more than half of them are not finite.
        last: median over the last steps.
        early: number of first steps.
        late: number of last steps; 0 if there is only one step.
    """

    first: float
    last: float
    early: int
    late: int

    def __str__(self) -> str:
        """Write both, as in `2.30 -> 1.39`, or the loss of a single step."""
        return f"{number(self.first)} -> {number(self.last)}" if self.late else number(self.first)


def known_losses(steps: Frame) -> Frame:
    """Return the rows of `steps` with a known loss.

    NaN is an unknown loss, unless the step has another non-finite value: then NaN is the loss.
    """
    known = steps["loss"].notna()
    return steps[known | (steps["nonfinite"] > 0)] if known.any() else steps[known]


def change(steps: Frame) -> Change | None:
    """Compute the loss at both ends of `steps`; None without any known loss."""
    known = known_losses(steps)
    if known.empty:
        return None
    return ends(known["step"].to_numpy(), known["loss"].fillna(math.inf).to_numpy(float))


def ends(step: Any, loss: Any) -> Change:
    """Compute the loss at both ends from numbers of steps and their losses, one at least."""
    begin, end = int(step.min()), int(step.max())
    early, late = (min(most, max(1, (end - begin + 1) // SHARE)) for most in (EARLY, LATE))
    with np.errstate(invalid="ignore"):  # the mean of both infinities
        first, last = (float(np.median(loss[near])) for near in (step < begin + early, step > end - late))
    return Change(first, last, early, late if end > begin else 0)


def number(value: float) -> str:
    """Write a loss with three digits, with final zeros, so that 2.30 and 1.39 align."""
    if not math.isfinite(value):
        return "not finite"
    if 1000 <= abs(value) < 1e6:
        return f"{value:,.0f}"
    return "0" if value == 0 else f"{value:#.3g}".rstrip(".")
