"""ReLU units that are zero for every input."""

from __future__ import annotations

from gradscope.diagnose import remedies, swaps
from gradscope.diagnose.frames import Seen
from gradscope.diagnose.trend import early_and_late, loss_left, rests_on, severity, stalled
from gradscope.diagnose.words import percent, place
from gradscope.types import Finding, LayerKey

DEAD = 0.999
"""A unit is dead that is zero at so large a share of timesteps and sequences."""
MANY = 0.85
LEFT = 0.5


def dead_units(seen: Seen) -> list[Finding]:
    """Find ReLU recurrences nearly all units of which are dead early and late, where the loss gradient does not fall.

    Some dead units are usual, and networks learn well with half of them.
    """
    found: list[Finding] = []
    for module, keys in seen.modules_seen:
        if seen.family(module) != "rnn_relu" or not stalled(seen, module, LEFT):
            continue
        dead = {key: _share(seen, key) for key in keys}
        worst = max(dead, key=lambda key: dead[key])
        if dead[worst] >= MANY:
            found.append(_finding(seen, worst, dead[worst], len(keys)))
    return found


def _share(seen: Seen, key: LayerKey) -> float:
    units = seen.of("units", key)
    hidden = units[units["gate"] == "hidden"]
    return min(early_and_late((hidden["low"] >= DEAD).groupby(hidden["step"]).mean().to_numpy()))


def _finding(seen: Seen, key: LayerKey, share: float, count: int) -> Finding:
    where = place(key, count == 1)
    return Finding(
        code="dead_units",
        severity=severity(seen, share >= DEAD),
        layer_key=key,
        title=f"{where}: {percent(share)} of the units are dead",
        explanation=(
            f"{percent(share)} of the ReLU units of {where} are zero at every timestep of every analysed sequence, "
            "early and late in the training. No gradient passes a unit that is zero, so it cannot come back."
            + rests_on(seen, key)
        ),
        evidence={
            "gate": "hidden",
            "steps": (seen.records[0], seen.records[-1]),
            "timesteps": int(seen.of("layers", key)["timesteps"].max()),
            "share": share,
            "loss_gradient_left": loss_left(seen, key.module),
        },
        remedies=(remedies.identity(key), remedies.lower_rate(), swaps.gated(seen, key)),
    )
