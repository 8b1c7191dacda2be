"""Receives the backward passes of a training."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

from gradscope.attach.backward import BACKWARD
from gradscope.observe.byhand import BY_HAND, ByHand
from gradscope.observe.calls import CallReceiver
from gradscope.observe.checks import Checks
from gradscope.observe.clock import StepClock
from gradscope.observe.guard import Guard, guarded
from gradscope.observe.look import Look
from gradscope.observe.nonfinite import Nonfinite
from gradscope.observe.parameters import Arrivals, Parameters
from gradscope.observe.passes import Pass, Passes


class PassReceiver:
    """Receives backward passes, and has each examined by those whom it concerns.

    Args:
        parameters: of the observed layers.
        passes: finds out whose step a pass belongs to.
        checks: of the loop, on recorded steps.
        look: at the gradients, where wanted.
        nonfinite: for what is not finite on idle steps.
        calls: holds the step's recording.
        guard: for failures.
        clock: of the steps.
        unmatched: called after a pass of a recorded step that has reached no observed call.

    Attributes:
        arrivals: which modules have received gradients in a recorded step.
        by_hand: watches for updates without an optimizer.
    """

    def __init__(
        self,
        parameters: Parameters,
        passes: Passes,
        checks: Checks,
        look: Look,
        nonfinite: Nonfinite,
        calls: CallReceiver,
        guard: Guard,
        clock: StepClock,
        unmatched: Callable[[], object],
    ) -> None:
        """See the class."""
        self.guard, self._clock, self._calls, self._parameters = guard, clock, calls, parameters
        self._passes, self._checks, self._look, self._nonfinite = passes, checks, look, nonfinite
        self._unmatched = unmatched
        self.arrivals, self.by_hand = Arrivals(parameters), ByHand()

    def listen(self) -> ExitStack:
        """Begin to listen; closing the result ends it."""
        with ExitStack() as undo:
            undo.callback(self.arrivals.stop)
            undo.callback(BACKWARD.listen(self).remove)
            return undo.pop_all()

    @guarded
    def before_backward(self, roots: Sequence[Any]) -> Pass | None:
        """See `BackwardListener`."""
        if not self._clock.begun:
            self._clock.start()
        if not (self.by_hand.over or self._passes.within) and self.by_hand.begins(self._parameters.trained()):
            self.guard.note(BY_HAND)
        one = self._passes.begin(roots, thorough=self._look.wanted)
        if self._calls.recording is not None and not self._calls.paused:
            self.arrivals.watch()
            self._checks.begins(one, first=not self._passes.any)
        return one

    @guarded
    def after_backward(self, token: Pass) -> None:
        """See `BackwardListener`."""
        if not self._passes.end(token):
            return
        if not (self.by_hand.over or token.within):
            self.by_hand.ended(self._parameters.trained(), values=self._look.wanted)
        if not self._look.wanted:
            self._nonfinite.after_idle_pass(token.loss)
            return
        self._look.after_backward()
        if self._calls.recording is not None:
            self._checks.ended(token)
            if not self._calls.recording.any:  # a layer that has been replaced may never see the end of a step
                self._unmatched()

    @guarded
    def broken_backward(self, token: Pass) -> None:
        """See `BackwardListener`."""
        self._passes.forget(token)
