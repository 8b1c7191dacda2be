"""The default, `attach(model, logdir)`: its budget needs a run long enough to act."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import gradscope
from costs.rounds import Ratio, clock, now, without_gc
from costs.workloads import Training, Workload


@dataclass(frozen=True, slots=True)
class Default:
    """What a run with the default cost.

    Attributes:
        ratio: seconds per step attached over bare, of the whole time (low and high: of a pair of slices).
        recorded: steps recorded.
        steps: steps taken.
        own_share: overhead by the scope's own clock, in bare step times.
        clock: training time by the scope's clock over the time measured here; 1 if the protocol works.
        attach_s: seconds that attaching took, once a run.
        close_s: seconds that closing took, once a run.
    """

    ratio: Ratio
    recorded: int
    steps: int
    own_share: float
    clock: float
    attach_s: float
    close_s: float


class Stopwatch:
    """`time.perf_counter` as the scope sees it: it stands still while the bare training has its turn.

    A scope's budget is a share of the time that passes between its steps; the bare slices are not part of its run.
    """

    def __init__(self) -> None:
        self.stopped_for = 0.0
        self._stopped_at: float | None = None

    def __call__(self) -> float:
        return (clock() if self._stopped_at is None else self._stopped_at) - self.stopped_for

    def stop(self) -> None:
        self._stopped_at = clock()

    def go(self) -> None:
        if self._stopped_at is not None:
            self.stopped_for += clock() - self._stopped_at
            self._stopped_at = None

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Let everybody who asks `time.perf_counter` see this one."""
        original, time.perf_counter = time.perf_counter, self
        try:
            yield
        finally:
            time.perf_counter = original


def train_for(training: Training, seconds: float) -> tuple[float, int]:
    """Train for so long: the seconds that it took in fact, and the steps."""
    steps, started = 0, now()
    with without_gc():
        while clock() - started < seconds:
            training.step()
            steps += 1
    return now() - started, steps


def measure_default(workload: Workload, seconds: float, slice_s: float) -> Default:
    """Train attached and bare in alternating slices.

    Args:
        workload: the training.
        seconds: how long each of the two trains.
        slice_s: how long at a stretch.
    """
    watch, mine, bare = Stopwatch(), Training(workload), Training(workload)
    with gradscope.attach(mine.model, every=1):  # so that libraries are loaded, and the machine is warm
        mine.steps(2)
    bare.steps(2)
    watch_slices: list[tuple[float, int]] = []
    bare_slices: list[tuple[float, int]] = []
    with tempfile.TemporaryDirectory() as folder, watch.shown():
        began = now()
        scope = gradscope.attach(mine.model, folder, strict=True)
        attach_s = now() - began
        while sum(s for s, _ in watch_slices) < seconds:
            watch.go()
            watch_slices.append(train_for(mine, slice_s))
            watch.stop()
            bare_slices.append(train_for(bare, slice_s))
        watch.go()
        frame = scope.run.frame("steps")
        began = now()
        scope.close()
        close_s = now() - began
    (mine_s, steps), (bare_s, bare_steps) = (map(sum, zip(*s, strict=True)) for s in (watch_slices, bare_slices))
    pairs = Ratio.of([(a / m) / (b / n) for (a, m), (b, n) in zip(watch_slices, bare_slices, strict=True)])
    whole = (mine_s / steps) / (bare_s / bare_steps)
    return Default(
        ratio=Ratio(whole, pairs.low, pairs.high, pairs.error, pairs.rounds),
        recorded=int(frame.recorded.sum()),
        steps=int(steps),
        own_share=float(frame.overhead_s.sum() / steps / (bare_s / bare_steps)),
        clock=float(frame.step_s.sum() / mine_s),
        attach_s=attach_s,
        close_s=close_s,
    )
