"""Steps so small that the weights stay where they are."""

from __future__ import annotations

import math

import numpy as np

from gradscope.diagnose import loops
from gradscope.diagnose.frames import Seen
from gradscope.diagnose.progress import learning, severity
from gradscope.diagnose.trend import ENOUGH, by_step, span
from gradscope.diagnose.words import number, percent
from gradscope.types import Finding

STILL = 0.05
"""All steps together move weights by less than this share of their norm, if they went the same way."""
SMALL = 1e-3
"""Median share of its norm by which a step moves a block."""
STEPS = 50
"""In fewer steps little can have moved."""


def small_updates(seen: Seen) -> list[Finding]:
    """Find trainings that stall because the optimizer hardly moves the weights, in all their steps together."""
    update, steps = typical_update(seen), int(seen["steps"]["step"].nunique())
    path = update * steps
    if len(seen.records) < ENOUGH or steps < STEPS or not (0 < update < SMALL and path < STILL):
        return []
    found = learning(seen)
    if found.learns:
        return []
    return [
        Finding(
            code="small_updates",
            severity=severity(seen, critical=path < STILL / 10),
            layer_key=None,
            title=f"the optimizer moves the weights by {percent(update)} of their norm a step",
            explanation=(
                f"A step changes the recurrent weights by {number(update)} of their norm (median over "
                f"{len(seen.records)} records; usual is a thousandth). If all {steps:,} steps had gone the same way, "
                f"that would be {percent(path)}: the weights are still those of the beginning. {found.sentence}"
            ),
            evidence={"steps": span(seen), "update": update, "path": path, **found.evidence},
            remedies=(loops.rate_for(update), loops.look_at_optimizer()),
        )
    ]


def typical_update(seen: Seen) -> float:
    """By which share of its norm a step changes the block that it changes most, median of the records.

    NaN where that is not known.
    """
    weights = seen["weights"]
    if "update" not in weights or not len(weights):
        return math.nan
    largest = by_step(weights, "update", "max").to_numpy(dtype=np.float64)
    finite = largest[np.isfinite(largest)]
    return float(np.median(finite)) if len(finite) else math.nan
