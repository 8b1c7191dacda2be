"""When no rule has found a fault: what that rules out, and what to look at next if the loss stalls all the same."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from gradscope.diagnose import loops
from gradscope.diagnose.frames import Seen
from gradscope.diagnose.progress import learning
from gradscope.diagnose.rules.updates import typical_update
from gradscope.diagnose.trend import ENOUGH, early_and_late, horizons, span
from gradscope.diagnose.words import number, percent, place, plural
from gradscope.types import Finding, LayerKey, Remedy

LIMITED = 0.5
"""A gate is free of which fewer units are at a limit."""
EVEN = 10.0
"""Norms are even of which the largest is not so many times the median."""
LARGE, SMALL = 0.05, 1e-4
"""Share of their norm by which a step moves weights: more is much, less is little."""


def healthy(seen: Seen) -> Finding:
    """That nothing was found, what has been ruled out, and where to look next."""
    records, found = seen.recorded, learning(seen)
    told = f"No rule has found a fault in {records} recorded of {len(seen['steps']):,} steps."
    why = " ".join([told, found.sentence, *_ruled_out(seen)])
    if found.fails:
        why += (
            " If the loss stalls all the same, the recurrence is not the likely reason. Look at what follows, in order."
        )
    return Finding(
        code="healthy",
        severity="info",
        layer_key=None,
        title="nothing was found" if not found.fails else "nothing in the recurrence explains why the loss stalls",
        explanation=why,
        evidence={"records": records, "steps": span(seen), **found.evidence},
        remedies=_next(seen) if found.fails else (),
    )


def _ruled_out(seen: Seen) -> Iterator[str]:
    keys = seen.first_chains
    yield from (_reaches(seen, key, len(keys) == 1) for key in keys[:3])
    if len(keys) > 3:
        yield f"So it is in {plural(len(keys) - 3, 'more recurrence')}, each with numbers of its own."
    last, end = seen.records[-1], int(seen["steps"]["step"].max())
    if last < end - (end - seen.records[0]) / 2:
        yield f"The last record is of step {last} of {end}: how it was later is not known (`every=N` records more)."
    yield from _gates(seen)
    yield from _norms(seen)
    yield from _updates(seen)


def _reaches(seen: Seen, key: LayerKey, alone: bool) -> str:
    _, late, longest = horizons(seen, key)
    where = place(key, alone)
    if not np.isfinite(late):
        return f"How far gradients reach in {where} is not known."
    if late >= longest:
        return f"Gradients reach all {longest:g} steps back in {where}."
    enough = ": enough for what it has learnt" if learning(seen).learns else ""
    return f"Gradients reach {late:g} of {longest:g} steps back in {where}{enough}."


def _gates(seen: Seen) -> Iterator[str]:
    gates = seen["gates"]
    sigmoid = gates[~gates["gate"].isin(("candidate",))]
    shares = [
        (early_and_late((rows["low"] + rows["high"]).groupby(rows["step"]).mean())[1], str(gate))
        for gate, rows in sigmoid.groupby("gate", sort=False)
    ]
    known = [share for share in shares if np.isfinite(share[0])]
    if known:
        share, gate = max(known)
        what = "the state" if gate == "hidden" else f"the {gate} gate"
        free = "Gates are free" if share < LIMITED else "Of the gates one is often at a limit, as may be"
        yield f"{free}: {percent(share)} of {what} at most."


def _norms(seen: Seen) -> Iterator[str]:
    norms = seen["steps"]["grad_norm"].to_numpy(dtype=np.float64)
    norms = norms[np.isfinite(norms) & (norms > 0)]
    if len(norms) >= ENOUGH:
        times = float(norms.max() / np.median(norms))
        even = "are even" if times < EVEN else "vary"
        yield f"Gradient norms {even}: the largest is {number(times)} times the median."


def _updates(seen: Seen) -> Iterator[str]:
    update = typical_update(seen)
    if np.isfinite(update):
        much = ", which is much" if update > LARGE else ", which is little" if update < SMALL else ""
        yield f"A step moves the recurrent weights by {percent(update)} of their norm{much}."


def _next(seen: Seen) -> tuple[Remedy, ...]:
    """One batch, labels and shapes, the learning rate, what the optimizer holds; first what the numbers point to."""
    update = typical_update(seen)
    usual = not np.isfinite(update) or SMALL <= update <= LARGE
    first, last = (loops.by_heart(), loops.look_at_shapes()), loops.look_at_optimizer()
    return (*first, loops.other_rates(), last) if usual else (loops.rate_for(update), *first, last)
