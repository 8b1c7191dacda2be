"""The loss gradient dies within a fraction of the sequence: what follows from that where the training stalls."""

from __future__ import annotations

import math
from typing import NamedTuple

from gradscope.diagnose import loops, remedies, swaps
from gradscope.diagnose.entering import loss_enters, passed_down
from gradscope.diagnose.frames import Seen
from gradscope.diagnose.progress import learning, severity
from gradscope.diagnose.trend import ENOUGH, by_step, horizons, median, rests_on, span, spectral_radius
from gradscope.diagnose.words import number, percent, place, plural
from gradscope.types import Finding, LayerKey, Remedy, Severity

SHORT_EARLY, SHORT_LATE = 0.85, 0.6
"""A horizon below these shares of the sequence is short; a training that goes well does not make it shorter."""
EVERYWHERE, NEXT_TO_NOTHING = 0.5, 4
"""Where the loss enters at so many of the timesteps, most of it is about what lies near, and no horizon is known to be
too short, unless it is no more than a few steps or next to nothing of the sequence."""
PART = 0.1
LEAST = 4
"""Below so many steps nothing can be said about range."""
SMALL = 0.35
"""Recurrent weights of an Elman network with a smaller spectral radius were made so: initialisers give 0.5 to 1."""
LOST = 0.1
"""Where less than this share of the loss gradient comes down a stack, its layers are to be bridged as well."""
NOTHING = 1e-2
"""Where less than this does, the lower layers get next to none."""


class Reach(NamedTuple):
    """How far the gradient of one recurrence goes back: early, late, and how far it could go."""

    key: LayerKey
    early: float
    late: float
    longest: float


def vanishing_gradient(seen: Seen) -> list[Finding]:
    """Find recurrences whose `reach` is short early and late, in trainings that do not learn.

    A short reach alone is no fault: what lies near may be all that the answer needs. A module vanishes where all its
    forward recurrences, or all its reverse ones, do: the shortest is reported.
    """
    if len(seen.records) < ENOUGH:
        return []
    found: list[Finding] = []
    for module, keys in seen.modules_seen:
        everywhere = loss_enters(seen, module) >= EVERYWHERE
        reaches = [reach for key in keys if math.isfinite((reach := Reach(key, *horizons(seen, key))).late)]
        short = [reach for reach in reaches if _short(reach, everywhere)]
        down = passed_down(seen, module)
        if learning(seen).learns:
            short = [reach for reach in short if not everywhere and _next_to_nothing(reach)]
        elif not short and down < NOTHING:
            short = reaches
        if short:
            worst = min(short, key=lambda reach: reach.key.layer if down < NOTHING else reach.late)
            found.append(_finding(seen, worst, down, len(keys)))
    return found


def _short(reach: Reach, everywhere: bool) -> bool:
    _, early, late, longest = reach
    if everywhere:
        return longest > 2 * NEXT_TO_NOTHING and max(early, late) <= max(NEXT_TO_NOTHING, PART * longest)
    return longest >= LEAST and early <= SHORT_EARLY * longest and late <= SHORT_LATE * longest


def _next_to_nothing(reach: Reach) -> bool:
    return reach.longest > 2 * NEXT_TO_NOTHING and max(reach.early, reach.late) <= NEXT_TO_NOTHING


def _severity(seen: Seen, reach: Reach, down: float) -> Severity:
    """A warning where the network was made so that nothing can come back; else what is usual, and perhaps enough."""
    elman = seen.family(reach.key.module).startswith("rnn")
    small = elman and max(spectral_radius(seen, reach.key)) < SMALL
    first = float(by_step(seen.of("layers", reach.key), "horizon").iloc[0])
    made_so = small or (_next_to_nothing(reach) and first <= NEXT_TO_NOTHING) or down < NOTHING
    return severity(seen) if made_so and learning(seen).source == "loss" else "info"


def _finding(seen: Seen, reach: Reach, down: float, count: int) -> Finding:
    key, early, late, longest = reach
    level, where, enters = _severity(seen, reach, down), place(key, count == 1), loss_enters(seen, key.module)
    title = f"{where}: the gradient vanishes within {number(late)} of {number(longest)} steps"
    return Finding(
        code="vanishing_gradient",
        severity=level,
        layer_key=key,
        title=f"{where}: the gradient does not come down the stack" if down < NOTHING else title,
        explanation=_explained(seen, reach, down, where),
        evidence={
            "steps": span(seen),
            "timesteps": int(longest) + 1,
            "horizon_early": early,
            "horizon_late": late,
            "decay": median(seen.of("layers", key)["decay"]),
            "spectral_radius": spectral_radius(seen, key)[1],
            "loss_enters": enters,
            **learning(seen).evidence,
            **({"passed_down": down} if math.isfinite(down) else {}),
        },
        remedies=_remedies(seen, reach, down, level),
    )


def _explained(seen: Seen, reach: Reach, down: float, where: str) -> str:
    key, early, late, longest = reach
    found, enters = learning(seen), loss_enters(seen, key.module)
    why = ""
    if down < LOST:
        why = f"{percent(down)} of the loss gradient that enters the uppermost layer comes down to the lowest. "
    why += (
        f"Of the loss gradient that enters {where}, less than a thousandth is left after {number(early)} steps early "
        f"in the training and {number(late)} late in it, of {number(longest)} that it could go. "
    )
    if found.learns:
        return why + f"{found.sentence} So the answers need nothing older, or could be better with it."
    why += f"The spectral radius of its recurrent weights is {number(spectral_radius(seen, key)[1])}. "
    why += f"The loss enters at {percent(enters)} of the timesteps. "
    older = plural(max(1, round(late)), "step")
    why += f"{found.sentence} Nothing older than {older} can be learnt: that is the matter if the answer needs it."
    return why + rests_on(seen, key)


def _remedies(seen: Seen, reach: Reach, down: float, level: Severity) -> tuple[Remedy, ...]:
    """The test that decides comes first, unless the network was made so that nothing else is likely."""
    tests = (loops.cut(reach.late), loops.what_if())
    cures = _cures(seen, reach.key, int(reach.longest) + 1, down)
    return (*cures, *tests) if level != "info" and cures else (*tests, *cures)


def _cures(seen: Seen, key: LayerKey, timesteps: int, down: float) -> tuple[Remedy, ...]:
    family = seen.family(key.module)
    if not remedies.can_be_initialised(seen, key):
        return (remedies.torch_layer(key),)
    bridged, normalised = swaps.residual(seen, key) if down < LOST else None, swaps.layer_norm(seen, key)
    layers = sum(other.module == key.module for other in seen.first_chains)
    if family == "lstm":
        found = [remedies.chrono(key, timesteps), remedies.forget_bias(key), normalised]
    elif family == "gru":
        found = [remedies.chrono(key, timesteps), normalised]
    else:
        start = remedies.identity(key) if family == "rnn_relu" else remedies.orthogonal(seen, key, layers)
        found = [start, swaps.gated(seen, key), normalised]
    found = [bridged, *found] if down < NOTHING else [*found, bridged]
    return tuple(remedy for remedy in found if remedy is not None)
