"""Follows a training through its events: one optimizer step after the other."""

from __future__ import annotations

import math
import time
import weakref
from collections.abc import Callable, Generator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from gradscope.attach.optimizers import OPTIMIZERS
from gradscope.capture.positions import SequenceModule
from gradscope.families import Work
from gradscope.observe.alarm import Alarm
from gradscope.observe.backward import PassReceiver
from gradscope.observe.calls import CallReceiver
from gradscope.observe.checks import Checks
from gradscope.observe.clock import StepClock
from gradscope.observe.ending import Ending
from gradscope.observe.guard import Guard, guarded
from gradscope.observe.ledger import Ledger
from gradscope.observe.nonfinite import Nonfinite
from gradscope.observe.owners import Owners
from gradscope.observe.parameters import Parameters
from gradscope.observe.passes import Passes
from gradscope.observe.plan import Plan
from gradscope.observe.recorded import RecordedRows
from gradscope.observe.schedule import Schedule
from gradscope.observe.tree import Tree
from gradscope.observe.watched import Watched
from gradscope.record.recorder import Recorder
from gradscope.types import Rows

Tell = Callable[[Mapping[str, Any]], None]
"""Adds facts about the run to its `run.json`."""


@dataclass(frozen=True, slots=True)
class Settings:
    """Arguments of `attach`.

    Attributes:
        wanted: names of the quantities.
        limit: the most sequences to analyse; None for all.
        first_step: number of the first step.
        strict: raise failures of gradscope.
        jumps: record the step after a jump of the gradient norm, whatever the schedule.
    """

    wanted: frozenset[str]
    limit: int | None
    first_step: int
    strict: bool
    jumps: bool = False


