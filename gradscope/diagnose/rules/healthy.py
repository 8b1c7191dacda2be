"""The finding if no rule finds a fault: excluded causes, and the next things to check if the loss stalls anyway."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from gradscope.diagnose import loops
from gradscope.diagnose.frames import Tables
from gradscope.diagnose.progress import learning
from gradscope.diagnose.rules.updates import typical_update
from gradscope.diagnose.trend import ENOUGH, early_and_late, horizons, span
from gradscope.diagnose.words import number, percent, place, plural
from gradscope.types import Finding, LayerKey, Remedy

LIMITED = 0.5
"""A gate is free if fewer of its units are at a limit."""
EVEN = 10.0
"""Norms are even if the largest is less than so many times the median."""
LARGE, SMALL = 0.05, 1e-4
"""A step that moves weights by more than the first share of their norm is large, by less than the second small."""


def healthy(tables: Tables) -> Finding:
    """Report that no rule finds a fault, with the excluded causes and the next things to check."""
    records, training = tables.recorded, learning(tables)
    result = f"No rule finds a fault in {records} recorded of {len(tables['steps']):,} steps."
    why = " ".join([result, training.sentence, *_excluded(tables)])
    if training.fails:
        why += " If the loss stalls, the recurrence is probably not the reason. Try the following, in order."
    return Finding(
        code="healthy",
        severity="info",
        layer_key=None,
        title="no rule finds a fault"
        if not training.fails
        else "nothing in the recurrence explains why the loss stalls",
        explanation=why,
        evidence={"records": records, "steps": span(tables), **training.evidence},
        remedies=_next(tables) if training.fails else (),
    )


def _excluded(tables: Tables) -> Iterator[str]:
    keys = tables.first_chains
    yield from (_reaches(tables, key, len(keys) == 1) for key in keys[:3])
    if len(keys) > 3:
        yield f"The tables have the numbers of {plural(len(keys) - 3, 'more recurrence')}."
    last, end = tables.records[-1], int(tables["steps"]["step"].max())
    if last < end - (end - tables.records[0]) / 2:
        yield f"The last record is of step {last} of {end}: later steps are unknown (`every=N` records more)."
    yield from _gates(tables)
    yield from _norms(tables)
    yield from _updates(tables)


def _reaches(tables: Tables, key: LayerKey, alone: bool) -> str:
    _, late, longest = horizons(tables, key)
    where = place(key, alone)
    if not np.isfinite(late):
        return f"The reach of gradients in {where} is unknown."
    if late >= longest:
        return f"Gradients reach all {longest:g} steps back in {where}."
    enough = ": enough for what it has learnt" if learning(tables).learns else ""
    return f"Gradients reach {late:g} of {longest:g} steps back in {where}{enough}."


def _gates(tables: Tables) -> Iterator[str]:
    gates = tables["gates"]
    sigmoid = gates[~gates["gate"].isin(("candidate",))]
    shares = [
        (early_and_late((rows["low"] + rows["high"]).groupby(rows["step"]).mean())[1], str(gate))
        for gate, rows in sigmoid.groupby("gate", sort=False)
    ]
    known = [share for share in shares if np.isfinite(share[0])]
    if known:
        share, gate = max(known)
        most = "the state" if gate == "hidden" else f"the {gate} gate"
        free = "Gates are free" if share < LIMITED else "One gate is often at a limit, which may be right"
        yield f"{free}: at most {percent(share)} of the units are at a limit ({most})."


def _norms(tables: Tables) -> Iterator[str]:
    norms = tables["steps"]["grad_norm"].to_numpy(dtype=np.float64)
    norms = norms[np.isfinite(norms) & (norms > 0)]
    if len(norms) >= ENOUGH:
        times = float(norms.max() / np.median(norms))
        even = "are even" if times < EVEN else "vary"
        yield f"Gradient norms {even}: the largest is {number(times)} times the median."


def _updates(tables: Tables) -> Iterator[str]:
    update = typical_update(tables)
    if np.isfinite(update):
        much = ": this is much" if update > LARGE else ": this is little" if update < SMALL else ""
        yield f"A step moves the recurrent weights by {percent(update)} of their norm{much}."


def _next(tables: Tables) -> tuple[Remedy, ...]:
    """List checks: one batch, labels and shapes, the learning rate, the optimizer; an unusual step size comes first."""
    update = typical_update(tables)
    usual = not np.isfinite(update) or SMALL <= update <= LARGE
    first, last = (loops.BY_HEART, loops.LOOK_AT_SHAPES), loops.LOOK_AT_OPTIMIZER
    return (*first, loops.OTHER_RATES, last) if usual else (loops.rate_for(update), *first, last)
