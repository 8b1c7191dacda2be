"""An answer that is read before the state has seen the sequence, or after the sequence has ended."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import numpy as np

from gradscope.diagnose import loops
from gradscope.diagnose.entering import above, entered, entered_by_record
from gradscope.diagnose.frames import Frame, Tables
from gradscope.diagnose.progress import broken, learning, severity
from gradscope.diagnose.trend import (
    ENOUGH,
    horizons,
    rests_on,
    span,
    spectral_radius,
    state_sizes,
    state_spread,
    timesteps,
)
from gradscope.diagnose.words import percent, place, plural, typed
from gradscope.types import Finding, LayerKey, Remedy

LONG = 8
"""In shorter sequences the beginning and the end are not distinct."""
NEXT_TO_NOTHING = 0.1
"""Share of the timesteps that the state has seen at the readout."""
ENDED = 0.5
"""Share of the sequences that reach the only timestep of the readout."""
SEQUENCES = 4
CONSTANT = 2e-3
"""A state that changes by less from one step to the next has a constant input."""
VARIED = 0.02
"""States that differ by less between sequences do not depend on their input."""
TAIL, STEPS = 0.25, 8
"""Least share and number of timesteps in a constant tail."""
SMALL = 0.35
"""Below this spectral radius a constant state means that the network has forgotten, whatever its input."""


def misread_output(tables: Tables) -> list[Finding]:
    """Find answers read at the wrong timestep, from the wrong sequence, or after the end of the sequence."""
    if len(tables.records) < ENOUGH or broken(tables):
        return []
    findings: list[Finding] = []
    for _, keys in tables.by_module:
        top = max(key.layer for key in keys)
        cases = [finding for key in keys if key.layer == top for finding in _cases(tables, key)]
        findings += cases[:1]
    return findings


def _cases(tables: Tables, key: LayerKey) -> Iterator[Finding]:
    length, places = timesteps(tables, key), entered_by_record(tables, key)
    if length < LONG or not places:
        return
    rows = above(tables, key)
    if _of_one_sequence(rows, entered(tables, key), length):
        yield _along_the_batch(tables, key, rows)
        return
    if np.median([len(each) for each in places.values()]) > 2:
        return
    read = {step: each[-1] for step, each in places.items()}
    if (there := _still_there(rows, read)) <= ENDED:
        yield _after_the_end(tables, key, max(read.values()), there)
    elif horizons(tables, key)[2] <= NEXT_TO_NOTHING * length:
        yield _at_the_start(tables, key, max(read.values()), length)
    elif not learning(tables).learns and (tail := _constant_tail(tables, key, read)):
        yield _from_padding(tables, key, tail, length)


# --- the batch dimension as time


def _of_one_sequence(rows: Frame, places: list[int], length: int) -> bool:
    """True if the loss enters at all timesteps of one sequence, and at none of the others, in all records."""
    some = rows[(rows["mean"] > 0) & (rows["sequences"] >= SEQUENCES)]
    return len(places) >= 0.8 * length and len(some) >= 0.8 * len(rows) and bool((some["p90"] == 0).all())


def _along_the_batch(tables: Tables, key: LayerKey, rows: Frame) -> Finding:
    analysed = int(rows["sequences"].max())
    why = (
        f"The loss enters {_where(tables, key)} at every timestep of one sequence, and at none of the {analysed - 1} "
        "other analysed sequences. So time and batch are exchanged: the layer reads the batch dimension as time."
    )
    first = bool(tables.modules.get(key.module, {}).get("batch_first"))
    code = f"{typed(key.module)}.batch_first = {not first}"
    remedies = (Remedy(f"say how the input is laid out: batch_first={not first}", code),)
    return _finding(tables, key, "time and batch are exchanged", why, "batch", remedies)


# --- the last timestep of a batch, where most sequences have ended


def _still_there(rows: Frame, read: Mapping[int, int]) -> float:
    """Return the share of the sequences that reach the timestep of the readout, median of the records."""
    whole = rows[rows["t"] == 0].set_index("step")["sequences"]
    there = rows[rows["t"] == rows["step"].map(read)].set_index("step")["sequences"]
    share = (there / whole).to_numpy(dtype=np.float64)
    return float(np.median(share[np.isfinite(share)])) if np.isfinite(share).any() else 1.0


def _after_the_end(tables: Tables, key: LayerKey, t: int, share: float) -> Finding:
    why = (
        f"The loss enters {_where(tables, key)} at t = {t} alone, and only {percent(share)} of the sequences are so "
        "long. From the others the loss reads the zeros behind their end, and learns nothing."
    )
    code = "last = output[torch.arange(len(lengths)), lengths - 1]  # batch first; or h_n[-1]"
    remedies = (Remedy("read each sequence at its own last timestep", code),)
    return _finding(tables, key, "most sequences have ended where the answer is read", why, "ended", remedies)


# --- the state after one token


def _at_the_start(tables: Tables, key: LayerKey, t: int, length: int) -> Finding:
    lag, where = horizons(tables, key)[2], _where(tables, key)
    why = (
        f"The loss enters {where} at t = {t} alone, after {plural(int(lag) + 1, 'timestep')} of {length} in the order "
        "of its recurrence: by then the state has seen next to nothing of the sequence."
    )
    if key.direction == "reverse":
        code = f"output, h_n = {typed(key.module)}(x)  # answer = torch.cat([h_n[-2], h_n[-1]], -1)"
        remedies = (Remedy("read the reverse direction at t = 0, where it has seen everything", code),)
    else:
        code = f"output, h_n = {typed(key.module)}(x)  # answer = output[:, -1], batch first"
        remedies = (Remedy("read the last timestep", code),)
    return _finding(tables, key, f"the answer is read after {plural(int(lag) + 1, 'timestep')}", why, "start", remedies)


# --- the state at the end of the padding


def _constant_tail(tables: Tables, key: LayerKey, read: Mapping[int, int]) -> int:
    """Count the timesteps before the readout with a constant state, in every record; 0 if they are few.

    The lowest layer sees the input itself: a stack may bring no more of it up, whatever it is.
    """
    if max(spectral_radius(tables, key)) < SMALL or not VARIED < state_spread(tables, key) < math.inf:
        return 0
    lowest = min((other for other in tables.first_chains if other.module == key.module), key=lambda each: each.layer)
    tails = [
        _tail(sizes[sizes["step"] == step], t)
        for sizes in (state_sizes(tables, each) for each in {key, lowest._replace(direction=key.direction)})
        for step, t in read.items()
    ]
    tail, late = min(tails, default=0), horizons(tables, key)[1]
    long = tail >= max(STEPS, TAIL * timesteps(tables, key))
    return tail if long and late <= 1.5 * tail else 0


def _tail(rows: Frame, t: int) -> int:
    """Count the steps up to `t` (in reverse: from `t` on) with a constant typical state, of one record."""
    order, size = rows["t"].to_numpy(), rows["p50"].to_numpy(dtype=np.float64)
    size = size[np.argsort(order, kind="stable")]
    before = size[: int((order <= t).sum())][::-1]
    before = before if len(before) > 1 else size
    moves = np.abs(np.diff(before)) > CONSTANT * np.abs(before[:-1])
    return int(moves.argmax()) if moves.any() else len(moves)


def _from_padding(tables: Tables, key: LayerKey, tail: int, length: int) -> Finding:
    late = horizons(tables, key)[1]
    why = (
        f"The loss reads the answer at the end of {length} timesteps. Over the last {tail} the state of "
        f"{_where(tables, key)} does not change: the input is constant there, like padding. Less than a thousandth of "
        f"the loss gradient is left after {late:g} steps back, so next to none reaches the timesteps before."
    )
    remedies = (
        loops.PACK,
        Remedy(
            "or read each sequence at its own last timestep",
            "last = output[torch.arange(len(lengths)), lengths - 1]  # batch first",
        ),
        loops.cut_tail(max(1, length - tail)),
    )
    return _finding(
        tables, key, f"the answer is read after {tail} timesteps of constant input", why, "padding", remedies
    )


def _where(tables: Tables, key: LayerKey) -> str:
    return place(key, sum(other.module == key.module for other in tables.first_chains) == 1)


def _finding(tables: Tables, key: LayerKey, title: str, why: str, form: str, remedies: tuple[Remedy, ...]) -> Finding:
    surely = form == "batch" or (form == "start" and key.direction == "forward")  # nobody means that
    return Finding(
        code="misread_output",
        severity=severity(tables, built=surely),
        layer_key=key,
        title=f"{_where(tables, key)}: {title}",
        explanation=f"{why} {learning(tables).sentence}" + rests_on(tables, key),
        evidence={
            "steps": span(tables),
            "timesteps": timesteps(tables, key),
            "form": form,
            **learning(tables).evidence,
        },
        remedies=remedies,
    )
