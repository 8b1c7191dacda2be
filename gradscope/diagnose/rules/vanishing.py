"""The loss gradient dies within a fraction of the sequence, from the beginning to the end of a training that stalls."""

from __future__ import annotations

import math

from gradscope.diagnose import remedies, swaps
from gradscope.diagnose.frames import Seen
from gradscope.diagnose.trend import (
    horizons,
    loss_enters,
    loss_left,
    passed_down,
    rests_on,
    severity,
    spectral_radius,
    stalled,
)
from gradscope.diagnose.words import number, percent, place
from gradscope.types import Finding, LayerKey, Remedy

SHORT_EARLY, SHORT_LATE = 0.85, 0.6
"""A horizon below these shares of the sequence is short; a training that goes well does not make it shorter."""
EVERYWHERE, NEXT_TO_NOTHING = 0.5, 4
"""Where the loss enters at so many of the timesteps, most of it is about what lies near, and no horizon is known to be
too short, unless it is no more than a few steps."""
LEAST = 4
"""Below so many steps nothing can be said about range."""
LEFT = 0.35
"""A training that has less than this of its loss gradient left learns what it has to without long memory."""
CRITICAL = 0.25
LOST = 0.1
"""Where less than this share of the loss gradient comes down a stack, its layers are to be bridged as well."""


def vanishing_gradient(seen: Seen) -> list[Finding]:
    """Find recurrences whose `reach` is short early and late, in modules whose loss gradient does not fall.

    A module vanishes where all its forward recurrences, or all its reverse ones, do: the shortest is reported.
    """
    found: list[Finding] = []
    for module, keys in seen.modules_seen:
        everywhere = loss_enters(seen, module) >= EVERYWHERE
        short = [key for key in keys if _short(seen, key, everywhere)]
        if short and stalled(seen, module, LEFT):
            found.append(_finding(seen, min(short, key=lambda key: horizons(seen, key)[1]), len(keys)))
    return found


def _short(seen: Seen, key: LayerKey, everywhere: bool) -> bool:
    early, late, longest = horizons(seen, key)
    if everywhere:
        return longest > 2 * NEXT_TO_NOTHING and max(early, late) <= NEXT_TO_NOTHING
    return longest >= LEAST and early <= SHORT_EARLY * longest and late <= SHORT_LATE * longest


def _finding(seen: Seen, key: LayerKey, count: int) -> Finding:
    early, late, longest = horizons(seen, key)
    left, radius = loss_left(seen, key.module), spectral_radius(seen, key)[1]
    enters, down = loss_enters(seen, key.module), passed_down(seen, key.module)
    decay = float(seen.of("layers", key)["decay"].median())
    where = place(key, count == 1)
    why = (
        f"Of the loss gradient that enters {where}, less than a thousandth is left after {number(early)} steps early "
        f"in the training and {number(late)} late in it, of {number(longest)} that it could go. The spectral radius of "
        f"its recurrent weights is {number(radius)}. The loss enters at {percent(enters)} of the timesteps."
    )
    if down < LOST:
        why += f" {percent(down)} of what enters the uppermost layer comes down to the lowest."
    if math.isfinite(left):
        why += f" {percent(left)} of the loss gradient of the beginning is still there: the training seems to stall."
    return Finding(
        code="vanishing_gradient",
        severity=severity(seen, late <= CRITICAL * longest),
        layer_key=key,
        title=f"{where}: the gradient vanishes within {number(late)} of {number(longest)} steps",
        explanation=why + rests_on(seen, key),
        evidence={
            "steps": (seen.records[0], seen.records[-1]),
            "timesteps": int(longest) + 1,
            "horizon_early": early,
            "horizon_late": late,
            "decay": decay,
            "spectral_radius": radius,
            "loss_gradient_left": left,
            "loss_enters": enters,
            **({"passed_down": down} if math.isfinite(down) else {}),
        },
        remedies=_remedies(seen, key, count, int(longest) + 1, down < LOST),
    )


def _remedies(seen: Seen, key: LayerKey, count: int, timesteps: int, lost: bool) -> tuple[Remedy, ...]:
    family = seen.family(key.module)
    if not remedies.can_be_initialised(seen, key):
        return (remedies.pack(),)
    bridged = swaps.residual(seen, key) if lost else None
    if family == "lstm":
        found = [remedies.chrono(key, timesteps), remedies.forget_bias(key), bridged]
    elif family == "gru":
        found = [remedies.chrono(key, timesteps), bridged]
    else:
        start = remedies.identity(key) if family == "rnn_relu" else remedies.orthogonal(seen, key, count)
        found = [start, swaps.gated(seen, key), swaps.layer_norm(seen, key), bridged]
    return (*(remedy for remedy in found if remedy is not None), remedies.pack())
