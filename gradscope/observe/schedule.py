"""Which optimizer steps are recorded."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Protocol

from gradscope.errors import AttachError


class Schedule(Protocol):
    """Decides before a step whether it is recorded, and hears afterwards what it cost."""

    def due(self, step: int) -> bool:
        """Whether to record this step; asked once for every step, in order."""
        ...

    def spent(self, *, recorded: bool, overhead_s: float, step_s: float) -> None:
        """A step has ended: how long it took in all, and how much of that was gradscope's."""
        ...


def make_schedule(every: int | Callable[[int], bool] | None, budget: float) -> Schedule:
    """The schedule that `attach(every=..., budget=...)` asks for.

    Raises:
        AttachError: `every` is neither a positive number nor callable, or `budget` is not a positive share.
    """
    if every is None:
        if not isinstance(budget, (int, float)) or isinstance(budget, bool) or not 0 < budget <= 1:
            raise AttachError(
                f"budget={budget!r}: expected the share of training time that recording may cost, above 0 and "
                "at most 1 (0.015 is 1.5 %). To record given steps instead, pass every=N."
            )
        return Budget(float(budget))
    if callable(every):
        return Chosen(every)
    if not isinstance(every, int) or isinstance(every, bool) or every < 1:
        raise AttachError(
            f"every={every!r}: expected a whole number of steps, 1 or more, a function of the step, or None to let "
            "the budget decide."
        )
    return Chosen(lambda step: step % every == 0)


class Chosen:
    """The steps that a function chooses."""

    def __init__(self, wanted: Callable[[int], bool]) -> None:
        """See the class."""
        self._wanted = wanted

    def due(self, step: int) -> bool:
        """See `Schedule`."""
        return bool(self._wanted(step))

    def spent(self, *, recorded: bool, overhead_s: float, step_s: float) -> None:
        """See `Schedule`."""


class Budget:
    """Multiples of a power of two, the smallest that keeps gradscope's share of the training time within the budget.

    Step intervals that are powers of two have common multiples, so that the processes of a distributed run, which
    measure different times, still record common steps.
    """

    def __init__(self, share: float) -> None:
        """See the class."""
        self._share = share
        self._interval = 1
        self._started = False
        self._total = self._overhead = 0.0
        self._recorded_cost = self._plain_step = 0.0

    def due(self, step: int) -> bool:
        """See `Schedule`."""
        if not self._started:
            self._started = True
            return True
        if step % self._interval:
            return False
        if self._overhead + self._recorded_cost <= self._share * (self._total + self._recorded_cost):
            return True
        self._interval *= 2  # once: at a step that is a multiple of much more, the next chance would be far away
        return False

    def spent(self, *, recorded: bool, overhead_s: float, step_s: float) -> None:
        """See `Schedule`."""
        self._total += step_s
        self._overhead += overhead_s
        if not recorded:
            plain = step_s - overhead_s
            self._plain_step = plain if not self._plain_step else 0.9 * self._plain_step + 0.1 * plain
            return
        # The first recording pays for what later ones find ready; what becomes dearer is believed at once.
        self._recorded_cost = max(overhead_s, (self._recorded_cost + overhead_s) / 2)
        self._interval = self._affordable(step_s - overhead_s)

    def _affordable(self, step_s: float) -> int:
        """The interval that the budget allows in the long run."""
        step = self._plain_step or step_s
        steps = self._recorded_cost / (self._share * step) if step > 0 else 1.0
        return 2 ** max(0, math.ceil(math.log2(max(steps, 1.0))))
