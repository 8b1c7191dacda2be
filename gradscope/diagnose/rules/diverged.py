"""A training that had learnt something and has lost it, whose loss grows, or whose first steps threw it off."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from gradscope.diagnose import loops
from gradscope.diagnose.frames import Seen
from gradscope.diagnose.progress import broken, learning, severity
from gradscope.diagnose.rules.updates import largest_updates, typical_update
from gradscope.diagnose.trend import ENOUGH
from gradscope.diagnose.words import number, percent
from gradscope.types import Finding, Remedy, Severity
from gradscope.types.clips import limiting

LARGE = 0.05
"""Share of their norm by which a step moves weights where steps are large."""
THROWN, AT_ONCE = 0.2, 0.5
"""And where the first three, or the very first, throw the weights off; usual first steps are a tenth of this."""


def diverged(seen: Seen) -> list[Finding]:
    """Find losses that have risen for good, and trainings that fail after first steps that were far too large."""
    if broken(seen) or learning(seen).source != "loss":
        return []
    return list(_cases(seen))[:1]


def _cases(seen: Seen) -> Iterator[Finding]:
    found, first = learning(seen), _first_steps(seen)
    if found.fails and first > 0:
        yield _thrown(seen, first)
    if found.verdict == "lost":
        yield _risen(seen)


def _first_steps(seen: Seen) -> float:
    """By which share of its norm the first steps changed a block, median of three or the very first; 0 if not much."""
    first = largest_updates(seen).to_numpy(dtype=np.float64)[:ENOUGH]
    if len(first) < ENOUGH:
        return 0.0
    typical, very_first = float(np.median(first)), float(first[0])
    return typical if typical >= THROWN else very_first if very_first >= AT_ONCE else 0.0


def _thrown(seen: Seen, first: float) -> Finding:
    why = (
        f"The first steps changed the recurrent weights by {percent(first)} of their norm (usual is 1 to 5 %): what "
        f"they were made to be is gone before anything was learnt. {learning(seen).sentence}"
    )
    title = "the first steps are far too large"
    told = {"steps": (seen.records[0], seen.records[2]), "update": first, "thrown": True}
    return _finding(seen, title, why, severity(seen, critical=first >= 1), told)


def _risen(seen: Seen) -> Finding:
    found, update = learning(seen), typical_update(seen)
    grew, why = not found.best < found.begin, found.sentence
    if np.isfinite(update):
        how = "that is much: steps are too large" if update > LARGE else "that is not much by itself"
        why += f" A step moves the recurrent weights by {percent(update)} of their norm (median); {how}."
    why += " What was learnt can only be had back from a checkpoint." if not grew else ""
    title = f"the loss grows to {number(found.end)}" if grew else f"what was learnt by step {found.best_at} is lost"
    told = {"steps": (found.best_at, int(seen["steps"]["step"].max())), "best": found.best, "update": update}
    return _finding(seen, title, why, "critical" if found.end >= found.begin else "warning", told)


def _finding(seen: Seen, title: str, why: str, level: Severity, told: Mapping[str, object]) -> Finding:
    clipped = bool(limiting(seen["clips"])["clipped"].astype(bool).any())
    clip: tuple[Remedy, ...] = () if clipped else (loops.clip(usual_norm(seen)),)
    evidence = {**told, **learning(seen).evidence}
    return Finding("diverged", level, None, title, why, evidence, (loops.rate(0.1), *clip))


def usual_norm(seen: Seen) -> float:
    """A norm that gradients had while all was well: their median over the first half; 1 where none is known."""
    norms = seen["steps"]["grad_norm"].to_numpy(dtype=np.float64)
    finite = norms[: max(1, len(norms) // 2)]
    finite = finite[np.isfinite(finite) & (finite > 0)]
    return float(np.median(finite)) if len(finite) else 1.0
