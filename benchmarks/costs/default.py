"""The default, `attach(model, logdir)`, over a whole run: what it records, what it costs, what an idle step adds."""

from __future__ import annotations

import math
import multiprocessing
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import pandas as pd
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import gradscope
from costs.rounds import Ratio, clock, now
from costs.workloads import Training, Workload
from gradscope.attach.backward import BACKWARD
from gradscope.attach.clipping import CLIPPING
from gradscope.attach.custom import _SEAMS
from gradscope.attach.kernels import KERNELS
from gradscope.attach.optimizers import OPTIMIZERS
from gradscope.attach.scaler import SCALER

SHORT_S = 0.01
"""Of steps that take longer, what an idle one adds is measured at T = 1, B = 1, where the noise is less."""
FINE_S = 5.0
LATE = 2**20 + 1
"""A step at which hardly any is recorded."""
COUNTED_STEPS = 60


class Stopwatch:
    """`time.perf_counter` as the scope sees it: it stands still while the bare training has its turn.

    A scope's budget is a share of the time that passes between its steps; the bare slices are not part of its run.
    """

    def __init__(self) -> None:
        self.stopped_for = 0.0
        self._stopped_at: float | None = None

    def __call__(self) -> float:
        return (clock() if self._stopped_at is None else self._stopped_at) - self.stopped_for

    def aside(self, train: Callable[[], object]) -> None:
        """Have something else trained, of which the scope neither hears nor sees the time."""
        self._stopped_at = clock()
        with unheard():
            train()
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


@contextmanager
def unheard() -> Iterator[None]:
    """Torch is as it was without a scope: the bare training is not slowed by one that is attached to another model."""
    own = [seam for seams in _SEAMS.values() for seam in seams.values()]
    seams = (OPTIMIZERS, BACKWARD, CLIPPING, SCALER, KERNELS, *own)
    armed = [handle for seam in seams for handle in seam.handles if handle.armed]
    for handle in armed:
        handle.arm(False)
    try:
        yield
    finally:
        for handle in armed:
            handle.arm(True)


@dataclass(frozen=True, slots=True)
class Run:
    """A training with the default, and in turn with it the same training without.

    Attributes:
        mine: seconds of each step, slice by slice.
        bare: of the other training, as many.
        frame: the table `steps`.
        attach_s: seconds that attaching took.
        close_s: seconds that closing took.
    """

    mine: list[list[float]]
    bare: list[list[float]]
    frame: pd.DataFrame
    attach_s: float
    close_s: float

    @property
    def seconds(self) -> tuple[float, float]:
        """Of all steps, attached and bare."""
        return sum(map(sum, self.mine)), sum(map(sum, self.bare))

    @property
    def extra_s(self) -> float:
        """Attaching and closing included."""
        mine, bare = self.seconds
        return mine - bare + self.attach_s + self.close_s

    @property
    def extra_error_s(self) -> float:
        """Standard error of `extra_s`: how much a slice differs from the one before, in the bare training."""
        means = [statistics.fmean(slice) for slice in self.bare]
        squares = [(b - a) ** 2 / 2 for a, b in pairwise(means)]
        return math.sqrt(2 * len(means) * statistics.fmean(squares)) * len(self.frame) / len(means) if squares else 0.0

    @property
    def added(self) -> list[float]:
        """Seconds that an idle step adds, by the medians of each pair of slices."""
        found, at, idle = list[float](), 0, idle_steps(self.frame)
        for mine, bare in zip(self.mine, self.bare, strict=True):
            chosen = [s for s, is_idle in zip(mine, idle[at : at + len(mine)], strict=True) if is_idle]
            at += len(mine)
            found += [statistics.median(chosen) - statistics.median(bare)] if chosen else []
        return found


@dataclass(frozen=True, slots=True)
class Default:
    """What a run with the default gives, and costs.

    Attributes:
        steps: steps taken.
        recorded: how many of them were recorded.
        looked: of how many others the gradients were looked at.
        record_s: seconds of one record, by the scope's own clock, the median.
        bare_s: of the bare training.
        extra_s: that the other took longer, attaching and closing included.
        extra_error_s: standard error of that.
        own_s: the same by the scope's own clock.
        attach_s: of that, attaching.
        close_s: of that, closing.
        clock: training time by the scope's clock over the time measured here; 1 if the protocol works.
        added: seconds that an idle step adds; NaN where there is none.
        idle: an idle step over a bare one.
        operations: tensor operations that an idle step adds, by name, of the one that adds most.
        after_record: the same of steps that follow a recorded one.
    """

    steps: int
    recorded: int
    looked: int
    record_s: float
    bare_s: float
    extra_s: float
    extra_error_s: float
    own_s: float
    attach_s: float
    close_s: float
    clock: float
    added: float
    idle: Ratio
    operations: Counter[str]
    after_record: Counter[str]


