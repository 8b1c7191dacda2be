"""What a scope hears of the training, and what it makes of it: one optimizer step after the other."""

from __future__ import annotations

import math
import time
import weakref
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from gradscope.attach.backward import BACKWARD
from gradscope.attach.optimizers import OPTIMIZERS
from gradscope.capture.positions import SequenceModule
from gradscope.families import Work
from gradscope.observe.alarm import Alarm, lost
from gradscope.observe.byhand import BY_HAND, ByHand
from gradscope.observe.calls import CallReceiver
from gradscope.observe.checks import Checks
from gradscope.observe.ending import Ending
from gradscope.observe.guard import Guard, guarded
from gradscope.observe.ledger import Ledger
from gradscope.observe.owners import Owners
from gradscope.observe.passes import Pass, Passes
from gradscope.observe.plan import Plan
from gradscope.observe.recorded import RecordedRows
from gradscope.observe.schedule import Schedule
from gradscope.observe.tree import Tree
from gradscope.observe.watched import Watched
from gradscope.record.recorder import Recorder
from gradscope.types import LayerKey, Rows


@dataclass(frozen=True, slots=True)
class Settings:
    """What `attach` was asked for.

    Attributes:
        wanted: names of the quantities.
        limit: how many sequences to analyse at most; None for all.
        first_step: number of the first step.
        strict: raise where gradscope fails.
        jumps: record the step after a jump of the gradient norm beyond the schedule.
    """

    wanted: frozenset[str]
    limit: int | None
    first_step: int
    strict: bool
    jumps: bool = False


