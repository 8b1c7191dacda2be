"""Sparklines and bars made of characters, for a terminal without colours."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

LEVELS = "▁▂▃▄▅▆▇█"
EIGHTHS = " ▏▎▍▌▋▊▉█"
BROKEN = "×"
"""Mark of non-finite values."""
DECADES = 30.0
"""A curve whose largest value is so many times its smallest gets a logarithmic scale."""


def sparkline(values: Sequence[float], width: int) -> str:
    """Draw a curve with at most `width` characters, as medians if there are more values.

    The lowest line is zero, or the lowest value if that is negative. A range of more than a factor of 30 gets a
    logarithmic scale.

    Args:
        values: evenly spaced; NaN leaves a gap, and infinities are crosses.
        width: largest number of characters.
    """
    array = np.asarray(values, float)
    parts = [part for part in np.array_split(array, min(width, len(array)) or 1) if len(part)]
    levels = np.array([_level(part) for part in parts])
    finite = levels[np.isfinite(levels)]
    low, high = (min(0.0, float(finite.min())), float(finite.max())) if len(finite) else (0.0, 0.0)
    if logarithmic(finite):
        levels, low, high = np.log(levels), math.log(finite.min()), math.log(high)
    return "".join(_glyph(float(level), low, high) for level in levels)


def logarithmic(values: Sequence[float] | np.ndarray) -> bool:
    """True if a curve of these values gets a logarithmic scale."""
    finite = [value for value in values if math.isfinite(value)]
    return bool(finite) and min(finite) > 0 and max(finite) / min(finite) > DECADES


def _level(part: np.ndarray) -> float:
    """Return the median, or NaN or infinity if most of a part is."""
    known = part[~np.isnan(part)]
    if not len(known):
        return math.nan
    infinite = np.isinf(known)
    return math.inf if infinite.mean() > 0.5 else float(np.median(known[~infinite]))


def _glyph(level: float, low: float, high: float) -> str:
    if not math.isfinite(level):
        return " " if math.isnan(level) else BROKEN
    share = (level - low) / (high - low) if high > low else 0.0
    return LEVELS[round(share * (len(LEVELS) - 1))]


def bar(share: float, width: int = 8) -> str:
    """Draw a share as a bar, with dots up to one; blank if unknown."""
    if math.isnan(share):
        return " " * width
    eighths = round(min(1.0, max(0.0, share)) * width * 8)
    whole, rest = divmod(eighths, 8)
    filled = EIGHTHS[8] * whole + (EIGHTHS[rest] if rest else "")
    return filled.ljust(width, "·")
