"""The protocol: variants take turns, round after round; every figure is a ratio to the bare one of the same round."""

from __future__ import annotations

import gc
import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field

import torch

from costs.workloads import Training

# The benchmark's own: `Stopwatch` in `default.py` replaces the one in `time` while it runs.
clock = time.perf_counter

LEAST_ROUNDS = 3
BLOCK_SECONDS = 0.1

WARM_UP = 2
"""Short steps that go before a block, not timed: after them what a scope does at every step has settled."""


def now() -> float:
    """Seconds by the clock, once a GPU, where one is in use, has done what it was asked for."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return clock()


@dataclass(slots=True)
class Variant:
    """A training, and what is around it while a block of its steps is timed (entered and left outside the timing).

    Attributes:
        name: for the table.
        training: of its own.
        around: makes what is around a block.
    """

    name: str
    training: Training
    around: Callable[[], AbstractContextManager[object]] = field(default=nullcontext)

    def block(self, steps: int) -> float:
        """Seconds that a block of steps takes."""
        with self.around(), without_gc():
            self.training.short_steps(WARM_UP)
            started = now()
            self.training.steps(steps)
            return now() - started


@dataclass(frozen=True, slots=True)
class Ratio:
    """A step time relative to the bare one.

    Attributes:
        median: over the rounds.
        low: of one round.
        high: of one round.
        error: standard error of the median, from the quartiles of the rounds.
        rounds: how many.
    """

    median: float
    low: float
    high: float
    error: float
    rounds: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Ratio:
        ranked = sorted(values)
        if len(ranked) < 2:
            return cls(ranked[0], ranked[0], ranked[0], math.nan, 1)
        low, _, high = statistics.quantiles(ranked, n=4, method="inclusive")
        error = 1.253 * (high - low) / 1.349 / len(ranked) ** 0.5
        return cls(statistics.median(ranked), ranked[0], ranked[-1], error, len(ranked))


def composed(recorded: Ratio, other: Ratio, interval: int) -> Ratio:
    """The ratio where one step in `interval` is recorded and the others are not."""

    def mix(one: float, rest: float) -> float:
        return (one + (interval - 1) * rest) / interval

    return Ratio(
        mix(recorded.median, other.median),
        mix(recorded.low, other.low),
        mix(recorded.high, other.high),
        math.hypot(recorded.error, (interval - 1) * other.error) / interval,
        min(recorded.rounds, other.rounds),
    )


@contextmanager
def without_gc() -> Iterator[None]:
    """Hold the garbage collector back."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def interleave(variants: Sequence[Variant], seconds: float, steps: int | None = None) -> list[list[float]]:
    """Time blocks of all variants in turn, for at least so many seconds and `LEAST_ROUNDS` rounds.

    Every round begins with another variant, so that none always follows the same one.

    Args:
        variants: the first is the bare one.
        seconds: for all rounds together, warm-up not included.
        steps: in a block; None for as many as the bare one does in `BLOCK_SECONDS`, or in a 20th of `seconds`.

    Returns:
        Seconds per step for each variant and round.
    """
    for variant in variants:
        variant.block(1)
    count = steps or max(1, math.ceil(min(BLOCK_SECONDS, seconds / 20) / variants[0].block(1)))
    times: list[list[float]] = [[] for _ in variants]
    began, rounds = now(), 0
    while rounds < LEAST_ROUNDS or now() - began < seconds:
        gc.collect()
        for i in range(len(variants)):
            i = (i + rounds) % len(variants)
            times[i].append(variants[i].block(count) / count)
        rounds += 1
    return times


def ratios(variants: Sequence[Variant], seconds: float, steps: int | None = None) -> dict[str, Ratio]:
    """Name -> ratio to the first variant, for all others; see `interleave`."""
    bare, *others = interleave(variants, seconds, steps)
    return {
        variant.name: Ratio.of([t / b for t, b in zip(times, bare, strict=True)])
        for variant, times in zip(variants[1:], others, strict=True)
    }
