"""Gradients of earlier steps that are still there when a step begins: nobody has cleared them."""

from __future__ import annotations

import re

import numpy as np

from gradscope.diagnose import loops
from gradscope.diagnose.frames import Seen
from gradscope.diagnose.progress import learning
from gradscope.diagnose.words import number, plural
from gradscope.types import Finding
from gradscope.types.notes import STALE

OFTEN = 0.3
"""Share of the recorded steps in which it happens: once an epoch, or all the time."""
LEAST = 3
MUCH = 0.1
"""Norm of what was left, over that of what the optimizer gets."""
_NORMS = re.compile(r": norm (?P<before>[\d.e+-]+|nan|inf), (?P<after>[\d.e+-]+|nan|inf) after")


def stale_gradient(seen: Seen) -> list[Finding]:
    """Find loops without `zero_grad()`: what the optimizer gets are sums over all steps so far."""
    notes = seen["notes"]
    told = notes[notes["reason"].str.startswith(STALE)]
    steps, records = sorted({int(step) for step in told["step"]}), max(1, seen.recorded - 1)
    if len(steps) < LEAST or len(steps) < OFTEN * records:
        return []
    kept = _kept([str(reason) for reason in told["reason"]])
    if kept < MUCH:
        return []
    found = learning(seen)
    return [
        Finding(
            code="stale_gradient",
            severity="critical" if found.fails else "warning",
            layer_key=None,
            title="gradients of earlier steps are added to those of each step: zero_grad() is missing",
            explanation=(
                f"In {len(steps)} of {plural(records, 'recorded step')} the gradients of the step before were still in "
                f".grad when backward() began; their norm was {number(kept)} times that of what the optimizer got "
                "(median). So it follows a sum over all steps so far, most of which were for other weights. "
                f"{found.sentence}"
            ),
            evidence={
                "steps": (steps[0], steps[-1]),
                "share": min(1.0, len(steps) / records),
                "kept": kept,
                **found.evidence,
            },
            remedies=(loops.zero_grad(),),
        )
    ]


def _kept(reasons: list[str]) -> float:
    """Norm of what was left over that of all, median; 1 where the notes do not say."""
    found = [match for reason in reasons if (match := _NORMS.search(reason))]
    ratios = [float(match["before"]) / float(match["after"]) for match in found if float(match["after"]) > 0]
    finite = [ratio for ratio in ratios if np.isfinite(ratio)]
    return float(np.median(finite)) if finite else 1.0
