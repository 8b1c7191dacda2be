"""ReLU units that are zero for every input."""

from __future__ import annotations

from gradscope.diagnose import loops, remedies, swaps
from gradscope.diagnose.frames import Seen
from gradscope.diagnose.progress import learning, severity
from gradscope.diagnose.trend import ENOUGH, early_and_late, rests_on, span, timesteps
from gradscope.diagnose.words import percent, place
from gradscope.types import Finding, LayerKey

DEAD = 0.999
"""A unit is dead that is zero at so large a share of timesteps and sequences."""
MANY = 0.85


def dead_units(seen: Seen) -> list[Finding]:
    """Find ReLU recurrences nearly all units of which are dead early and late.

    Some dead units are usual, and networks learn well with half of them.
    """
    if len(seen.records) < ENOUGH:
        return []
    found: list[Finding] = []
    for module, keys in seen.modules_seen:
        if seen.family(module) != "rnn_relu":
            continue
        dead = {key: _share(seen, key) for key in keys}
        worst = max(dead, key=lambda key: dead[key])
        if dead[worst] >= MANY:
            found.append(_finding(seen, worst, dead[worst], len(keys)))
    return found


def _share(seen: Seen, key: LayerKey) -> float:
    units = seen.of("units", key)
    hidden = units[units["gate"] == "hidden"]
    return min(early_and_late((hidden["low"] >= DEAD).groupby(hidden["step"]).mean()))


def _finding(seen: Seen, key: LayerKey, share: float, count: int) -> Finding:
    where, level = place(key, count == 1), severity(seen, critical=share >= DEAD)
    alone = "What the loss falls by, it falls by without them. " if learning(seen).learns else ""
    return Finding(
        code="dead_units",
        severity="warning" if level == "info" and share >= DEAD else level,
        layer_key=key,
        title=f"{where}: {percent(share)} of the units are dead",
        explanation=(
            f"{percent(share)} of the ReLU units of {where} are zero at every timestep of every analysed sequence, "
            "early and late in the training. No gradient passes a unit that is zero, so it cannot come back. "
            + alone
            + learning(seen).sentence
            + rests_on(seen, key)
        ),
        evidence={
            "gate": "hidden",
            "steps": span(seen),
            "timesteps": timesteps(seen, key),
            "share": share,
            **learning(seen).evidence,
        },
        remedies=(remedies.identity(key), loops.rate(0.1), swaps.gated(seen, key)),
    )