class Observer:
    """Receives backward passes and optimizer steps, and hands each step's rows to the recorder.

    Attributes:
        step: number of the step that is under way.
        first_step: the number that it began with.
        records: how many steps were recorded.
        observed: class of every observed module, by name.
    """

    def __init__(
        self,
        watched: Watched,
        recorder: Recorder,
        schedule: Schedule,
        settings: Settings,
        tell: Callable[[Mapping[str, Any]], None],
    ) -> None:
        """Begin with step `settings.first_step`."""
        layers, own = watched.layers, watched.own
        modules = [*layers.values(), *(one.module for one in own)]
        self.tree, self._layers = Tree(watched.model, modules), weakref.WeakValueDictionary(layers)
        self._recorder = recorder
        self._settings = settings
        self._introduced: set[int] | None = None
        self._since: float | None = None
        on_cuda = any(p.device.type == "cuda" for layer in layers.values() for p in layer.parameters())
        self.guard = Guard(settings.strict, cuda=on_cuda)
        work = Work(settings.wanted)
        self.calls = CallReceiver(self._layers, own, settings.limit, work, self.guard, self._started)
        self._passes = Passes(self.tree.parameters)
        others = [one.module for one in own if isinstance(one, SequenceModule)]
        mine = list(layers.values())
        self._owners = Owners(self.tree, mine, partial(self.guard.call, tell))
        self.ledger = Ledger(self.tree, mine, others, self._passes, self.guard, self._owners, self._scaler_stepped)
        self._alarm, self._lost = Alarm(jumps=settings.jumps), list[tuple[LayerKey, str]]()
        self._plan = Plan(schedule, self._alarm, self.guard.call)
        self._idle = self._suspect = self._clipped = False
        self._checks = Checks(self.tree)
        self._recorded = RecordedRows(
            self.tree, self._layers, self.calls, self._passes, self._owners, self.ledger, self._checks, self.guard,
            settings.wanted,
        )  # fmt: skip
        self._by_hand = ByHand()
        self.step = self.first_step = settings.first_step
        self.records = 0
        self.observed = {name: type(layer).__name__ for name, layer in layers.items()}
        self.observed |= {one.name: type(one.module).__name__ for one in own}
        self._begin()

    def listen(self, *, every_call: bool) -> ExitStack:
        """Begin to listen; closing what is returned ends it.

        Args:
            every_call: kernel calls are received on every step, for somebody else needs them.
        """
        with ExitStack() as undo:
            for seam in (OPTIMIZERS, BACKWARD):
                undo.callback(seam.listen(self).remove)
            undo.push(self.calls.listen(always=every_call))
            undo.push(self.ledger.listen())
            return undo.pop_all()

    @property
    def paused(self) -> bool:
        """Whether steps are only counted."""
        return self.calls.paused

    @paused.setter
    def paused(self, paused: bool) -> None:
        self.calls.paused = paused

    @property
    def begun(self) -> bool:
        """Whether the training has been heard of."""
        return self._since is not None

    def _started(self) -> None:
        self._since = self._since or time.perf_counter()

    # --- backward passes

    @guarded
    def before_backward(self, roots: Sequence[Any]) -> Pass | None:
        """See `BackwardListener`."""
        self._started()
        recorded = self.calls.recording is not None
        if not (self._by_hand.over or self._passes.within) and self._by_hand.begins(self.ledger.recurrent()):
            self.guard.note(BY_HAND)
        one = self._passes.begin(roots, thorough=self.ledger.looking)
        if recorded and not self.paused:
            self.ledger.watch_arrivals()
            self._checks.begins(one, first=not self._passes.any)
        return one

    @guarded
    def after_backward(self, token: Pass) -> None:
        """See `BackwardListener`."""
        if not self._passes.end(token):
            return
        if not (self._by_hand.over or token.within):
            self._by_hand.ended(self.ledger.recurrent(), values=self.ledger.looking)
        if self.ledger.looking:
            self.ledger.backward_over()
            if self.calls.recording is not None:
                self._checks.ended(token)
                if not self.calls.recording.any:
                    self._recorded.unseen(
                        self.step, lambda index: False
                    )  # of layers that were replaced, no step may ever end
        elif type(token.loss) is float and self._alarm.armed and not self.ledger.scaling.used:
            # Where nothing is clipped afterwards, whose norm would tell, an element of the gradients does.
            self._suspect = not math.isfinite(token.loss) or (not self._clipped and self.ledger.spoilt)

    @guarded
    def broken_backward(self, token: Pass) -> None:
        """See `BackwardListener`."""
        self._passes.forget(token)

    # --- optimizer steps

    def before_step(self, optimizer: Optimizer, has_closure: bool) -> None:
        """See `OptimizerListener`; before most idle steps there is nothing to do."""
        ledger = self.ledger
        if not self._idle or has_closure or self._suspect or ledger.suspect or ledger.scaling.used:
            self._before_step(optimizer, has_closure)

    @guarded
    def _before_step(self, optimizer: Optimizer, has_closure: bool) -> None:
        """Look at the gradients as the optimizer gets them."""
        if not self._owners.of(optimizer).watched:
            return
        scaling = self.ledger.scaling
        if scaling.steps(optimizer):
            scaling.stepped(optimizer)
        if has_closure:
            self._passes.within_step(True)
            return
        if self.ledger.looking:
            scaling.without(optimizer)
            self.ledger.look(optimizer)
        if not self.ledger.on_host or not (self._alarm.armed or self.calls.recording):
            return
        bad = self._suspect or self.ledger.nonfinite
        if self.calls.recording is not None and not bad:
            self.calls.recording.release()
        if bad and self._alarm.armed:
            self._lost = lost({**self.calls.own, **self._layers})

    def after_step(self, optimizer: Optimizer) -> None:
        """The step is over, unless a GradScaler makes it."""
        scaling = self.ledger.scaling
        if self._owners.of(optimizer).watched and not (scaling.used and scaling.steps(optimizer)):
            self.finish(type(optimizer).__name__, False, optimizer)

    def _scaler_stepped(self, optimizer: Optimizer, skipped: Tensor | bool) -> None:
        self.finish(type(optimizer).__name__, skipped, optimizer)

    @contextmanager
    def aside(self) -> Generator[None]:
        """Nothing that happens meanwhile is part of the training, nor of its time."""
        paused, since, began = self.paused, self._since, time.perf_counter()
        self.paused = True
        try:
            yield
        finally:
            self.paused = paused
            self._since = None if since is None else since + time.perf_counter() - began

    @guarded
    def finish(self, name: str, skipped: Tensor | bool = False, optimizer: Optimizer | None = None) -> None:
        """Analyse the step, hand on its rows, and begin the next.

        Args:
            name: class of the optimizer, empty without one.
            skipped: a GradScaler has left the parameters as they were; a tensor that is 0 if not.
            optimizer: the one that stepped.
        """
        self._started()
        if not self._by_hand.over:
            self._by_hand.stop()
        if optimizer is not None and self.ledger.scaling.used:
            self.ledger.scaling.without(optimizer)
        share = None if optimizer is None else self._owners.of(optimizer).share
        rows, recorded = list[Rows](), False
        if self.calls.recording is not None or self.guard.reasons:
            rows = self.rows(share, stepped=True)
            recorded = any(block.table == "layers" for block in rows)
            self.records += recorded
            self.guard.take_reasons()  # they are among the rows
        if self.calls.recording is not None:
            self.calls.recording.close()
            self.calls.seen.step()
        norm, spoilt = self.ledger.norm, self._suspect
        gradients, clips = self.ledger.close_step(optimizer)
        losses = self._passes.take(share)
        if self._passes.within:
            self._passes.within_step(False)
        if optimizer is not None and share is not self._introduced:
            self._passes.owner(optimizer, share or set(), self.ledger.watched)
            self._introduced = share
        if self._lost:
            head, self._lost = self._lost, []
            rows += [Rows("notes", {"step": self.step, **key._asdict(), "reason": reason}) for key, reason in head]
        ended = time.perf_counter()
        overhead = self.guard.take_overhead(ended)
        duration = max(ended - (self._since or ended), overhead.host_s)  # the clock may start a moment after ours
        columns = {"step": self.step, "optimizer": name, "recorded": recorded, "step_s": duration}
        ending = Ending(columns, losses, gradients, skipped, norm, overhead, spoilt).row(self._alarm.hear)
        if self._recorder.add(self.step, [*rows, *clips, ending], at=ended) or recorded:
            self.guard.call(self._recorder.drain)
        tried = self.calls.recording is not None  # with or without a gradient to show for it
        cost = overhead.seconds() if tried else overhead.host_s  # a recorded step has waited for the device anyway
        self._plan.ended(recorded=tried, look_s=self.ledger.looked_s, overhead_s=cost, step_s=duration)
        self._since, self._suspect, self._clipped = ended, False, norm is not None
        self.step += 1
        self._begin()

    def rows(self, share: set[int] | None = None, *, stepped: bool = False) -> list[Rows]:
        """See `RecordedRows`; of the step that is under way."""
        return self._recorded.rows(self.step, share, stepped=stepped)

    @property
    def unfinished(self) -> bool:
        """Whether gradients have arrived since the last optimizer step."""
        if self.calls.recording is None:
            return False
        alone = self.step == self._settings.first_step or self._passes.any
        return self.calls.recording.any or (alone and bool(self._recorded.unseen(self.step, self.ledger.has_arrived)))

    @property
    def progress(self) -> tuple[int, int]:
        """Step, and gradients that have arrived in it."""
        return self.step, 0 if self.calls.recording is None else self.calls.recording.arrivals

    def close(self) -> None:
        """Let go of what has not been analysed."""
        if self.calls.recording is not None:
            self.calls.recording.close()
        self.calls.recording = None

    # --- pieces

    def _begin(self) -> None:
        """The next step: decide whether it is recorded, and looked at."""
        recorded, looking = self._plan.begin(self.step)
        self._idle = not looking
        self.ledger.looking, self.ledger.looked_s = looking, 0.0
        if recorded or self.calls.listening:
            self.calls.begin(recorded)
            self.guard.by_device(recorded)
            self.ledger.forget_arrivals()
