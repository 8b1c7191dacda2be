"""The answer is read where the state has seen next to nothing of the sequence, or not at the sequence's end."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import numpy as np

from gradscope.diagnose import loops, states
from gradscope.diagnose.entering import above, entered, entered_by_record
from gradscope.diagnose.frames import Frame, Seen
from gradscope.diagnose.progress import broken, learning, severity
from gradscope.diagnose.trend import ENOUGH, horizons, rests_on, span, spectral_radius, timesteps
from gradscope.diagnose.words import percent, place, plural, typed
from gradscope.types import Finding, LayerKey, Remedy

LONG = 8
"""Sequences of fewer timesteps have no beginning and no end to mistake."""
NEXT_TO_NOTHING = 0.1
"""Share of the timesteps that the state has seen where it is read."""
ENDED = 0.5
"""Share of the sequences that go as far as the timestep at which alone the answer is read."""
SEQUENCES = 4
CONSTANT = 2e-3
"""A state that changes by less from one step to the next is given the same input all the time."""
VARIED = 0.02
"""States that differ by less from sequence to sequence do not see their input at all."""
TAIL, STEPS = 0.25, 8
"""Share and number of the last timesteps that are so."""
SMALL = 0.35
"""Below this spectral radius a state that does not change has forgotten, whatever it is given."""


def misread_output(seen: Seen) -> list[Finding]:
    """Find answers that are read at the wrong timestep, of the wrong sequence, or after the sequence has ended."""
    if len(seen.records) < ENOUGH or broken(seen):
        return []
    found: list[Finding] = []
    for _, keys in seen.modules_seen:
        top = max(key.layer for key in keys)
        cases = [finding for key in keys if key.layer == top for finding in _cases(seen, key)]
        found += cases[:1]
    return found


def _cases(seen: Seen, key: LayerKey) -> Iterator[Finding]:
    length, places = timesteps(seen, key), entered_by_record(seen, key)
    if length < LONG or not places:
        return
    rows = above(seen, key)
    if _of_one_sequence(rows, entered(seen, key), length):
        yield _along_the_batch(seen, key, rows)
        return
    if np.median([len(each) for each in places.values()]) > 2:
        return
    read = {step: each[-1] for step, each in places.items()}
    if (there := _still_there(rows, read)) <= ENDED:
        yield _after_the_end(seen, key, max(read.values()), there)
    elif horizons(seen, key)[2] <= NEXT_TO_NOTHING * length:
        yield _at_the_start(seen, key, max(read.values()), length)
    elif (tail := _constant_tail(seen, key, read)) and not learning(seen).learns:
        yield _from_padding(seen, key, tail, length)


# --- the batch taken for time


def _of_one_sequence(rows: Frame, places: list[int], length: int) -> bool:
    """Whether the loss enters at all timesteps of one sequence, and at none of the others, in all records."""
    some = rows[(rows["mean"] > 0) & (rows["sequences"] >= SEQUENCES)]
    return len(places) >= 0.8 * length and len(some) >= 0.8 * len(rows) and bool((some["p90"] == 0).all())


def _along_the_batch(seen: Seen, key: LayerKey, rows: Frame) -> Finding:
    analysed = int(rows["sequences"].max())
    why = (
        f"The loss enters {_where(seen, key)} at every timestep of one sequence, and at none of the {analysed - 1} "
        "others that were analysed. So it is read with time and batch exchanged: the layer takes the batch for time."
    )
    first = bool(seen.modules.get(key.module, {}).get("batch_first"))
    code = f"{typed(key.module)}.batch_first = {not first}"
    remedies = (loops.read(f"say how the input is laid out: batch_first={not first}", code),)
    return _finding(seen, key, "time and batch are exchanged", why, "batch", remedies)


# --- the last timestep of a batch, where most sequences have ended


def _still_there(rows: Frame, read: Mapping[int, int]) -> float:
    """Share of the sequences that go as far as the timestep at which each record is read, median of the records."""
    whole = rows[rows["t"] == 0].set_index("step")["sequences"]
    there = rows[rows["t"] == rows["step"].map(read)].set_index("step")["sequences"]
    share = (there / whole).to_numpy(dtype=np.float64)
    return float(np.median(share[np.isfinite(share)])) if np.isfinite(share).any() else 1.0


def _after_the_end(seen: Seen, key: LayerKey, t: int, share: float) -> Finding:
    why = (
        f"The loss enters {_where(seen, key)} at t = {t} alone, and {percent(share)} of the sequences are so long. Of "
        "the others it reads the zeros behind their end, and learns nothing from them."
    )
    code = "last = output[torch.arange(len(lengths)), lengths - 1]  # batch first; or h_n[-1]"
    remedies = (loops.read("read each sequence at its own last timestep", code),)
    return _finding(seen, key, "most sequences have ended where the answer is read", why, "ended", remedies)


# --- the state after one token


def _at_the_start(seen: Seen, key: LayerKey, t: int, length: int) -> Finding:
    lag, where = horizons(seen, key)[2], _where(seen, key)
    why = (
        f"The loss enters {where} at t = {t} alone, after {plural(int(lag) + 1, 'timestep')} of {length} in the order "
        f"of its recurrence: what it has read by then is next to nothing of the sequence."
    )
    if key.direction == "reverse":
        code = f"output, h_n = {typed(key.module)}(x)  # answer = torch.cat([h_n[-2], h_n[-1]], -1)"
        remedies = (loops.read("read the reverse direction at t = 0, where it has seen everything", code),)
    else:
        code = f"output, h_n = {typed(key.module)}(x)  # answer = output[:, -1], batch first"
        remedies = (loops.read("read the last timestep", code),)
    return _finding(seen, key, f"the answer is read after {plural(int(lag) + 1, 'timestep')}", why, "start", remedies)


# --- the state at the end of the padding


def _constant_tail(seen: Seen, key: LayerKey, read: Mapping[int, int]) -> int:
    """For how many timesteps before the answer the state has not changed, in every record; 0 where it is not long."""
    if max(spectral_radius(seen, key)) < SMALL or not VARIED < states.spread(seen, key) < math.inf:
        return 0
    sizes = states.sizes(seen, key)
    tails = [_tail(sizes[sizes["step"] == step], t) for step, t in read.items()]
    tail, late = min(tails, default=0), horizons(seen, key)[1]
    long = tail >= max(STEPS, TAIL * timesteps(seen, key))
    return tail if long and late <= 1.5 * tail else 0


def _tail(rows: Frame, t: int) -> int:
    """Of one record: steps up to `t`, or from it on in reverse, at which the typical state stays as it is."""
    size = rows.sort_values("t").set_index("t")["p50"]
    before = size[size.index <= t].to_numpy(dtype=np.float64)[::-1]
    before = before if len(before) > 1 else size.to_numpy(dtype=np.float64)
    moves = np.abs(np.diff(before)) > CONSTANT * np.abs(before[:-1])
    return int(moves.argmax()) if moves.any() else len(moves)


def _from_padding(seen: Seen, key: LayerKey, tail: int, length: int) -> Finding:
    late = horizons(seen, key)[1]
    why = (
        f"The answer is read at the end of {length} timesteps, and over the last {tail} the state of "
        f"{_where(seen, key)} no longer changes: the input is constant there, as padding is. Less than a thousandth of "
        f"the loss gradient is left after {late:g} steps back, so that next to nothing comes to what was there before."
    )
    remedies = (
        loops.pack(),
        loops.read(
            "or read each sequence at its own last timestep",
            "last = output[torch.arange(len(lengths)), lengths - 1]  # batch first",
        ),
        loops.cut_tail(max(1, length - tail)),
    )
    return _finding(seen, key, f"the answer is read after {tail} timesteps of constant input", why, "padding", remedies)


def _where(seen: Seen, key: LayerKey) -> str:
    return place(key, sum(other.module == key.module for other in seen.first_chains) == 1)


def _finding(seen: Seen, key: LayerKey, title: str, why: str, form: str, remedies: tuple[Remedy, ...]) -> Finding:
    level = severity(seen)
    surely = form == "batch" or (form == "start" and key.direction == "forward")  # nobody means that
    return Finding(
        code="misread_output",
        severity="warning" if level == "info" and surely else level,
        layer_key=key,
        title=f"{_where(seen, key)}: {title}",
        explanation=f"{why} {learning(seen).sentence}" + rests_on(seen, key),
        evidence={"steps": span(seen), "timesteps": timesteps(seen, key), "form": form, **learning(seen).evidence},
        remedies=remedies,
    )
