"""Gradients that grow on their way back, far beyond their size at the entry, by weights that are too large."""

from __future__ import annotations

import math

from gradscope.diagnose import loops, remedies
from gradscope.diagnose.frames import Tables
from gradscope.diagnose.progress import in_spite, learning, severity
from gradscope.diagnose.trend import peak_reach, rests_on, span, spectral_radius, timesteps
from gradscope.diagnose.words import number, place
from gradscope.types import Finding, LayerKey, Remedy, Severity

GROWN = 50.0
LARGE = 2.0
"""With such a spectral radius early in the training, growth by `GROWN` is a fault, not memory."""
HUGE = 1e4
"""Growth by this much is a fault with any weights."""
LASTING = 1e3
"""Growth by `HUGE` at the first step lasts if it is still by this much early in the training."""


def exploding_gradient(tables: Tables) -> list[Finding]:
    """Find recurrences whose `reach` grows by their own weights, at the start, early or late in the training.

    Growth alone is no fault: a network that remembers well can be sensitive to its oldest inputs. Such growth comes
    from learning, not from large weights at the start. Growth beyond measure in the first record comes from the
    initialisation alone: nothing has been learnt yet. If it lasts, the training loses its first part to it.
    """
    findings: list[Finding] = []
    for _, keys in tables.by_module:
        growing = [key for key in keys if _explodes(tables, key)]
        if growing:
            worst = max(growing, key=lambda key: (_lasts(tables, key), _size(tables, key)))
            findings.append(_finding(tables, worst, len(keys)))
    return findings


def _explodes(tables: Tables, key: LayerKey) -> bool:
    size, radius = _size(tables, key), _finite(spectral_radius(tables, key)[0])
    return size >= HUGE or (size >= GROWN and radius >= LARGE)


def _size(tables: Tables, key: LayerKey) -> float:
    """Return the peak of `reach`, at the start, early or late; infinite if values overflow at the start."""
    if _overflows(tables, key):
        return math.inf
    return max(_at_first(tables, key), *map(_finite, peak_reach(tables, key)))


def _at_first(tables: Tables, key: LayerKey) -> float:
    """Return the peak of `reach` in the first record."""
    reach = tables.of("reach", key)
    return _finite(float(reach.loc[reach["step"] == reach["step"].min(), "p50"].max())) if len(reach) else 0.0


def _overflows(tables: Tables, key: LayerKey) -> bool:
    """True if the first recorded step already has non-finite values, and large weights that explain them."""
    frame = tables.of("timesteps", key)
    first = frame[frame["step"] == frame["step"].min()]
    return bool((first["nonfinite"] > 0).any()) and _finite(spectral_radius(tables, key)[0]) >= LARGE


def _finite(value: float) -> float:
    return value if math.isfinite(value) else 0.0


def _finding(tables: Tables, key: LayerKey, count: int) -> Finding:
    size, radius, where = _size(tables, key), spectral_radius(tables, key), place(key, count == 1)
    grows = "beyond the range of floating-point numbers" if math.isinf(size) else f"to {number(size)} times its size"
    times = zip(radius, ("early", "late in the training"), strict=True)
    known = " and ".join(f"{number(value)} {when}" for value, when in times if math.isfinite(value))
    why = (
        f"Carried back through {where}, the loss gradient grows {grows}. The spectral radius of its recurrent weights "
        f"is {known or 'unknown'}; above 1 every step back can enlarge the gradient. "
        f"{learning(tables).sentence}"
    )
    if _lasts(tables, key):
        why += f" The first record shows such growth already: the initialisation causes it.{in_spite(tables)}"
    return Finding(
        code="exploding_gradient",
        severity=_severity(tables, key, size),
        layer_key=key,
        title=f"{where}: the gradient grows {grows} on its way back",
        explanation=why + rests_on(tables, key),
        evidence={
            "steps": span(tables),
            "timesteps": timesteps(tables, key),
            "reach": size,
            "from_start": math.isinf(size) or _at_first(tables, key) >= GROWN,
            "spectral_radius_early": radius[0],
            "spectral_radius_late": radius[1],
            **learning(tables).evidence,
        },
        remedies=_remedies(tables, key, count),
    )


def _severity(tables: Tables, key: LayerKey, size: float) -> Severity:
    """Warn of huge growth from the start even if the loss falls: the network has not learnt it."""
    return severity(tables, critical=size >= HUGE, built=_lasts(tables, key))


def _lasts(tables: Tables, key: LayerKey) -> bool:
    """True if the first record shows huge growth that is not over at once."""
    return _at_first(tables, key) >= HUGE and peak_reach(tables, key)[0] >= LASTING


def _remedies(tables: Tables, key: LayerKey, count: int) -> tuple[Remedy, ...]:
    clip, slower = loops.clip(1.0), loops.rate(0.1)
    family, early = tables.family(key.module), _finite(spectral_radius(tables, key)[0])
    if not remedies.can_be_initialised(tables, key):
        return clip, slower, remedies.torch_layer(key)
    if family in ("lstm", "gru"):
        starts = remedies.start_again(key, family, timesteps(tables, key)), remedies.orthogonal(tables, key, count)
    else:
        start = remedies.identity(key) if family == "rnn_relu" else remedies.orthogonal(tables, key, count)
        starts = start, remedies.gated(tables, key)
    made_so = early >= LARGE or _at_first(tables, key) >= HUGE
    return (starts[0], clip, starts[1], slower) if made_so else (clip, slower, *starts)