class Observer:
    """Receives backward passes and optimizer steps, and gives the rows of each step to the recorder.

    Attributes:
        step: number of the current step.
        first_step: number of the first one.
        records: how many steps have been recorded.
        observed: class of every observed module, by name.
        clock: of the steps.
    """

    def __init__(
        self, watched: Watched, recorder: Recorder, schedule: Schedule, settings: Settings, tell: Tell
    ) -> None:
        """Begin with step `settings.first_step`."""
        layers, own = watched.layers, watched.own
        modules, others = list(layers.values()), [one.module for one in own if isinstance(one, SequenceModule)]
        self.tree = Tree(watched.model, [*modules, *(one.module for one in own)])
        self._layers, self._recorder = weakref.WeakValueDictionary(layers), recorder
        self._parameters, self.clock = Parameters(self.tree, modules, others), StepClock()
        self.guard = guard = Guard(settings.strict, cuda=any(p.is_cuda for p in self._parameters.all))
        self.calls = CallReceiver(self._layers, own, settings.limit, Work(settings.wanted), guard, self.clock.start)
        self._passes = Passes(self.tree.parameters)
        self._parameters.when_replaced(self._passes.forget_parameters)
        self._owners = Owners(self.tree, modules, partial(guard.call, tell))
        self.ledger = Ledger(self._parameters, self._passes, guard, self._owners, self.finish)
        self._look, self._alarm = self.ledger.look, Alarm(jumps=settings.jumps)
        self._nonfinite = Nonfinite(self._parameters, self.ledger, self._alarm, self._modules)
        self._plan, self._idle = Plan(schedule, self._alarm, guard.call), False
        checks = Checks(self.tree)
        self._backward = PassReceiver(
            self._parameters, self._passes, checks, self._look, self._nonfinite, self.calls, guard, self.clock,
            lambda: self._recorded.unseen(self.step, ()),
        )  # fmt: skip
        self._recorded = RecordedRows(
            self.tree, self._modules, self.calls, self._passes, self._owners, self.ledger, self._parameters,
            self._backward.arrivals, checks, guard, settings.wanted,
        )  # fmt: skip
        self.first_step = self.step = settings.first_step
        self.records, self.observed = 0, watched.classes
        self._begin()

    def listen(self, *, every_call: bool) -> ExitStack:
        """Begin to listen; closing the result ends it.

        Args:
            every_call: receive kernel calls on every step, for another listener needs them.
        """
        with ExitStack() as undo:
            undo.callback(OPTIMIZERS.listen(self).remove)
            undo.push(self._backward.listen())
            undo.push(self.calls.listen(always=every_call))
            undo.push(self.ledger.listen())
            return undo.pop_all()

    def _modules(self) -> dict[str, Any]:
        """The observed modules that still exist, by name."""
        return {**self.calls.own, **self._layers}

    def before_step(self, optimizer: Optimizer, has_closure: bool) -> None:
        """See `OptimizerListener`; most idle steps need nothing."""
        if has_closure or not self._idle or self.ledger.suspect or self._nonfinite.suspect or self.ledger.scaling.used:
            self._before_step(optimizer, has_closure)

    @guarded
    def _before_step(self, optimizer: Optimizer, has_closure: bool) -> None:
        """Look at the gradients that the optimizer gets."""
        if not self._owners.of(optimizer).watched:
            return
        scaling, recording = self.ledger.scaling, self.calls.recording
        scaling.stepped(optimizer)
        if has_closure:
            self._passes.within_step(True)
            return
        if self._look.wanted:
            scaling.without(optimizer)
            self._look.at_optimizer(optimizer)
        if self._parameters.on_host and (self._alarm.armed or recording):
            if not self._nonfinite.before_step() and recording is not None:
                recording.release()

    def after_step(self, optimizer: Optimizer) -> None:
        """The step is over, unless a GradScaler makes it."""
        owned, ledger = self._owners.of(optimizer), self.ledger
        if not owned.watched and self._owners.other_stepped():
            self.guard.call(self._restart)
        if not owned.watched or (ledger.scaling.used and ledger.scaling.steps(optimizer)):
            return
        special = ledger.scaling.used or ledger.suspect or self._nonfinite.suspect or self.guard.reasons
        if self._idle and not special:
            self._idle_over(optimizer, owned.share)
        else:
            self.finish(optimizer)

    @contextmanager
    def aside(self) -> Generator[None]:
        """Ignore everything meanwhile, and leave it out of the training's time."""
        paused, self.calls.paused = self.calls.paused, True
        try:
            with self.clock.stopped():
                yield
        finally:
            self.calls.paused = paused

    @guarded
    def finish(self, optimizer: Optimizer | None = None, skipped: Tensor | bool = False) -> None:
        """End the step: analyse it if it is recorded, hand on its rows, and begin the next.

        Args:
            optimizer: the one that stepped, if any.
            skipped: True if a GradScaler has left the parameters as they were; a tensor that is 0 if not.
        """
        self.clock.start()
        self._backward.by_hand.stop()
        if optimizer is not None and self.ledger.scaling.used:
            self.ledger.scaling.without(optimizer)
        share = None if optimizer is None else self._owners.of(optimizer).share
        tried = self.calls.recording is not None  # with or without a gradient to show for it
        rows = self._recorded.close_step(self.step, share) if tried or self.guard.reasons else []
        recorded = any(block.table == "layers" for block in rows)
        self.records += recorded
        norm, spoilt = self.ledger.norm, self._nonfinite.suspect
        gradients, clips = self.ledger.close_step(optimizer)
        losses = self._passes.step_over(optimizer, share, self._parameters.ids)
        if self._nonfinite.lost:
            rows += self._nonfinite.notes(self.step)
        ended = time.perf_counter()
        overhead = self.guard.take_overhead(ended)
        duration = max(self.clock.step_over(ended), overhead.host_s)  # the clock may start a moment after ours
        ending = Ending(
            self.step, "" if optimizer is None else type(optimizer).__name__, duration, overhead, losses, norm,
            gradients, skipped, recorded, spoilt, self._alarm.step_over,
        )  # fmt: skip
        if self._recorder.add(self.step, [*rows, *clips, ending.row()], at=ended) or recorded:
            self.guard.call(self._recorder.drain)
        cost = overhead.seconds() if tried else overhead.host_s  # a recorded step has waited for the device anyway
        self._plan.ended(recorded=tried, look_s=self._look.seconds, overhead_s=cost, step_s=duration)
        self._nonfinite.suspect, self._nonfinite.clips = False, norm is not None
        self.step += 1
        self._begin()

    @guarded
    def _idle_over(self, optimizer: Optimizer, share: set[int]) -> None:
        """End an idle step without anything unusual: `finish` with fewer calls, whose row a flush makes.

        Args:
            optimizer: the one that stepped.
            share: identities of its parameters.
        """
        norm, rows = self.ledger.norm, self.ledger.take_rows()
        losses = self._passes.step_over(optimizer, share, self._parameters.ids)
        ended = time.perf_counter()
        overhead = self.guard.take_overhead(ended)
        duration = self.clock.step_over(ended)
        ending = Ending(self.step, type(optimizer).__name__, duration, overhead, losses, norm)
        if ending.finite:
            self._alarm.step_over(norm if type(norm) is float else math.nan, 0)
            rows.append(ending)
        else:
            ending.report = self._alarm.step_over
            rows.append(ending.row())
        if self._recorder.add(self.step, rows, at=ended):
            self.guard.call(self._recorder.drain)
        self._nonfinite.clips = norm is not None
        self.step += 1
        if not self._plan.idle_over(self.step, overhead_s=overhead.host_s, step_s=duration):
            self._begin()

    def rows(self) -> list[Rows]:
        """The rows of the current step so far."""
        return self._recorded.rows(self.step, None, stepped=False)

    @property
    def unfinished(self) -> bool:
        """True if gradients have arrived since the last optimizer step."""
        recording, alone = self.calls.recording, self.step == self.first_step or self._passes.any
        unseen = alone and recording is not None and self._recorded.unseen(self.step, self._backward.arrivals)
        return recording is not None and (recording.any or bool(unseen))

    @property
    def progress(self) -> tuple[int, int]:
        """The step, and how many gradients have arrived in it."""
        return self.step, 0 if self.calls.recording is None else self.calls.recording.arrivals

    def _restart(self) -> None:
        """Begin the step anew: so far it has all steps of the optimizers that did not count."""
        self.calls.restart()
        self._backward.arrivals.forget()
        self.ledger.close_step()
        self._passes.take(None)

    def _begin(self) -> None:
        """Decide whether the next step is recorded, and looked at."""
        recorded, looking = self._plan.begin(self.step)
        self._look.wanted, self._look.seconds = looking, 0.0
        if recorded or self.calls.listening:
            self.calls.begin(recorded)
            self.guard.by_device(recorded)
            self._backward.arrivals.forget()
        self._idle = not (looking or self.calls.listening) and self._backward.by_hand.over
