"""What is done in each step: recorded, looked at, or neither."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from gradscope.observe.alarm import Alarm
from gradscope.observe.schedule import Looks, Schedule


class Plan:
    """Asks schedule and alarm; steps between those that may be due are added up and cost nothing more.

    Args:
        schedule: which steps are recorded.
        alarm: which beyond that.
        ask: calls the schedule, which may be the user's, under the guard.
    """

    def __init__(self, schedule: Schedule, alarm: Alarm, ask: Callable[..., Any]) -> None:
        """See the class."""
        self._schedule, self._alarm, self._ask, self._looks = schedule, alarm, ask, Looks()
        self._next = 0  # before this step nothing is due
        self._overhead_s = self._step_s = 0.0
        self._steps = 0

    def begin(self, step: int) -> tuple[bool, bool]:
        """Whether a step is recorded, and whether its gradients are looked at."""
        if step < self._next and not self._alarm.wanted:
            return False, False
        self._settle()
        due = bool(self._ask(self._schedule.due, step))  # both are asked
        recorded = self._alarm.due() or due
        looking = recorded or self._looks.due(step)
        self._next = min(self._schedule.following(step), self._looks.following(step))
        return recorded, looking

    def ended(self, *, recorded: bool, look_s: float, overhead_s: float, step_s: float) -> None:
        """A step has ended.

        Args:
            recorded: it was recorded.
            look_s: seconds that looking has taken; 0 if it was not looked at.
            overhead_s: seconds that all of gradscope has taken.
            step_s: seconds of the whole step.
        """
        if not (recorded or look_s):
            self._overhead_s += overhead_s
            self._step_s += step_s
            self._steps += 1
            return
        self._settle()
        self._schedule.spent(recorded=recorded, overhead_s=overhead_s, step_s=step_s)
        self._looks.spent(recorded=recorded, look_s=look_s, step_s=step_s)

    def _settle(self) -> None:
        """Hand on what has been added up."""
        steps, self._steps = self._steps, 0
        if steps:
            self._schedule.spent(recorded=False, overhead_s=self._overhead_s, step_s=self._step_s, steps=steps)
            self._looks.spent(recorded=False, look_s=0.0, step_s=self._step_s, steps=steps)
            self._overhead_s = self._step_s = 0.0
