"""Units that are zero for every input: ReLU's, and those of a cell whose whole state is zero."""

from __future__ import annotations

import numpy as np

from gradscope.diagnose import loops, remedies
from gradscope.diagnose.frames import Tables
from gradscope.diagnose.progress import learning, severity
from gradscope.diagnose.trend import ENOUGH, early_and_late, rests_on, span, state_sizes, timesteps
from gradscope.diagnose.words import percent, place
from gradscope.types import Finding, LayerKey

DEAD = 0.999
"""A dead unit is zero at this share of timesteps and sequences."""
MANY = 0.85


def dead_units(tables: Tables) -> list[Finding]:
    """Find ReLU recurrences in which nearly all units are dead, early and late, and cells whose state is always zero.

    Some dead units are usual, and networks learn well with half of their units dead.
    """
    if len(tables.records) < ENOUGH:
        return []
    findings: list[Finding] = []
    for module, keys in tables.by_module:
        share = {"rnn_relu": _share, "": _nothing}.get(tables.family(module))
        if share is None:
            continue
        dead = {key: share(tables, key) for key in keys}
        worst = max(dead, key=lambda key: dead[key])
        if dead[worst] >= MANY:
            findings.append(_finding(tables, worst, dead[worst], len(keys)))
    return findings


def _share(tables: Tables, key: LayerKey) -> float:
    units = tables.of("units", key)
    hidden = units[units["gate"] == "hidden"]
    return min(early_and_late((hidden["low"] >= DEAD).groupby(hidden["step"]).mean()))


def _nothing(tables: Tables, key: LayerKey) -> float:
    """Return 1 if the state of a cell without known gates is zero at all times."""
    sizes = state_sizes(tables, key)["p90"].to_numpy(dtype=np.float64)
    return float(len(sizes) > 0 and not sizes.any())


def _finding(tables: Tables, key: LayerKey, share: float, count: int) -> Finding:
    where, everywhere = place(key, count == 1), share >= DEAD
    alone = "The loss falls without them. " if learning(tables).learns else ""
    known = tables.family(key.module) == "rnn_relu"
    cures = (remedies.identity(key), loops.rate(0.1), remedies.gated(tables, key))
    return Finding(
        code="dead_units",
        severity=severity(tables, critical=everywhere, built=everywhere),
        layer_key=key,
        title=f"{where}: {percent(share)} of the units are dead",
        explanation=(
            f"{percent(share)} of the {'ReLU units' if known else 'units'} of {where} are zero at every timestep of "
            "every analysed sequence, early and late in the training. No gradient passes a unit at zero, so dead units "
            "stay dead. " + alone + learning(tables).sentence + rests_on(tables, key)
        ),
        evidence={
            "gate": "hidden",
            "steps": span(tables),
            "timesteps": timesteps(tables, key),
            "share": share,
            **learning(tables).evidence,
        },
        remedies=cures if known else (remedies.torch_layer(key), loops.rate(0.1)),
    )
