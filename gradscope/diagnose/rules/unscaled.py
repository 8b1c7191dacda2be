"""Input out of scale: it saturates the gates by itself, or is too small to be seen."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from gradscope.diagnose import loops, states, swaps
from gradscope.diagnose.frames import Frame, Seen
from gradscope.diagnose.progress import learning, severity
from gradscope.diagnose.trend import ENOUGH, rests_on, span, spectral_radius, timesteps
from gradscope.diagnose.words import number, percent, place
from gradscope.types import Finding, LayerKey

SATURATED = 0.6
"""Share of the gates, or of a tanh state, at their limits at the first timestep, where the state before is zero."""
BOTH_SIDES = 0.1
"""So much of that is at the other limit: input goes through weights of either sign, unlike biases that shut a gate."""
LARGE = 2.0
"""Recurrent weights with this spectral radius are large themselves, and so are those of the input perhaps."""
OVERSIZED = 20.0
"""A first state of ReLU units beyond this comes from large input."""
ALIKE = 5e-3
"""States differ by less than this share from sequence to sequence, as without any input."""


class Sign(NamedTuple):
    """How the input shows to be out of scale."""

    key: LayerKey
    kind: str
    size: float


def unscaled_input(seen: Seen) -> list[Finding]:
    """Find lowest layers that saturate at the very first timestep, or whose states are the same whatever comes in."""
    found: list[Finding] = []
    for _, keys in seen.modules_seen:
        lowest = [key for key in keys if key.layer == 0 and key.direction == "forward"]
        signs = [sign for key in lowest for sign in _signs(seen, key)]
        if signs:
            found.append(_finding(seen, signs[0], len(keys)))
    return found


def _signs(seen: Seen, key: LayerKey) -> Iterator[Sign]:
    radius = spectral_radius(seen, key)[0]
    if not _from_zero(seen, key) or radius >= LARGE:
        return
    share = _saturated_at_first(seen, key)
    if share >= SATURATED:
        yield Sign(key, "saturates", share)
    elif seen.family(key.module) == "rnn_relu" and (size := _first_state(seen, key)) >= OVERSIZED:
        yield Sign(key, "oversized", size)
    elif len(seen.records) >= ENOUGH and timesteps(seen, key) > 1 and not _at_limits(seen, key):
        if (spread := states.spread(seen, key)) <= ALIKE:
            yield Sign(key, "invisible", spread)


def _from_zero(seen: Seen, key: LayerKey) -> bool:
    """Whether the state before the first timestep is zero: then its recurrent weights contribute nothing there."""
    rows = seen.of("timesteps", key)
    first = rows.loc[(rows["quantity"] == "weight_grad") & (rows["t"] == 0), "mean"].to_numpy(dtype=np.float64)
    return bool(len(first)) and bool((first == 0).all())


def _at_first(seen: Seen, key: LayerKey) -> Frame:
    """Its gates at t = 0 of the first record."""
    gates = seen.of("gates", key)
    return gates[(gates["step"] == gates["step"].min()) & (gates["t"] == 0)]


def _at_limits(seen: Seen, key: LayerKey) -> bool:
    """Whether a gate, or the state, stands at its limits from the start: then that is why states are alike."""
    first = _at_first(seen, key)
    return bool(((first["low"] + first["high"]) >= SATURATED).any())


def _saturated_at_first(seen: Seen, key: LayerKey) -> float:
    """Share of the gates at a limit; 0 where they are all at the same one."""
    first, elman = _at_first(seen, key), seen.family(key.module) == "rnn_tanh"
    rows = first[first["gate"] == "hidden"] if elman else first[~first["gate"].isin(("hidden", "candidate"))]
    low, high = rows["low"].to_numpy(dtype=np.float64), rows["high"].to_numpy(dtype=np.float64)
    if not len(rows) or not np.isfinite(low + high).all():
        return 0.0
    least = np.minimum(low, high) >= BOTH_SIDES * (low + high)
    return float((low + high).mean()) if least.all() else 0.0


def _first_state(seen: Seen, key: LayerKey) -> float:
    rows = states.sizes(seen, key)
    first = rows[(rows["step"] == rows["step"].min()) & (rows["t"] == 0)]["p50"].to_numpy(dtype=np.float64)
    return float(first[0]) if len(first) and np.isfinite(first[0]) else 0.0


TITLES = {
    "saturates": "the input saturates the gates by itself",
    "oversized": "the input is out of scale",
    "invisible": "the states are the same whatever comes in",
}


def _finding(seen: Seen, sign: Sign, count: int) -> Finding:
    key, kind, size = sign
    where, normalised = place(key, count == 1), swaps.layer_norm(seen, key)
    return Finding(
        code="unscaled_input",
        severity=severity(seen, critical=kind == "invisible"),
        layer_key=key,
        title=f"{where}: {TITLES[kind]}",
        explanation=f"{_explained(where, kind, size)} {learning(seen).sentence}" + rests_on(seen, key),
        evidence={"steps": span(seen), "timesteps": (0, 0), "kind": kind, "size": size, **learning(seen).evidence},
        remedies=(loops.scale_input(), *((normalised,) if normalised and kind != "invisible" else ())),
    )


def _explained(where: str, kind: str, size: float) -> str:
    if kind == "saturates":
        return (
            f"At the first timestep, where there is no state yet, {percent(size)} of the gates of {where} are already "
            "at a limit, some at one and some at the other: the input is too large for its weights. Prices, counts, "
            "pixels from 0 to 255 or times in seconds do this. Hardly any gradient passes a gate at its limit."
        )
    if kind == "oversized":
        return (
            f"At the first timestep, where there is no state yet, the state of {where} has a size of {number(size)} "
            "already: the input is too large for its weights, or is not centred."
        )
    return (
        f"The states of {where} differ by less than {percent(max(size, 1e-5))} from one sequence to the next, at every "
        "timestep: the input is constant, or so small that the biases drown it."
    )
