"""Numbers in words: the text twin of every picture, and the sentence about every layer."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from gradscope.types.loss import change, number

Frame = Any
ALWAYS = 0.9  # a unit at its limits for more than this share of the time


def told(value: Any) -> str:
    """A value as a reader wants it: three digits of a number, a dash for what is not known."""
    if hasattr(value, "item") and not hasattr(value, "__len__"):
        value = value.item()  # a numpy number
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.0f}" if value.is_integer() and abs(value) < 1e6 else f"{value:.3g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{name}: {told(item)}" for name, item in value.items())
    if isinstance(value, list | tuple):
        shown = [told(item) for item in value[:6]]
        return ", ".join([*shown, f"… ({len(value)} in all)"] if len(value) > 6 else shown)
    return str(value)


def counted(number: int, thing: str) -> str:
    """So many things, with an s unless there is but one."""
    return f"{number:,} {thing}{'s' * (number != 1)}"


def percent(share: float) -> str:
    """A share, with a decimal where it is small."""
    if math.isnan(share):
        return "–"
    return f"{share:.1%}".replace(".0%", "%") if 0 < share < 0.0995 else f"{share:.0%}"


def ends(frame: Frame, over: str, what: str) -> str:
    """How a median goes from one end of an axis to the other."""
    known = frame[frame["p50"].notna()]
    broken = int(frame["nonfinite"].sum())
    worse = f" {broken} values were not finite." if broken else ""
    if known.empty:
        return f"No finite {what} was recorded.{worse}"
    first, last = known.iloc[0], known.iloc[-1]
    start = f"{what} is {told(float(first['p50']))} at {over} {int(first[over])}"
    if len(known) == 1:
        return f"The median {start}.{worse}"
    low, high = float(known["p50"].min()), float(known["p50"].max())
    end = told(float(last["p50"]))
    beyond = {told(low), told(high)} - {told(float(first["p50"])), end}
    between = f", and between {told(low)} and {told(high)} elsewhere" if beyond else ""
    return f"The median {start}, {end} at {over} {int(last[over])}{between}.{worse}"


def loss(frame: Frame) -> str:
    """From what to what the loss goes, and where it is not finite."""
    found = change(frame)
    if found is None:
        return "No loss was seen."
    first, last, steps = number(found.first), number(found.last), sorted(set(frame["step"]))
    if not found.late:
        return f"The loss is {first} at step {steps[0]}."
    if found.late > 1:
        early, late = f"median of the first {found.early} steps", f"of the last {found.late}"
        said = f"The loss goes from {first} ({early}) to {last} ({late})."
    else:
        said = f"The loss goes from {first} at step {steps[0]} to {last} at step {steps[-1]}."
    lost = sorted(set(frame.loc[frame["nonfinite"] > 0, "step"]))
    return f"{said} It is not finite at {len(lost):,} steps, first at step {lost[0]}." if lost else said


def updates(frame: Frame) -> str:
    """By how much of its norm one step changes each block, and how to read that."""
    usual = frame.groupby("gate", sort=False)["update"].median()
    said = ", ".join(f"{told(float(size))} ({gate})" for gate, size in usual.items())
    return (
        f"One step changes each block by this part of its norm (median of the records): {said}. "
        "At 0.001, a thousand steps in one direction change a block by as much as its norm."
    )


def training(frame: Frame) -> str:
    """How the medians at both ends of the sequence went over training."""
    if frame.empty or not len(frame.columns):
        return "No gradient was recorded."
    frame = frame.dropna(how="all") if frame.notna().to_numpy().any() else frame
    steps, times = frame.index, frame.columns
    first, last = (frame.iloc[row] for row in (0, -1))
    ends = dict.fromkeys((0, len(times) - 1))
    if len(steps) == 1:
        said = [f"{told(float(first.iloc[column]))} at t {int(times[column])}" for column in ends]
        return f"At step {int(steps[0])} the median gradient is {' and '.join(said)}."
    said = [
        f"at t {int(times[column])} from {told(float(first.iloc[column]))} to {told(float(last.iloc[column]))}"
        for column in ends
    ]
    return f"Between step {int(steps[0])} and step {int(steps[-1])} the median gradient went {' and '.join(said)}."


def gates(frame: Frame, over: str) -> str:
    """Each gate's saturation at the end of the axis."""
    if frame.empty:
        return "No gate was recorded."
    place = "the last timestep" if over == "t" else f"step {int(frame[over].max())}"
    said, free = [], []
    for gate, rows in frame.groupby("gate", sort=False):
        last = rows.sort_values(over).iloc[-1]
        low, high = percent(float(last["low"])), percent(float(last["high"]))
        if low == high == "0%":
            free.append(gate)
        else:
            said.append(f"{gate} {low} at its lower and {high} at its upper limit")
    if not said:
        return f"Units at {place}: none is at a limit."
    rest = f"; none of {', '.join(free)}" if free else ""
    return f"Units at {place}: {'; '.join(said)}{rest}."


