"""Gradients of earlier steps in `.grad` at the beginning of a step: nothing has cleared them."""

from __future__ import annotations

import re

import numpy as np

from gradscope.diagnose import loops
from gradscope.diagnose.frames import Tables
from gradscope.diagnose.progress import learning
from gradscope.diagnose.words import number, plural
from gradscope.types import Finding
from gradscope.types.notes import STALE

OFTEN = 0.3
"""Share of the recorded steps with such gradients: once an epoch, or all the time."""
LEAST = 3
MUCH = 0.1
"""Norm of the old gradient over that of the optimizer's."""
_NORMS = re.compile(r": norm (?P<before>[\d.e+-]+|nan|inf), (?P<after>[\d.e+-]+|nan|inf) after")


def stale_gradient(tables: Tables) -> list[Finding]:
    """Find loops without `zero_grad()`: the optimizer follows sums over all steps so far."""
    notes = tables.noted(STALE)
    steps, records = sorted({int(step) for step in notes["step"]}), max(1, tables.recorded - 1)
    if len(steps) < LEAST or len(steps) < OFTEN * records:
        return []
    ratio = _ratio([str(reason) for reason in notes["reason"]])
    return [_finding(tables, steps, records, ratio)] if ratio >= MUCH else []


def _finding(tables: Tables, steps: list[int], records: int, ratio: float) -> Finding:
    training = learning(tables)
    return Finding(
        code="stale_gradient",
        severity="critical" if training.fails else "warning",
        layer_key=None,
        title="each step adds its gradients to those of earlier steps: zero_grad() is missing",
        explanation=(
            f"In {len(steps)} of {plural(records, 'recorded step')} .grad still contained the gradients of the step "
            f"before when backward() began; their norm was {number(ratio)} times that of the optimizer's gradients "
            "(median). So the optimizer follows a sum over all steps so far, mostly gradients of earlier weights. "
            f"{training.sentence}"
        ),
        evidence={
            "steps": (steps[0], steps[-1]),
            "share": min(1.0, len(steps) / records),
            "kept": ratio,
            **training.evidence,
        },
        remedies=(loops.ZERO_GRAD,),
    )


def _ratio(reasons: list[str]) -> float:
    """Return the norm of the old gradients over that of all, median; 1 if the notes lack it."""
    matches = [match for reason in reasons if (match := _NORMS.search(reason))]
    ratios = [float(match["before"]) / float(match["after"]) for match in matches if float(match["after"]) > 0]
    finite = [ratio for ratio in ratios if np.isfinite(ratio)]
    return float(np.median(finite)) if finite else 1.0
