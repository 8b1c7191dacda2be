"""Decides for each step: record, look at the gradients, or neither."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from gradscope.observe.alarm import Alarm
from gradscope.observe.schedule import Looks, Schedule


class Plan:
    """Combines schedule and alarm; steps that cannot be due only add up their times.

    Args:
        schedule: chooses the steps to record.
        alarm: chooses further steps.
        call: calls the schedule, which may be the user's, under the guard.
    """

    def __init__(self, schedule: Schedule, alarm: Alarm, call: Callable[..., Any]) -> None:
        """See the class."""
        self._schedule, self._alarm, self._call, self._looks = schedule, alarm, call, Looks()
        self._next = 0  # the first step that may be due
        self._overhead_s = self._step_s = 0.0
        self._steps = 0

    def begin(self, step: int) -> tuple[bool, bool]:
        """True if a step is recorded, and True if its gradients are looked at."""
        if step < self._next and not self._alarm.wanted:
            return False, False
        self._report_idle()
        due = bool(self._call(self._schedule.due, step))  # called even if the alarm is due
        recorded = self._alarm.due() or due
        looking = recorded or self._looks.due(step)
        self._next = min(self._schedule.following(step), self._looks.following(step))
        return recorded, looking

    def idle_over(self, next_step: int, *, overhead_s: float, step_s: float) -> bool:
        """An idle step has ended, see `ended`; True if the next one is idle too, and nobody has to call `begin`."""
        self._overhead_s += overhead_s
        self._step_s += step_s
        self._steps += 1
        return next_step < self._next and not self._alarm.wanted

    def ended(self, *, recorded: bool, look_s: float, overhead_s: float, step_s: float) -> None:
        """A step has ended.

        Args:
            recorded: True if the step was recorded.
            look_s: seconds of the look; 0 without one.
            overhead_s: seconds of gradscope in all.
            step_s: seconds of the whole step.
        """
        if not (recorded or look_s):
            self._overhead_s += overhead_s
            self._step_s += step_s
            self._steps += 1
            return
        self._report_idle()
        self._schedule.spent(recorded=recorded, overhead_s=overhead_s, step_s=step_s)
        self._looks.spent(recorded=recorded, look_s=look_s, step_s=step_s)

    def _report_idle(self) -> None:
        """Report the idle steps so far to schedule and looks."""
        steps, self._steps = self._steps, 0
        if steps:
            self._schedule.spent(recorded=False, overhead_s=self._overhead_s, step_s=self._step_s, steps=steps)
            self._looks.spent(recorded=False, look_s=0.0, step_s=self._step_s, steps=steps)
            self._overhead_s = self._step_s = 0.0
