"""gradscope at fixed intervals: recorded and other steps apart, composed, and whole blocks at interval 16."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import gradscope
from costs.rounds import WARM_UP, Ratio, Variant, composed, ratios
from costs.workloads import Training, Workload

NEVER = 10**9
INTERVAL = 16
FIRST = INTERVAL  # less WARM_UP not 0: step 0 is recorded whatever the interval

IDLE = "attached, every=10**9"


@contextmanager
def attached(training: Training, **arguments: Any) -> Iterator[None]:
    """A scope from the first step of a block to its last; while nothing is timed there is none anywhere."""
    with gradscope.attach(training.model, strict=True, **arguments):
        yield


def variant(name: str, workload: Workload, loss: str, **arguments: Any) -> Variant:
    """A training of its own with a scope around its blocks, whose timed steps begin with number `FIRST`."""
    training = Training(workload, loss)
    return Variant(name, training, partial(attached, training, first_step=FIRST - WARM_UP, **arguments))


def timed_steps(step: int) -> bool:
    """A schedule that records all that is timed."""
    return step >= FIRST


def recorded_steps(workload: Workload, loss: str, seconds: float, idle: Ratio) -> dict[str, Ratio]:
    """Every step recorded, measured; one in 16 or 64 recorded, composed of that and `idle`."""
    variants = [Variant("bare", Training(workload, loss))]
    for name in ("economy", "core"):
        variants.append(variant(name, workload, loss, every=timed_steps, quantities=name))
    if workload.device == "cpu":  # on a GPU a step of it takes seconds
        variants.append(variant("full", workload, loss, every=timed_steps, quantities="full"))
    measured = ratios(variants, seconds)
    found: dict[str, Ratio] = {}
    for name, intervals in (("economy", (1,)), ("core", (1, 16, 64)), ("full", (1, 64))):
        for interval in intervals if name in measured else ():
            title = f"{name}, every={interval}" + (", composed" if interval > 1 else "")
            found[title] = measured[name] if interval == 1 else composed(measured[name], idle, interval)
    return found


def idle_steps(workload: Workload, loss: str, seconds: float) -> Ratio:
    """A scope that never records."""
    bare = Variant("bare", Training(workload, loss))
    return ratios([bare, variant("idle", workload, loss, every=NEVER)], seconds)["idle"]


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
    found = {IDLE: dict(idle)}
    for loss, share in (("last", 0.3), ("every", 0.2)):
        for name, ratio in recorded_steps(workload, loss, share * seconds, idle["last"]).items():
            found.setdefault(name, {})[loss] = ratio
    found["core, every=16, whole blocks"] = {"last": whole_blocks(workload, "last", 0.27 * seconds)}
    return found
