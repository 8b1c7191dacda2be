"""Carried-back gradients grow far beyond what entered, by weights that are too large."""

from __future__ import annotations

import math

from gradscope.diagnose import loops, remedies, swaps
from gradscope.diagnose.frames import Seen
from gradscope.diagnose.progress import learning, severity
from gradscope.diagnose.trend import ENOUGH, peak_reach, rests_on, span, spectral_radius, timesteps
from gradscope.diagnose.words import number, place
from gradscope.types import Finding, LayerKey, Remedy, Severity

GROWN = 50.0
LARGE = 2.0
"""Where the spectral radius is so large early in the training, growth by `GROWN` is no memory."""
HUGE = 1e4
"""Growth by this much is a fault whatever the weights are."""
LASTING = 1e3
"""What is left of growth by `HUGE` at the first step, early and late, where it does not heal by itself."""


def exploding_gradient(seen: Seen) -> list[Finding]:
    """Find recurrences whose `reach` grows by their own weights, at the start, early or late in the training.

    Growth alone is no fault: a network that remembers well can be sensitive to its oldest inputs. It grows by what it
    has learnt, though, and not by weights that were large to begin with.
    """
    found: list[Finding] = []
    for _, keys in seen.modules_seen:
        growing = [key for key in keys if _explodes(seen, key)]
        if growing:
            found.append(_finding(seen, max(growing, key=lambda key: _size(seen, key)), len(keys)))
    return found


def _explodes(seen: Seen, key: LayerKey) -> bool:
    size, radius = _size(seen, key), _finite(spectral_radius(seen, key)[0])
    return size >= HUGE or (size >= GROWN and radius >= LARGE)


def _size(seen: Seen, key: LayerKey) -> float:
    """Peak of `reach`, at the start, early or late; infinite where states or gradients overflowed at the start."""
    if _overflows(seen, key):
        return math.inf
    return max(_at_first(seen, key), *map(_finite, peak_reach(seen, key)))


def _at_first(seen: Seen, key: LayerKey) -> float:
    """Peak of `reach` in the first record."""
    reach = seen.of("reach", key)
    return _finite(float(reach.loc[reach["step"] == reach["step"].min(), "p50"].max())) if len(reach) else 0.0


def _overflows(seen: Seen, key: LayerKey) -> bool:
    """Whether the first recorded step already has values that are not finite, and weights that explain them."""
    frame = seen.of("timesteps", key)
    first = frame[frame["step"] == frame["step"].min()]
    return bool((first["nonfinite"] > 0).any()) and _finite(spectral_radius(seen, key)[0]) >= LARGE


def _finite(value: float) -> float:
    return value if math.isfinite(value) else 0.0


def _finding(seen: Seen, key: LayerKey, count: int) -> Finding:
    size, radius, where = _size(seen, key), spectral_radius(seen, key), place(key, count == 1)
    grows = "beyond what numbers can hold" if math.isinf(size) else f"to {number(size)} times its size"
    times = zip(radius, ("early", "late in the training"), strict=True)
    known = " and ".join(f"{number(value)} {when}" for value, when in times if math.isfinite(value))
    why = (
        f"Carried back through {where}, the loss gradient grows {grows}. The spectral radius of its recurrent weights "
        f"is {known or 'not known'}; above 1 they can make every step back larger than the last. "
        f"{learning(seen).sentence}"
    )
    return Finding(
        code="exploding_gradient",
        severity=_severity(seen, key, size),
        layer_key=key,
        title=f"{where}: the gradient grows {grows} on its way back",
        explanation=why + rests_on(seen, key),
        evidence={
            "steps": span(seen),
            "timesteps": timesteps(seen, key),
            "reach": size,
            "from_start": math.isinf(size) or _at_first(seen, key) >= GROWN,
            "spectral_radius_early": radius[0],
            "spectral_radius_late": radius[1],
            **learning(seen).evidence,
        },
        remedies=_remedies(seen, key, count),
    )


def _severity(seen: Seen, key: LayerKey, size: float) -> Severity:
    """Growth beyond measure from the start, early and late, is not learnt, and wrong also while a loss comes down."""
    level = severity(seen, critical=size >= HUGE)
    lasting = _at_first(seen, key) >= HUGE and min(peak_reach(seen, key)) >= LASTING and len(seen.records) >= ENOUGH
    return "warning" if lasting and level == "info" else level


def _remedies(seen: Seen, key: LayerKey, count: int) -> tuple[Remedy, ...]:
    clip, slower = loops.clip(1.0), loops.rate(0.1)
    family, early = seen.family(key.module), _finite(spectral_radius(seen, key)[0])
    if not remedies.can_be_initialised(seen, key):
        return clip, slower, remedies.torch_layer(key)
    if family in ("lstm", "gru"):
        starts = remedies.start_again(key, family, timesteps(seen, key)), remedies.orthogonal(seen, key, count)
    else:
        start = remedies.identity(key) if family == "rnn_relu" else remedies.orthogonal(seen, key, count)
        starts = start, swaps.gated(seen, key)
    made_so = early >= LARGE or _at_first(seen, key) >= HUGE
    return (starts[0], clip, starts[1], slower) if made_so else (clip, slower, *starts)
