"""Steps so small that the weights stay where they are, from the beginning or since the learning rate has run out."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from gradscope.diagnose import loops
from gradscope.diagnose.frames import Frame, Seen
from gradscope.diagnose.progress import broken, learning, severity
from gradscope.diagnose.trend import ENOUGH, Array, by_step, early_and_late, span
from gradscope.diagnose.words import number, percent
from gradscope.types import Finding, Remedy, Severity

STILL = 0.05
"""All steps together move weights by less than this share of their norm, if they went the same way."""
SMALL = 1e-3
"""Median share of its norm by which a step moves a block."""
STEPS = 50
"""In fewer steps little can have moved."""
RUN_OUT = 1e-3
"""Late steps over early ones, where the learning rate has run out; at the end of a schedule they are not so small."""


def small_updates(seen: Seen) -> list[Finding]:
    """Find trainings that stall, or have stopped, because the optimizer hardly moves the weights."""
    steps = int(seen["steps"]["step"].nunique())
    if len(seen.records) < ENOUGH or steps < STEPS or broken(seen):
        return []
    return list(_cases(seen, steps))


def _cases(seen: Seen, steps: int) -> Iterator[Finding]:
    update, path, (early, late) = typical_update(seen), _path(seen), early_and_late(largest_updates(seen))
    found = learning(seen)
    if update == 0 and not found.learns:
        yield _none(seen)
    elif early > 0 and late <= RUN_OUT * early and (found.fails or found.stopped is not None):
        yield _run_out(seen, early, late)
    elif 0 < update < SMALL and path < STILL and not found.learns:
        yield _small(seen, update, path, steps)


def _none(seen: Seen) -> Finding:
    why = (
        f"In {len(seen.records)} records no step has changed a single recurrent weight, though gradients come back to "
        "their states. Either they are cleared between backward() and step(), or the learning rate is 0. "
        f"{learning(seen).sentence}"
    )
    order = "optimizer.zero_grad()\nloss.backward()\noptimizer.step()"
    remedies = (loops.read("clear gradients before backward(), not behind it", order), loops.look_at_optimizer())
    level = severity(seen, critical=True)
    return _finding(seen, "the optimizer does not move the weights at all", why, level, {"update": 0.0}, remedies)


def _run_out(seen: Seen, early: float, late: float) -> Finding:
    why = (
        f"A step changed the recurrent weights by {number(early)} of their norm early in the training, and changes "
        f"them by {number(late)} now: the learning rate has run out. A scheduler that counts epochs and is stepped "
        f"with every batch does this. {learning(seen).sentence}"
    )
    code = "scheduler.step()  # once an epoch, or with a schedule that is as long as the training has batches"
    remedies = (loops.read("step the scheduler as often as it is meant to be", code), loops.look_at_optimizer())
    told = {"update_early": early, "update_late": late}
    return _finding(seen, "the steps have become too small to move the weights", why, severity(seen), told, remedies)


def _small(seen: Seen, update: float, path: float, steps: int) -> Finding:
    why = (
        f"A step changes the recurrent weights by {number(update)} of their norm (median over {len(seen.records)} "
        f"records; usual is about a hundredth). If all {steps:,} steps had gone the same way, that would be "
        f"{percent(path)}: the weights are still those of the beginning. {learning(seen).sentence}"
    )
    level = severity(seen, critical=path < STILL / 10)
    title = f"the optimizer moves the weights by {percent(update)} of their norm a step"
    remedies = (loops.rate_for(update), loops.look_at_optimizer())
    return _finding(seen, title, why, level, {"update": update, "path": path}, remedies)


def _finding(
    seen: Seen, title: str, why: str, level: Severity, told: dict[str, float], remedies: tuple[Remedy, ...]
) -> Finding:
    evidence = {"steps": span(seen), **told, **learning(seen).evidence}
    return Finding("small_updates", level, None, title, why, evidence, remedies)


def largest_updates(seen: Seen) -> Frame:
    """By which share of its norm each recorded step changed the block that it changed most, a series by step.

    Steps of other optimizers, which change nothing here, are left out; zeros to the end are none of these.
    """
    updates = by_step(seen["weights"], "update", "max")
    known = updates[np.isfinite(updates.to_numpy(dtype=np.float64))]
    moved = known.index[known > 0]
    return known[(known > 0) | (known.index > moved[-1])] if len(moved) else known


def typical_update(seen: Seen) -> float:
    """The median of these; NaN where they are not known."""
    known: Array = largest_updates(seen).to_numpy(dtype=np.float64)
    return float(np.median(known)) if len(known) else math.nan


def _path(seen: Seen) -> float:
    """How far weights would have come if all steps had gone the same way, each record standing for those around it."""
    known = largest_updates(seen)
    steps, sizes = known.index.to_numpy(dtype=np.float64), known.to_numpy(dtype=np.float64)
    if len(sizes) < ENOUGH:
        return math.nan
    every = seen["steps"]["step"]
    until = np.append((steps[1:] + steps[:-1]) / 2, every.max() + 1)
    return float((sizes * np.diff(until, prepend=every.min())).sum())
