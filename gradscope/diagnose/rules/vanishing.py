"""Loss gradients that vanish within a fraction of the sequence, in trainings that stall."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from gradscope.diagnose import loops, remedies
from gradscope.diagnose.entering import loss_enters, passed_down
from gradscope.diagnose.frames import Tables
from gradscope.diagnose.progress import learning, severity
from gradscope.diagnose.trend import ENOUGH, by_step, horizons, median, rests_on, span, spectral_radius
from gradscope.diagnose.words import number, percent, place, plural
from gradscope.types import Finding, LayerKey, Remedy, Severity

SHORT_EARLY, SHORT_LATE = 0.85, 0.6
"""A horizon below these shares of the sequence, early and late, is short; successful training does not shorten it."""
EVERYWHERE, NEXT_TO_NOTHING = 0.5, 4
"""If the loss enters at this share of the timesteps, most of it concerns near inputs, and a horizon counts as too short
only if it is a few steps, or next to nothing of the sequence."""
PART = 0.1
LEAST = 4
"""Sequences of fewer steps show nothing about range."""
SMALL = 0.35
"""A smaller spectral radius of an Elman network is a fault of its initialisation: initialisers give 0.5 to 1."""
TINY = 0.12
"""Recurrent weights with a smaller spectral radius at first carry nothing, in a network of any family."""
LOST = 0.1
"""If a smaller share of the loss gradient comes down a stack, residual connections are a remedy as well."""
NOTHING, AT_FIRST = 1e-2, 1e-3
"""If a smaller share comes down, or a smaller one in the first record, the lower layers receive next to none."""


class Reach(NamedTuple):
    """The horizon of one recurrence, early and late, and its longest lag."""

    key: LayerKey
    early: float
    late: float
    longest: float


def vanishing_gradient(tables: Tables) -> list[Finding]:
    """Find recurrences whose `reach` is short early and late, in trainings that do not learn.

    A short reach alone is no fault: the answer may need near inputs only. Of each module the shortest is reported.
    """
    if len(tables.records) < ENOUGH:
        return []
    findings: list[Finding] = []
    for module, keys in tables.by_module:
        everywhere = loss_enters(tables, module) >= EVERYWHERE
        reaches = [reach for key in keys if math.isfinite((reach := Reach(key, *horizons(tables, key))).late)]
        short = [reach for reach in reaches if _short(reach, everywhere)]
        down = _down(tables, module)
        if learning(tables).learns:
            short = [reach for reach in short if _next_to_nothing(reach) and (not everywhere or _always(tables, reach))]
        if not short and (down < AT_FIRST or (down < NOTHING and not learning(tables).learns)):
            short = reaches
        if short:
            worst = min(short, key=lambda reach: reach.key.layer if down < NOTHING else reach.late)
            findings.append(_finding(tables, worst, down, len(keys)))
    return findings


def _down(tables: Tables, module: str) -> float:
    """Return the share of the gradient that comes down a stack: of the first record, if next to nothing does there."""
    first = passed_down(tables, module, first=True)
    return first if first < AT_FIRST else passed_down(tables, module)


def _short(reach: Reach, everywhere: bool) -> bool:
    _, early, late, longest = reach
    if everywhere:
        return longest > 2 * NEXT_TO_NOTHING and max(early, late) <= max(NEXT_TO_NOTHING, PART * longest)
    return longest >= LEAST and early <= SHORT_EARLY * longest and late <= SHORT_LATE * longest


def _lost_in_the_stack_alone(tables: Tables, reach: Reach, down: float) -> bool:
    """True if no gradient comes down the stack, and it reaches far enough through time."""
    return down < NOTHING and not _short(reach, loss_enters(tables, reach.key.module) >= EVERYWHERE)


def _next_to_nothing(reach: Reach) -> bool:
    return reach.longest > 2 * NEXT_TO_NOTHING and max(reach.early, reach.late) <= NEXT_TO_NOTHING


def _always(tables: Tables, reach: Reach) -> bool:
    """True if no record has a longer horizon than two steps: the network itself allows no more."""
    horizons = tables.of("layers", reach.key)["horizon"].to_numpy(dtype=np.float64)
    return bool(np.isfinite(horizons).any()) and float(np.nanmax(horizons)) <= NEXT_TO_NOTHING / 2


def _severity(tables: Tables, reach: Reach, down: float) -> Severity:
    """Warn if the initialisation or the stack lets no gradient back; other short horizons are usual, perhaps enough."""
    elman = tables.family(reach.key.module).startswith("rnn")
    small = elman and max(spectral_radius(tables, reach.key)) < SMALL
    begins = by_step(tables.of("weights", reach.key), "spectral_radius", "max").to_numpy(dtype=np.float64)
    small = small or bool(len(begins)) and begins[0] < TINY
    first = float(by_step(tables.of("layers", reach.key), "horizon").iloc[0])
    made_so = small or (_next_to_nothing(reach) and first <= NEXT_TO_NOTHING) or down < NOTHING
    built = passed_down(tables, reach.key.module, first=True) < AT_FIRST
    return severity(tables, built=built) if made_so and learning(tables).source == "loss" else "info"


def _finding(tables: Tables, reach: Reach, down: float, count: int) -> Finding:
    key, early, late, longest = reach
    level, where, enters = _severity(tables, reach, down), place(key, count == 1), loss_enters(tables, key.module)
    title = f"{where}: the gradient vanishes within {number(late)} of {number(longest)} steps"
    return Finding(
        code="vanishing_gradient",
        severity=level,
        layer_key=key,
        title=f"{where}: the gradient does not come down the stack" if down < NOTHING else title,
        explanation=_explained(tables, reach, down, where),
        evidence={
            "steps": span(tables),
            "timesteps": int(longest) + 1,
            "horizon_early": early,
            "horizon_late": late,
            "decay": median(tables.of("layers", key)["decay"]),
            "spectral_radius": spectral_radius(tables, key)[1],
            "loss_enters": enters,
            **learning(tables).evidence,
            **({"passed_down": down} if math.isfinite(down) else {}),
        },
        remedies=_remedies(tables, reach, down, level),
    )


def _explained(tables: Tables, reach: Reach, down: float, where: str) -> str:
    key, early, late, longest = reach
    training, enters = learning(tables), loss_enters(tables, key.module)
    why = ""
    if down < LOST:
        why = f"{percent(down)} of the loss gradient that enters the uppermost layer comes down to the lowest"
        why += " in the first record. " if down == passed_down(tables, key.module, first=True) else ". "
    if _lost_in_the_stack_alone(tables, reach, down):
        late = "begin to learn late, if at all" if training.learns else "learn next to nothing"
        return why + f"{training.sentence} The lower layers {late}." + rests_on(tables, key)
    why += (
        f"Of the loss gradient that enters {where}, less than a thousandth is left after {number(early)} steps early "
        f"in the training and {number(late)} late, of {number(longest)} steps in all. "
    )
    if training.learns:
        return why + f"{training.sentence} So the answers need nothing older, or could improve with it."
    why += f"The spectral radius of its recurrent weights is {number(spectral_radius(tables, key)[1])}. "
    why += f"The loss enters at {percent(enters)} of the timesteps. "
    older = plural(max(1, round(late)), "step")
    why += f"{training.sentence} The network cannot learn from anything older than {older}: this matters only if the "
    why += "answer needs it."
    return why + rests_on(tables, key)


def _remedies(tables: Tables, reach: Reach, down: float, level: Severity) -> tuple[Remedy, ...]:
    """Order tests and cures: the tests come first unless the finding is certain."""
    tests = (loops.cut(reach.late), loops.WHAT_IF)
    cures = _cures(tables, reach.key, int(reach.longest) + 1, down)
    if _lost_in_the_stack_alone(tables, reach, down):
        return (*cures, loops.WHAT_IF)
    return (*cures, *tests) if level != "info" and cures else (*tests, *cures)


def _cures(tables: Tables, key: LayerKey, timesteps: int, down: float) -> tuple[Remedy, ...]:
    family = tables.family(key.module)
    if not remedies.can_be_initialised(tables, key):
        return (remedies.torch_layer(key),)
    bridged, normalised = remedies.residual(tables, key) if down < LOST else None, remedies.layer_norm(tables, key)
    layers = sum(other.module == key.module for other in tables.first_chains)
    if family == "lstm":
        cures = [remedies.chrono(key, timesteps), remedies.forget_bias(key), normalised]
    elif family == "gru":
        cures = [remedies.chrono(key, timesteps), normalised]
    else:
        start = remedies.identity(key) if family == "rnn_relu" else remedies.orthogonal(tables, key, layers)
        cures = [start, remedies.gated(tables, key), normalised]
    cures = [bridged, *cures] if down < NOTHING else [*cures, bridged]
    return tuple(remedy for remedy in cures if remedy is not None)
