"""gradscope at fixed intervals: recorded and other steps apart, composed, and whole blocks at interval 16."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import gradscope
from costs.rounds import SETTLED, Ratio, Variant, composed, interleave, ratios
from costs.workloads import Training, Workload

NEVER = 10**9
INTERVAL = 16
FIRST = 48  # a multiple of the interval, and less SETTLED not 0: step 0 is recorded whatever the interval

IDLE = "attached, every=10**9"
IDLE_COST = "attached, every=10**9, finely"


@contextmanager
def attached(training: Training, **arguments: Any) -> Iterator[None]:
    """A scope from the first step of a block to its last; while nothing is timed there is none anywhere."""
    with gradscope.attach(training.model, strict=True, **arguments):
        yield


def variant(name: str, workload: Workload, loss: str, **arguments: Any) -> Variant:
    """A training of its own with a scope around its blocks, whose timed steps begin with number `FIRST`."""
    training = Training(workload, loss)
    return Variant(name, training, partial(attached, training, first_step=FIRST - SETTLED, **arguments), SETTLED)


def timed_steps(step: int) -> bool:
    """A schedule that records all that is timed."""
    return step >= FIRST


def recorded_steps(workload: Workload, loss: str, seconds: float, idle: Ratio) -> dict[str, Ratio]:
    """Every step recorded, measured; one in 16 or 64 recorded, composed of that and `idle`."""
    variants = [Variant("bare", Training(workload, loss)), variant("core", workload, loss, every=timed_steps)]
    if workload.device == "cpu":  # on a GPU a step of it takes seconds
        variants.append(variant("full", workload, loss, every=timed_steps, quantities="full"))
    measured = ratios(variants, seconds)
    found: dict[str, Ratio] = {}
    for name, intervals in (("core", (1, 16, 64)), ("full", (1, 64))):
        for interval in intervals if name in measured else ():
            title = f"{name}, every={interval}" + (", composed" if interval > 1 else "")
            found[title] = measured[name] if interval == 1 else composed(measured[name], idle, interval)
    return found


def idle_steps(workload: Workload, loss: str, seconds: float) -> Ratio:
    """A scope that never records."""
    bare = Variant("bare", Training(workload, loss))
    return ratios([bare, variant("idle", workload, loss, every=NEVER)], seconds)["idle"]


def idle_cost(workload: Workload, seconds: float) -> Ratio:
    """The same to a finer resolution: what a scope that never records adds to a step of the same model at T = 1, B = 1.

    It does the same there as at any T and B, it hears of the same calls and measures gradients of the same size, but
    the noise is that of a small step; relative to the bare step in full size. A block of 64 steps also holds one
    handing-on of the rows that wait meanwhile.
    """
    full = Training(workload)
    full.step()
    whole = statistics.median(Variant("bare", full).block(1) for _ in range(5))
    small = workload.one_timestep()
    bare, idle = interleave(
        [Variant("bare", Training(small)), variant("idle", small, "last", every=NEVER)], seconds, steps=64
    )
    return Ratio.of([1 + (i - b) / whole for i, b in zip(idle, bare, strict=True)])


def whole_blocks(workload: Workload, loss: str, seconds: float) -> Ratio:
    """Blocks of 16 steps of which the scope records the first, against 16 bare steps."""
    bare = Variant("bare", Training(workload, loss))
    return ratios([bare, variant("core", workload, loss, every=INTERVAL)], seconds, steps=INTERVAL)["core"]


def bare_by_loss(workload: Workload) -> Ratio:
    """A bare step with the loss on the last step over one with the loss on every step."""
    return ratios([Variant("every", Training(workload, "every")), Variant("last", Training(workload))], 0)["last"]


def measure_steps(workload: Workload, seconds: float) -> dict[str, dict[str, Ratio]]:
    """Variant -> loss (`"last"`, `"every"`) -> ratio.

    Args:
        workload: the training.
        seconds: for all of it, roughly.
    """
    idle = {"last": idle_steps(workload, "last", 0.2 * seconds)}
    found = {IDLE: dict(idle), IDLE_COST: {"last": idle_cost(workload, 0.03 * seconds)}}
    for loss, share in (("last", 0.3), ("every", 0.2)):
        for name, ratio in recorded_steps(workload, loss, share * seconds, idle["last"]).items():
            found.setdefault(name, {})[loss] = ratio
    found["core, every=16, whole blocks"] = {"last": whole_blocks(workload, "last", 0.27 * seconds)}
    return found
