"""Steps too small to move the weights, from the beginning or since the learning rate has run out."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from gradscope.diagnose import loops
from gradscope.diagnose.drawn import elsewhere, untrained
from gradscope.diagnose.frames import Frame, Tables
from gradscope.diagnose.progress import broken, learning, severity
from gradscope.diagnose.trend import ENOUGH, Array, by_step, early_and_late, span
from gradscope.diagnose.words import number, percent
from gradscope.types import Finding, Remedy, Severity

STILL = 0.05
"""All steps together, in one direction, would move weights by less than this share of their norm."""
SMALL = 1e-3
"""A step moves a block by less than this share of its norm, median."""
STEPS = 50
"""Fewer steps cannot have moved the weights far."""
LARGE = 0.05
"""A step that moves weights by this share of their norm is large."""
LEFT = 0.1
"""Late over early gradient norm below which the gradient has shrunk."""
RUN_OUT = 1e-3
"""Late over early steps if the learning rate has run out; the end of a schedule does not make them so small."""
NOTHING = 1e-5
"""The same if nothing is left of it: no schedule on purpose spends a quarter of the training so."""


def small_updates(tables: Tables) -> list[Finding]:
    """Find trainings that stall, or have stopped, because the optimizer hardly moves the weights."""
    steps = int(tables["steps"]["step"].nunique())
    if len(tables.records) < ENOUGH or steps < STEPS or broken(tables):
        return []
    return list(_cases(tables, steps))


def _cases(tables: Tables, steps: int) -> Iterator[Finding]:
    update, path, (early, late) = typical_update(tables), _path(tables), early_and_late(largest_updates(tables))
    training = learning(tables)
    if update == 0 and not training.learns:
        yield _none(tables)
    elif early > 0 and late <= RUN_OUT * early and (training.fails or training.stopped is not None):
        if _gradient_stays(tables):
            yield _run_out(tables, early, late)
    elif 0 < update < SMALL and path < STILL and (not training.learns or untrained(tables)):
        yield _small(tables, update, path, steps)


def _gradient_stays(tables: Tables) -> bool:
    """True unless the gradient has shrunk as well, which makes small steps at any learning rate."""
    norms = tables["steps"].set_index("step")["grad_norm"]
    early, late = early_and_late(norms[np.isfinite(norms)])
    return not late < LEFT * early


def _none(tables: Tables) -> Finding:
    why = (
        f"In {len(tables.records)} records no step has changed any recurrent weight, although the states receive "
        "gradient. Either the loop clears the gradients between backward() and step(), or the learning rate is 0. "
        f"{learning(tables).sentence}"
    )
    order = "optimizer.zero_grad()\nloss.backward()\noptimizer.step()"
    remedies = (Remedy("clear gradients before backward(), not behind it", order), loops.LOOK_AT_OPTIMIZER)
    level = severity(tables, critical=True)
    return _finding(tables, "the optimizer does not move the weights at all", why, level, {"update": 0.0}, remedies)


def _run_out(tables: Tables, early: float, late: float) -> Finding:
    why = (
        f"A step changed the recurrent weights by {number(early)} of their norm early in the training, and changes "
        f"them by {number(late)} now: the learning rate has run out. A scheduler for epochs does this if the loop "
        f"steps it with every batch. {learning(tables).sentence}"
    )
    code = "scheduler.step()  # once an epoch, or with a schedule that is as long as the training has batches"
    remedies = (Remedy("step the scheduler in its own unit, epochs or batches", code), loops.LOOK_AT_OPTIMIZER)
    numbers = {"update_early": early, "update_late": late}
    level = severity(tables, built=late <= NOTHING * early)
    return _finding(tables, "the steps have become too small to move the weights", why, level, numbers, remedies)


def _small(tables: Tables, update: float, path: float, steps: int) -> Finding:
    why = (
        f"A step changes the recurrent weights by {number(update)} of their norm (median over {len(tables.records)} "
        f"records; about a hundredth is usual). All {steps:,} steps together, in one direction, would change them by "
        f"{percent(path)}: the weights are nearly those of the beginning. {learning(tables).sentence}"
        + elsewhere(tables)
    )
    level = severity(tables, critical=path < STILL / 10, built=untrained(tables))
    title = f"the optimizer moves the weights by {percent(update)} of their norm a step"
    remedies = (loops.rate_for(update), loops.LOOK_AT_OPTIMIZER)
    return _finding(tables, title, why, level, {"update": update, "path": path}, remedies)


def _finding(
    tables: Tables, title: str, why: str, level: Severity, numbers: dict[str, float], remedies: tuple[Remedy, ...]
) -> Finding:
    evidence = {"steps": span(tables), **numbers, **learning(tables).evidence}
    return Finding("small_updates", level, None, title, why, evidence, remedies)


def largest_updates(tables: Tables) -> Frame:
    """Return the largest relative change of a block by each recorded step, a series by step.

    The series lacks steps of other optimizers, which change nothing here; zeros up to the end are not such steps.
    """
    updates = by_step(tables["weights"], "update", "max")
    known = updates[np.isfinite(updates.to_numpy(dtype=np.float64))]
    moved = known.index[known > 0]
    return known[(known > 0) | (known.index > moved[-1])] if len(moved) else known


def typical_update(tables: Tables) -> float:
    """Return the median of the largest updates; NaN if unknown."""
    known: Array = largest_updates(tables).to_numpy(dtype=np.float64)
    return float(np.median(known)) if len(known) else math.nan


def smaller_steps(tables: Tables) -> Remedy:
    """Return the remedy that makes steps of usual size: a tenth of the learning rate, or less if they are huge.

    After a warm-up the late steps are the large ones.
    """
    update = max(early_and_late(largest_updates(tables)))
    return loops.rate_for(update) if update > LARGE else loops.rate(0.1)


def _path(tables: Tables) -> float:
    """Sum the updates of all steps as if in one direction; each record counts for the steps around it."""
    known = largest_updates(tables)
    steps, sizes = known.index.to_numpy(dtype=np.float64), known.to_numpy(dtype=np.float64)
    if len(sizes) < ENOUGH:
        return math.nan
    every = tables["steps"]["step"]
    until = np.append((steps[1:] + steps[:-1]) / 2, every.max() + 1)
    return float((sizes * np.diff(until, prepend=every.min())).sum())