def units(frame: Frame) -> str:
    """How many units stand at their limits nearly always."""
    if frame.empty:
        return "No unit was recorded."
    said = []
    for gate, rows in frame.groupby("gate", sort=False):
        stuck = int((rows["low"] + rows["high"] > ALWAYS).sum())
        said.append(f"{stuck} of {len(rows)} ({gate})")
    return f"At a limit in more than {ALWAYS:.0%} of the time: {', '.join(said)} units."


def spectra(frame: Frame) -> str:
    """The largest absolute eigenvalue of each block."""
    if frame.empty:
        return "No eigenvalue was recorded."
    size = (frame["real"] ** 2 + frame["imag"] ** 2) ** 0.5
    said = [f"{told(float(radius))} ({gate})" for gate, radius in size.groupby(frame["gate"], sort=False).max().items()]
    return f"The largest absolute eigenvalues: {', '.join(said)}."


def horizon(frame: Frame) -> str:
    """The horizon at the beginning and at the end of the training."""
    known = frame[frame["horizon"].notna()]
    if known.empty:
        return "No horizon was recorded."
    first, last = known.iloc[0], known.iloc[-1]
    start = f"A thousandth of the loss gradient is left {lags(first['horizon'], first['horizon_censored'])} steps back"
    if len(known) == 1:
        return f"{start} at step {int(first['step'])}."
    end = lags(last["horizon"], last["horizon_censored"])
    return f"{start} at step {int(first['step'])}, and {end} steps back at step {int(last['step'])}."


def lags(horizon: float | None, censored: bool) -> str:
    """A horizon as a number of steps."""
    return "–" if horizon is None or math.isnan(horizon) else f"{'≥ ' if censored else ''}{horizon:.0f}"


def norms(frame: Frame) -> str:
    """What the clipping calls did, or how large the gradients were without any."""
    before = frame["before"].dropna()
    if before.empty:
        return "No finite gradient norm was recorded."
    spread = f"median {told(float(before.median()))}, largest {told(float(before.max()))}"
    if not frame["kind"].iloc[0]:
        return f"Nothing clips. The norm of the recurrent gradients: {spread}."
    clipped = float(frame["clipped"].mean())
    calls = counted(len(frame), "measured clipping call")
    return f"{calls} changed the gradients in {percent(clipped)}. The norm before: {spread}."


def thresholds(frame: Frame) -> str:
    """The thresholds that clip a half, a tenth and a hundredth."""
    if frame.empty:
        return "No finite gradient norm was recorded."
    rows = [nearest(frame, share) for share in (0.5, 0.1, 0.01)]
    said = [f"{told(float(row['threshold']))} clips {percent(float(row['share']))} of the steps" for row in rows]
    return f"By norm, a threshold of {', of '.join(dict.fromkeys(said))}."


def nearest(curve: Frame, share: float) -> Frame:
    """The row of a curve of thresholds that comes closest to clipping such a share."""
    return curve.loc[(curve["share"] - share).abs().idxmin()]
