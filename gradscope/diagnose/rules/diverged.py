"""A training that had learnt something and has lost it, or whose loss grows."""

from __future__ import annotations

import numpy as np

from gradscope.diagnose import loops
from gradscope.diagnose.frames import Seen
from gradscope.diagnose.progress import broken, learning
from gradscope.diagnose.rules.updates import typical_update
from gradscope.diagnose.trend import ENOUGH
from gradscope.diagnose.words import number, percent
from gradscope.types import Finding
from gradscope.types.clips import limiting

LARGE = 0.05
"""Share of their norm by which a step moves weights where steps are large."""


def diverged(seen: Seen) -> list[Finding]:
    """Find losses that have risen for good."""
    found = learning(seen)
    if found.verdict != "lost" or found.source != "loss" or broken(seen) or len(seen["steps"]) < ENOUGH:
        return []
    update, grew = typical_update(seen), not found.best < found.begin
    why = found.sentence
    if np.isfinite(update):
        how = "that is much: steps are too large" if update > LARGE else "that is not much by itself"
        why += f" A step moves the recurrent weights by {percent(update)} of their norm (median); {how}."
    why += " What was learnt can only be had back from a checkpoint." if not grew else ""
    clipped = bool(limiting(seen["clips"])["clipped"].astype(bool).any())
    return [
        Finding(
            code="diverged",
            severity="critical" if found.end >= found.begin else "warning",
            layer_key=None,
            title=f"the loss grows to {number(found.end)}"
            if grew
            else f"what was learnt by step {found.best_at} is lost",
            explanation=why,
            evidence={"steps": (found.best_at, int(seen["steps"]["step"].max())), "best": found.best, "update": update}
            | found.evidence,
            remedies=(loops.rate(0.1), *(() if clipped else (loops.clip(usual_norm(seen)),))),
        )
    ]


def usual_norm(seen: Seen) -> float:
    """A norm that gradients had while all was well: their median over the first half; 1 where none is known."""
    norms = seen["steps"]["grad_norm"].to_numpy(dtype=np.float64)
    finite = norms[: max(1, len(norms) // 2)]
    finite = finite[np.isfinite(finite) & (finite > 0)]
    return float(np.median(finite)) if len(finite) else 1.0
