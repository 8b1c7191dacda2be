"""The verdict on a loss curve: does the training learn, stall, or lose what it has learnt?

A loss that falls at once to the mean of the targets, or to the frequencies of the classes, and then stands has learnt
nothing of the sequences. The fall after the first tenth of the steps therefore decides.
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np

from gradscope.diagnose.curve import SURE, Curve

Verdict = Literal["learns", "stalls", "lost", "unknown"]

PROGRESS = 0.06
"""A training that learns loses this share of its loss after the first fall,"""
SHARE, FALL = 0.25, 0.1
"""or this share of its whole fall comes later, and the whole fall is this share of the loss."""
FLOOR = 0.03
"""A training has learnt, at any time, if no more than this share of its loss is left."""
DEEP = 0.5
"""If no more than this share is left, the fall after the first tenth may be lost in the noise."""
REGAINED = 0.5
"""A loss that rises again by this share of its fall has lost what it had learnt,"""
RECOVERS = 0.3
"""unless it falls again by this share of the rise, as after the start of a harder task."""
MULTIPLE = 3.0
"""A loss so many times its best has lost much, even if it began far higher."""
AT_ONCE = 0.15
"""A loss that stands from so early a share of the steps on has learnt no more than its first fall."""
FADED = 0.15
"""A loss below zero that has come so near it, relative to its best, need not have lost anything."""
GROWN = 10.0
"""A loss so many times its beginning has diverged; targets from the network itself may let it grow by less,"""
THROWN, JUMP = 3.0, 2.0
"""or so many times, after a growth by so much within a twentieth of the steps, as no such targets cause."""


def verdict(curve: Curve) -> Verdict:
    """Decide whether a training learns."""
    if _grown(curve):
        return "lost"
    if _lost(curve):
        return "unknown" if _rises_often(curve) or _fades(curve) else "lost"
    if _progresses(curve):
        return "learns"
    return "unknown" if float(curve.losses.min()) < 0 < float(curve.losses.max()) else "stalls"


def _progresses(curve: Curve) -> bool:
    """True if the loss falls after the first tenth of the steps, by more than noise and next to nothing."""
    later, whole = curve.first - curve.late, max(curve.begin, curve.first) - curve.late
    sure = curve.surely_above(curve.first, curve.late)
    if not curve.positive:
        return sure and later >= SHARE / 2 * whole
    if curve.surely_above(curve.begin, curve.end) and curve.late_mean() <= FLOOR * curve.begin:
        return True
    if curve.late >= curve.begin:
        return False
    since = curve.flat_from()
    if curve.surely_above(curve.end, curve.begin) or (since is not None and since <= AT_ONCE * len(curve.levels)):
        return False
    goes_on = later >= PROGRESS * curve.first and curve.end <= DEEP * curve.begin
    if goes_on and curve.surely_above(curve.begin, curve.end) and _mean_falls(curve):
        return True
    far = later >= PROGRESS * curve.first or (later >= SHARE * whole and whole >= FALL * curve.begin)
    if sure and far and _mean_falls(curve):
        return True
    return _falls_from_peak(curve)


def _falls_from_peak(curve: Curve) -> bool:
    """True if the loss has come down from a harder task, or from a spike."""
    at = curve.tenth + int(curve.levels[curve.tenth :].argmax())
    peak = float(curve.levels[at])
    fallen = peak - curve.late >= SHARE * peak and curve.begin - curve.late >= SHARE * curve.begin
    mean = float(curve.part(at, at + curve.tenth).mean())
    surely = curve.surely_above(peak, curve.late * (1 + PROGRESS)) and curve.surely_above(peak, curve.first)
    return fallen and surely and mean - curve.late_mean() >= SHARE / 2 * mean


def _mean_falls(curve: Curve) -> bool:
    """True if the mean falls as well: medians jump between the two usual sizes of a loss, as with a rare class."""
    first = float(curve.part(curve.tenth, 2 * curve.tenth).mean())
    return first - curve.late_mean() >= PROGRESS / 2 * first


def _grown(curve: Curve) -> bool:
    if not (curve.begin > 0 and curve.surely_above(curve.end, curve.begin)):
        return False
    before, after = curve.levels[:-1], curve.levels[1:]
    thrown = bool((after >= JUMP * np.maximum(before, curve.begin)).any())
    return curve.end >= GROWN * curve.begin or (thrown and curve.end >= THROWN * curve.begin)


def _lost(curve: Curve) -> bool:
    """True if the loss has fallen, has risen again, and does not fall anew."""
    rise, fall = curve.end - curve.best, curve.begin - curve.best
    surely = curve.surely_above(curve.end, curve.best) and curve.surely_above(curve.begin, curve.best)
    if not (surely and _risen(curve)) or _falls_again(curve):
        return False
    if not curve.positive:
        return rise >= REGAINED * fall
    multiple = min(curve.end, curve.first) >= MULTIPLE * curve.best
    back = multiple and curve.end >= max(0.7 * curve.first, FLOOR * curve.begin)
    return fall >= FALL * curve.begin and (rise >= REGAINED * fall or back)


def _rises_often(curve: Curve) -> bool:
    """True if the loss rose by much of this before and came down again, as on data that an agent has just collected."""
    if curve.best_block <= 2 * curve.tenth:
        return False
    lows = curve.lows[: curve.best_block + 1]
    before = max(later - min(lows[: i + 1]) for i, later in enumerate(lows[curve.tenth :]))
    return before >= REGAINED * (curve.end - curve.best)


def _fades(curve: Curve) -> bool:
    """True if a loss below zero has come near it, as the surprise of an agent does that has learnt."""
    return not curve.positive and abs(curve.end) <= FADED * abs(curve.best)


def _risen(curve: Curve) -> bool:
    """True if the mean of the end is surely above the mean of the best tenth as well."""
    end, best = curve.last_tenth(), curve.part(curve.best_block, curve.best_block + curve.tenth)
    error = math.sqrt(float(end.var()) / len(end) + float(best.var()) / len(best))
    return float(end.mean() - best.mean()) > SURE * error


def _falls_again(curve: Curve) -> bool:
    peak = float(curve.levels[curve.best_block : -curve.tenth].max(initial=-math.inf))
    return peak - curve.end >= RECOVERS * (peak - curve.best) and curve.surely_above(peak, curve.end)
