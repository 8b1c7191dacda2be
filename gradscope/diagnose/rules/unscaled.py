"""Input out of scale: it alone saturates the gates, or it is too small to change the states."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from gradscope.diagnose import loops, remedies
from gradscope.diagnose.drawn import as_drawn
from gradscope.diagnose.frames import Frame, Tables
from gradscope.diagnose.progress import in_spite, learning, severity
from gradscope.diagnose.trend import ENOUGH, rests_on, span, spectral_radius, state_sizes, state_spread, timesteps
from gradscope.diagnose.words import number, percent, place
from gradscope.types import Finding, LayerKey

SATURATED = 0.6
"""Share of the gates, or of a tanh state, at their limits at the first timestep, after a zero state."""
BOTH_SIDES = 0.1
"""Least share of these at the other limit: input weights have either sign, unlike biases that shut a gate."""
LARGE = 2.0
"""Recurrent weights with this spectral radius are large, and the input weights perhaps as well."""
OVERSIZED = 20.0
"""A larger first state of ReLU units comes from large input."""
ALIKE = 5e-3
"""States that differ by a smaller share between sequences look like states without input."""


class Sign(NamedTuple):
    """A sign of input out of scale."""

    key: LayerKey
    kind: str
    size: float


def unscaled_input(tables: Tables) -> list[Finding]:
    """Find lowest layers that saturate at the very first timestep, or whose states do not depend on the input."""
    findings: list[Finding] = []
    for _, keys in tables.by_module:
        lowest = [key for key in keys if key.layer == 0 and key.direction == "forward"]
        signs = [sign for key in lowest for sign in _signs(tables, key)]
        if signs:
            findings.append(_finding(tables, signs[0], len(keys)))
    return findings


def _signs(tables: Tables, key: LayerKey) -> Iterator[Sign]:
    radius = spectral_radius(tables, key)[0]
    if not _from_zero(tables, key) or radius >= LARGE:
        return
    share = _saturated(tables, key, _at_first(tables, key))
    if share >= SATURATED:
        yield Sign(key, "saturates", share)
    elif as_drawn(tables, key.module, "first") and (share := _saturated(tables, key, _first(tables, key))) >= SATURATED:
        yield Sign(key, "grows", share)
    elif tables.family(key.module) == "rnn_relu" and (size := _first_state(tables, key)) >= OVERSIZED:
        yield Sign(key, "oversized", size)
    elif len(tables.records) >= ENOUGH and timesteps(tables, key) > 1 and not _at_limits(tables, key):
        if (spread := state_spread(tables, key)) <= ALIKE:
            yield Sign(key, "invisible", spread)


def _from_zero(tables: Tables, key: LayerKey) -> bool:
    """True if the initial state is zero: then the recurrent weights contribute nothing at the first timestep."""
    rows = tables.of("timesteps", key)
    first = rows.loc[(rows["quantity"] == "weight_grad") & (rows["t"] == 0), "mean"].to_numpy(dtype=np.float64)
    return bool(len(first)) and bool((first == 0).all())


def _at_first(tables: Tables, key: LayerKey) -> Frame:
    """Return the rows of the gates at t = 0 of the first record."""
    first = _first(tables, key)
    return first[first["t"] == 0]


def _first(tables: Tables, key: LayerKey) -> Frame:
    """Return the rows of the gates of the first record."""
    gates = tables.of("gates", key)
    return gates[gates["step"] == gates["step"].min()]


def _at_limits(tables: Tables, key: LayerKey) -> bool:
    """True if a gate, or the state, is at its limits from the start: this too makes states alike."""
    first = _at_first(tables, key)
    return bool(((first["low"] + first["high"]) >= SATURATED).any())


def _saturated(tables: Tables, key: LayerKey, rows: Frame) -> float:
    """Return the share of the gates at a limit, of all rows; 0 if nearly all of one gate are at the same limit."""
    elman = tables.family(key.module) == "rnn_tanh"
    rows = rows[rows["gate"] == "hidden"] if elman else rows[~rows["gate"].isin(("hidden", "candidate"))]
    gates = rows.groupby("gate", observed=True)[["low", "high"]].mean()
    low, high = gates["low"].to_numpy(dtype=np.float64), gates["high"].to_numpy(dtype=np.float64)
    if not len(gates) or not np.isfinite(low + high).all():
        return 0.0
    least = np.minimum(low, high) >= BOTH_SIDES * (low + high)
    return float((low + high).mean()) if least.all() else 0.0


def _first_state(tables: Tables, key: LayerKey) -> float:
    rows = state_sizes(tables, key)
    first = rows[(rows["step"] == rows["step"].min()) & (rows["t"] == 0)]["p50"].to_numpy(dtype=np.float64)
    return float(first[0]) if len(first) and np.isfinite(first[0]) else 0.0


TITLES = {
    "saturates": "the input alone saturates the gates",
    "grows": "the input saturates the gates",
    "oversized": "the input is out of scale",
    "invisible": "the states do not depend on the input",
}


def _finding(tables: Tables, sign: Sign, count: int) -> Finding:
    key, kind, size = sign
    where, normalised = place(key, count == 1), remedies.layer_norm(tables, key)
    return Finding(
        code="unscaled_input",
        severity=severity(tables, critical=kind == "invisible", built=kind != "invisible"),
        layer_key=key,
        title=f"{where}: {TITLES[kind]}",
        explanation=f"{_explained(where, kind, size)} {learning(tables).sentence}{in_spite(tables)}"
        + rests_on(tables, key),
        evidence={"steps": span(tables), "timesteps": (0, 0), "kind": kind, "size": size, **learning(tables).evidence},
        remedies=(loops.SCALE_INPUT, *((normalised,) if normalised and kind != "invisible" else ())),
    )


def _explained(where: str, kind: str, size: float) -> str:
    if kind == "saturates":
        return (
            f"At the first timestep, after a zero state, {percent(size)} of the gates of {where} are already at a "
            "limit, some at one and some at the other: the input is too large for its weights. Prices, counts, pixels "
            "from 0 to 255 or times in seconds do this. Hardly any gradient passes a gate at its limit."
        )
    if kind == "grows":
        return (
            f"In the first record {percent(size)} of the gates of {where} are at a limit, some at one and some at the "
            "other, though its recurrent weights are as torch draws them: the input is too large for its weights, or "
            "becomes so on the way. Running counts, sums and times do this. Hardly any gradient passes a gate at its "
            "limit."
        )
    if kind == "oversized":
        return (
            f"At the first timestep, after a zero state, the state of {where} already has a size of {number(size)}: "
            "the input is too large for its weights, or is not centred."
        )
    return (
        f"The states of {where} differ by less than {percent(max(size, 1e-5))} from one sequence to the next, at every "
        "timestep: the input is constant, or so small that the biases drown it."
    )
