"""A training that has lost what it had learnt, whose loss grows, or whose first steps threw the weights off."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from gradscope.diagnose import loops
from gradscope.diagnose.frames import Tables
from gradscope.diagnose.progress import broken, in_spite, learning, severity
from gradscope.diagnose.rules.updates import LARGE, largest_updates, smaller_steps, typical_update
from gradscope.diagnose.trend import ENOUGH, by_step, span
from gradscope.diagnose.words import number, percent
from gradscope.types import Finding, Remedy, Severity
from gradscope.types.clips import limiting

THROWN, AT_ONCE = 0.2, 0.5
"""The first three steps, or the very first, throw the weights off by such shares; a tenth of this is usual."""
GROWN = 2.5
"""A loss so many times its beginning has grown."""
ROSE = 2.0
"""A loss that has been at so many times its beginning, and its end, was thrown off and has come down again."""
TINY = 0.25
"""Beside weights with a smaller spectral norm at first, steps of usual size are large."""
ALL = 1.0
"""Of weights that first steps change by this share of their norm nothing is left, even if the training learns."""


def diverged(tables: Tables) -> list[Finding]:
    """Find losses that have risen for good, and far too large first steps, mostly of trainings that fail."""
    if broken(tables) or learning(tables).source != "loss":
        return []
    return list(_cases(tables))[:1]


def _cases(tables: Tables) -> Iterator[Finding]:
    training, first = learning(tables), _first_steps(tables)
    if first > 0 and (training.fails or first >= ALL):
        yield _thrown(tables, first)
    if training.verdict == "lost" or (training.verdict == "stalls" and _driven_up(tables, GROWN, training.end)):
        yield _risen(tables)
    came_down = training.peak >= ROSE * training.end
    if training.verdict == "stalls" and came_down and _driven_up(tables, ROSE, training.peak):
        yield _came_down(tables)


def _driven_up(tables: Tables, times: float, level: float) -> bool:
    """True if the loss has grown, and steps are large: targets from the network itself may let a loss grow as well."""
    return 0 < times * learning(tables).begin <= level and typical_update(tables) >= LARGE / 2


def _first_steps(tables: Tables) -> float:
    """Return the change of a block by the very first step, or the median of three; 0 if neither is large.

    Steps that make next to nothing large throw nothing off.
    """
    first = largest_updates(tables).to_numpy(dtype=np.float64)[:ENOUGH]
    norms = by_step(tables["weights"], "spectral_norm", "max").to_numpy(dtype=np.float64)
    if len(first) < ENOUGH or norms[0] < TINY:
        return 0.0
    typical, very_first = float(np.median(first)), float(first[0])
    return very_first if very_first >= AT_ONCE else typical if typical >= THROWN else 0.0


def _thrown(tables: Tables, first: float) -> Finding:
    why = (
        f"The first steps changed the recurrent weights by {percent(first)} of their norm (1 to 5 % is usual): they "
        f"destroyed the initialisation before the network had learnt anything. {learning(tables).sentence}"
        f"{in_spite(tables)}"
    )
    title = "the first steps are far too large"
    numbers = {"steps": (tables.records[0], tables.records[2]), "update": first, "thrown": True}
    level = severity(tables, critical=first >= ALL, built=first >= ALL)
    return _finding(tables, title, why, level, numbers, loops.rate_for(first, LARGE))


def _risen(tables: Tables) -> Finding:
    training, update = learning(tables), typical_update(tables)
    grew, why = not training.best < training.begin, training.sentence
    if np.isfinite(update):
        how = "this is much: the steps are too large" if update > LARGE else "this alone is not much"
        why += f" A step moves the recurrent weights by {percent(update)} of their norm (median); {how}."
    why += " Only a checkpoint brings back what the network had learnt." if not grew else ""
    title = (
        f"the loss grows to {number(training.end)}" if grew else f"what was learnt by step {training.best_at} is lost"
    )
    numbers = {"steps": (training.best_at, int(tables["steps"]["step"].max())), "best": training.best, "update": update}
    level = "critical" if training.end >= training.begin else "warning"
    return _finding(tables, title, why, level, numbers, smaller_steps(tables))


def _came_down(tables: Tables) -> Finding:
    training, update = learning(tables), typical_update(tables)
    why = (
        f"Too large steps threw the weights off: on its way the loss has been at {number(training.peak)}. A step moves "
        f"the recurrent weights by {percent(update)} of their norm (median). {training.sentence}"
    )
    title = f"large steps drove the loss up to {number(training.peak)}"
    numbers = {"steps": span(tables), "peak": training.peak, "update": update}
    return _finding(tables, title, why, severity(tables), numbers, smaller_steps(tables))


def _finding(
    tables: Tables, title: str, why: str, level: Severity, numbers: Mapping[str, object], slower: Remedy
) -> Finding:
    clipped = bool(limiting(tables["clips"])["clipped"].astype(bool).any())
    clip: tuple[Remedy, ...] = () if clipped else (loops.clip(usual_norm(tables)),)
    evidence = {**numbers, **learning(tables).evidence}
    return Finding("diverged", level, None, title, why, evidence, (slower, *clip))


def usual_norm(tables: Tables) -> float:
    """A norm that gradients had while all was well: their median over the first half; 1 where none is known."""
    norms = tables["steps"]["grad_norm"].to_numpy(dtype=np.float64)
    finite = norms[: max(1, len(norms) // 2)]
    finite = finite[np.isfinite(finite) & (finite > 0)]
    return float(np.median(finite)) if len(finite) else 1.0
