"""Numbers in words: the text of every picture."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from gradscope.diagnose.words import plural
from gradscope.types.loss import change, number

Frame = Any
ALWAYS = 0.9  # a unit at its limits for more than this share of the time


def as_text(value: Any) -> str:
    """Write a value for readers: numbers with three digits, a dash if unknown."""
    if hasattr(value, "item") and not hasattr(value, "__len__"):
        value = value.item()  # a numpy number
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.0f}" if value.is_integer() and abs(value) < 1e6 else f"{value:.3g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{name}: {as_text(item)}" for name, item in value.items())
    if isinstance(value, list | tuple):
        shown = [as_text(item) for item in value[:6]]
        return ", ".join([*shown, f"… ({len(value)} in all)"] if len(value) > 6 else shown)
    return str(value)


def percent(share: float) -> str:
    """Write a share as a percentage, with a decimal if it is small."""
    if math.isnan(share):
        return "–"
    return f"{share:.1%}".replace(".0%", "%") if 0 < share < 0.0995 else f"{share:.0%}"


def ends(frame: Frame, over: str, what: str) -> str:
    """Describe a median from one end of an axis to the other."""
    known = frame[frame["p50"].notna()]
    broken = int(frame["nonfinite"].sum())
    worse = f" {broken} values are not finite." if broken else ""
    if known.empty:
        return f"The records have no finite {what}.{worse}"
    first, last = known.iloc[0], known.iloc[-1]
    start = f"{what} is {as_text(float(first['p50']))} at {over} {int(first[over])}"
    if len(known) == 1:
        return f"The median {start}.{worse}"
    low, high = float(known["p50"].min()), float(known["p50"].max())
    end = as_text(float(last["p50"]))
    beyond = {as_text(low), as_text(high)} - {as_text(float(first["p50"])), end}
    between = f", and between {as_text(low)} and {as_text(high)} elsewhere" if beyond else ""
    return f"The median {start}, {end} at {over} {int(last[over])}{between}.{worse}"


def loss(frame: Frame) -> str:
    """Describe the course of the loss, and its non-finite steps."""
    course = change(frame)
    if course is None:
        return "The run has no loss."
    first, last, steps = number(course.first), number(course.last), sorted(set(frame["step"]))
    if not course.late:
        return f"The loss is {first} at step {steps[0]}."
    if course.late > 1:
        early, late = f"median of the first {course.early} steps", f"of the last {course.late}"
        text = f"The loss goes from {first} ({early}) to {last} ({late})."
    else:
        text = f"The loss goes from {first} at step {steps[0]} to {last} at step {steps[-1]}."
    lost = sorted(set(frame.loc[frame["nonfinite"] > 0, "step"]))
    return f"{text} It is not finite at {len(lost):,} steps, first at step {lost[0]}." if lost else text


def updates(frame: Frame) -> str:
    """Describe the change of each block by one step, and how to read it."""
    usual = frame.groupby("gate", sort=False)["update"].median()
    sizes = ", ".join(f"{as_text(float(size))} ({gate})" for gate, size in usual.items())
    return (
        f"One step changes each block by this part of its norm (median of the records): {sizes}. "
        "At 0.001, a thousand steps in one direction change a block by as much as its norm."
    )


def training(frame: Frame) -> str:
    """Describe the medians at both ends of the sequence over training."""
    frame = frame.dropna(how="all") if frame.notna().to_numpy().any() else frame
    steps, times = frame.index, frame.columns
    first, last = (frame.iloc[row] for row in (0, -1))
    ends = dict.fromkeys((0, len(times) - 1))
    if len(steps) == 1:
        parts = [f"{as_text(float(first.iloc[column]))} at t {int(times[column])}" for column in ends]
        return f"At step {int(steps[0])} the median gradient is {' and '.join(parts)}."
    parts = [
        f"at t {int(times[column])} from {as_text(float(first.iloc[column]))} to {as_text(float(last.iloc[column]))}"
        for column in ends
    ]
    return f"Between step {int(steps[0])} and step {int(steps[-1])} the median gradient went {' and '.join(parts)}."


def gates(frame: Frame, over: str) -> str:
    """Describe each gate's saturation at the end of the axis."""
    place = "the last timestep" if over == "t" else f"step {int(frame[over].max())}"
    parts, free = [], []
    for gate, rows in frame.groupby("gate", sort=False):
        last = rows.sort_values(over).iloc[-1]
        low, high = percent(float(last["low"])), percent(float(last["high"]))
        if low == high == "0%":
            free.append(gate)
        else:
            parts.append(f"{gate} {low} at its lower and {high} at its upper limit")
    if not parts:
        return f"Units at {place}: none is at a limit."
    rest = f"; none of {', '.join(free)}" if free else ""
    return f"Units at {place}: {'; '.join(parts)}{rest}."


def units(frame: Frame) -> str:
    """Count the units at their limits nearly always."""
    parts = []
    for gate, rows in frame.groupby("gate", sort=False):
        stuck = int((rows["low"] + rows["high"] > ALWAYS).sum())
        parts.append(f"{stuck} of {len(rows)} ({gate})")
    return f"Units at a limit for more than {ALWAYS:.0%} of the time: {', '.join(parts)}."


def spectra(frame: Frame) -> str:
    """Write the largest absolute eigenvalue of each block."""
    size = (frame["real"] ** 2 + frame["imag"] ** 2) ** 0.5
    parts = [
        f"{as_text(float(radius))} ({gate})" for gate, radius in size.groupby(frame["gate"], sort=False).max().items()
    ]
    return f"The largest absolute eigenvalues: {', '.join(parts)}."


def horizon(frame: Frame) -> str:
    """Describe the horizon at the beginning and at the end of the training."""
    known = frame[frame["horizon"].notna()]
    if known.empty:
        return "The run has no horizon."
    first, last = known.iloc[0], known.iloc[-1]
    start = f"A thousandth of the loss gradient is left {lags(first['horizon'], first['horizon_censored'])} steps back"
    if len(known) == 1:
        return f"{start} at step {int(first['step'])}."
    end = lags(last["horizon"], last["horizon_censored"])
    return f"{start} at step {int(first['step'])}, and {end} steps back at step {int(last['step'])}."


def lags(horizon: float | None, censored: bool) -> str:
    """Write a horizon as a number of steps."""
    return "–" if horizon is None or math.isnan(horizon) else f"{'≥ ' if censored else ''}{horizon:.0f}"


def norms(frame: Frame) -> str:
    """Describe the effect of clipping calls, or the size of gradients without any."""
    before = frame["before"].dropna()
    if before.empty:
        return "The run has no finite gradient norm."
    spread = f"median {as_text(float(before.median()))}, largest {as_text(float(before.max()))}"
    if not frame["kind"].iloc[0]:
        return f"Nothing clips. The norm of the recurrent gradients: {spread}."
    clipped = float(frame["clipped"].mean())
    calls = plural(len(frame), "measured clipping call")
    return f"{calls} changed the gradients in {percent(clipped)}. The norm before: {spread}."


def thresholds(frame: Frame) -> str:
    """Name the thresholds that clip a half, a tenth and a hundredth of the steps."""
    rows = [nearest(frame, share) for share in (0.5, 0.1, 0.01)]
    parts = [f"{as_text(float(row['threshold']))} clips {percent(float(row['share']))} of the steps" for row in rows]
    return f"By norm, a threshold of {', of '.join(dict.fromkeys(parts))}."


def nearest(curve: Frame, share: float) -> Frame:
    """Return the row of a curve of thresholds whose share is closest."""
    return curve.loc[(curve["share"] - share).abs().idxmin()]