def idle_steps(frame: pd.DataFrame) -> list[bool]:
    """Which are neither recorded nor looked at."""
    return list(~frame.recorded & frame.grad_norm.isna())


def train(training: Training, seconds: float, most: float, before: Callable[[], object] | None = None) -> list[float]:
    """Train for so long, or so many steps: seconds of each, and not of what is done before it."""
    taken, began = list[float](), now()
    ended = began
    while len(taken) < most and ended - began < seconds:
        started = ended
        if before is not None:
            before()
            started = clock()
        training.step()
        ended = clock()
        taken.append(ended - started)
    taken[-1] += now() - ended
    return taken


def take_turns(workload: Workload, seconds: float, slice_s: float, large: Workload | None = None) -> Run:
    """Train attached and bare in alternating slices.

    Args:
        workload: the training.
        seconds: how long each of the two trains, if the workload has no number of steps.
        slice_s: how long at a stretch.
        large: of this training a step is taken before each, and not timed, so that no more is in the caches.
    """
    evict = None if large is None else Training(large).step
    watch, mine, bare = Stopwatch(), Training(workload), Training(workload)
    mine.steps(2)
    bare.steps(2)
    slices: list[list[float]] = []
    bare_slices: list[list[float]] = []
    with tempfile.TemporaryDirectory() as folder, watch.shown():
        began = now()
        scope = gradscope.attach(mine.model, logdir=folder, first_step=LATE if large else 0)
        attach_s = now() - began
        left, left_s = workload.steps or math.inf, math.inf if workload.steps else seconds
        while left > 0 and left_s > 0:
            began = clock()
            slices.append(train(mine, slice_s, left, evict and partial(watch.aside, evict)))
            left, left_s = left - len(slices[-1]), left_s - (clock() - began)
            watch.aside(lambda: bare_slices.append(train(bare, math.inf, len(slices[-1]), evict)))
        began = now()
        scope.close()
        close_s = now() - began
        return Run(slices, bare_slices, scope.run.frame("steps"), attach_s, close_s)


class Operations(TorchDispatchMode):
    """Counts what torch dispatches."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = Counter[str]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))


def operations_of(training: Training) -> Counter[str]:
    """Of one step."""
    with Operations() as mode:
        training.step()
    return mode.seen


def added_operations(workload: Workload) -> tuple[Counter[str], Counter[str]]:
    """What idle steps add, the one that adds most: of all but those that follow a recorded step, and of these."""
    mine, bare = Training(workload), Training(workload)
    bare.steps(2)
    plain = operations_of(bare)
    with tempfile.TemporaryDirectory() as folder, gradscope.attach(mine.model, logdir=folder) as scope:
        counts = [operations_of(mine) - plain for _ in range(COUNTED_STEPS)]
        frame = scope.run.frame("steps")
    found = [Counter[str](), Counter[str]()]
    for count, idle, after in zip(counts, idle_steps(frame), frame.recorded.shift(fill_value=False), strict=True):
        if idle:
            found[after] |= count
    return found[0], found[1]


def measure_default(workload: Workload, seconds: float, slice_s: float) -> Default:
    """Everything; see `take_turns`."""
    run = take_turns(workload, seconds, slice_s)
    frame, (mine_s, bare_s) = run.frame, run.seconds
    step_s = bare_s / len(frame)
    fine = workload.one_timestep()
    short = step_s < SHORT_S and run.added
    finely = run if short else take_turns(fine, min(FINE_S, seconds), min(0.2, slice_s), workload)
    added = finely.added or [math.nan]
    ordinary, after_record = added_operations(fine)
    return Default(
        steps=len(frame),
        recorded=int(frame.recorded.sum()),
        looked=int((~frame.recorded & frame.grad_norm.notna()).sum()),
        record_s=float(frame.overhead_s[frame.recorded].median()),
        bare_s=bare_s,
        extra_s=run.extra_s,
        extra_error_s=run.extra_error_s,
        own_s=float(frame.overhead_s.sum()) + run.attach_s + run.close_s,
        attach_s=run.attach_s,
        close_s=run.close_s,
        clock=float(frame.step_s.sum() / mine_s),
        added=statistics.median(added),
        idle=Ratio.of([1 + each / step_s for each in added]),
        operations=ordinary,
        after_record=after_record,
    )


def apart(workload: Workload, seconds: float, slice_s: float) -> Default:
    """The same in a process of its own, where nothing has been loaded, as in a user's."""
    flushes = float(torch.tensor(1e-39) * 1) == 0
    with ProcessPoolExecutor(
        1, multiprocessing.get_context("spawn"), initializer=_begin, initargs=(torch.get_num_threads(), flushes)
    ) as pool:
        return pool.submit(measure_default, workload, seconds, slice_s).result()


def _begin(threads: int, flushes: bool) -> None:
    torch.set_flush_denormal(flushes)
    torch.set_num_threads(threads)
