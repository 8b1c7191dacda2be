"""Pictures as small as a line of text: of characters for a terminal, and as SVG in a page's table of runs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from markupsafe import Markup

LEVELS = "▁▂▃▄▅▆▇█"
EIGHTHS = " ▏▎▍▌▋▊▉█"
BROKEN = "×"
"""Mark of non-finite values."""
DECADES = 30.0
"""A curve whose largest value is so many times its smallest gets a logarithmic scale."""
SPARK_WIDTH, SPARK_HEIGHT, EDGE = 96, 24, 2
Summary = Mapping[str, Any]
CURVES = 3
"""Number of curves in the chart of reach."""
WIDEST, HEIGHT, DEEPEST = 64, 6, -4
LABEL = 24


def sparkline(values: Sequence[float], width: int) -> str:
    """Draw a curve with at most `width` characters, as medians if there are more values.

    The lowest line is zero, or the lowest value if that is negative. A range of more than a factor of 30 gets a
    logarithmic scale. NaN leaves a gap, and infinities are crosses.
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


def spark(curve: Sequence[float], rows: Sequence[Mapping[str, Any]]) -> Markup:
    """Draw the losses of one run on the common scale of the table, with gaps at non-finite losses."""
    from markupsafe import Markup

    finite = [value for row in rows for value in row["curve"] if math.isfinite(value)]
    level = math.log if logarithmic(finite) else float
    if len(curve) < 2 or not finite:
        return Markup()
    low, high = level(min(finite)), level(max(finite))
    parts, joined = list[str](), False
    for place, value in enumerate(curve):
        if known := math.isfinite(value):
            x = EDGE + place / (len(curve) - 1) * (SPARK_WIDTH - 2 * EDGE)
            y = SPARK_HEIGHT - EDGE - (level(value) - low) / ((high - low) or 1) * (SPARK_HEIGHT - 2 * EDGE)
            parts.append(f"{'L' if joined else 'M'}{x:.1f} {y:.1f}")
        joined = known
    path = Markup('<path d="{}"/>').format("".join(parts))
    return Markup('<svg class="spark" role="img" aria-label="loss over training" viewBox="0 0 {} {}">{}</svg>').format(
        SPARK_WIDTH, SPARK_HEIGHT, path
    )


def loss_line(picture: Summary, width: int) -> str:
    """Draw a run's losses as a sparkline, with its range of steps."""
    steps, values = column(picture, "step"), losses(picture)
    scale = " (log scale)" if logarithmic(values) else ""
    label = f"steps {int(steps[0]):,} to {int(steps[-1]) + int(column(picture, 'steps')[-1]) - 1:,}{scale}"
    return f"{sparkline(values, max(8, min(WIDEST, width - len(label) - 2)))}  {label}"


def losses(picture: Summary) -> list[float]:
    """Return the losses behind a picture; infinite in bins without finite losses."""
    return [math.inf if math.isnan(value) else value for value in column(picture, "loss")]


def column(picture: Summary, name: str) -> list[Any]:
    """Return one column of the numbers behind a picture."""
    place = picture["columns"].index(name)
    return [row[place] for row in picture["rows"]]


def horizon_bar(numbers: Summary) -> str:
    """Draw a layer's horizon as a share of the longest lag."""
    if numbers["horizon"]["censored"]:
        return bar(1.0)
    return bar(numbers["horizon"]["lag"] / max(1, numbers["timesteps"] - 1))


def reach_chart(layers: Iterable[Summary], width: int, shorten: Any) -> str:
    """Draw the share of the loss gradient left, by steps back, in the first layers or runs; empty if unknown."""
    from gradscope.report.chart import draw

    pictures = [(layer["name"], picture) for layer in layers for picture in layer["pictures"] if _is_reach(picture)]
    curves = [curve for name, picture in pictures for curve in _by_lag(name, picture)][:CURVES]
    shown = {shorten(name, LABEL): shares for name, shares in curves}
    if not any(value > 0 for shares in shown.values() for value in shares[1:]):
        return ""
    room = width - 10 - max(map(len, shown))
    return draw(shown, max(16, min(WIDEST, room)), HEIGHT, DEEPEST)


def _is_reach(picture: Summary) -> bool:
    return str(picture["id"]).endswith("-reach")


def _by_lag(layer: str, picture: Summary) -> Iterator[tuple[str, Sequence[float]]]:
    """Yield the curves of a picture, with the name of its layer or of their runs."""
    names = column(picture, "run") if "run" in picture["columns"] else [layer] * len(picture["rows"])
    curves: dict[Any, dict[int, float]] = {}
    for name, lag, share in zip(names, column(picture, "lag"), column(picture, "p50"), strict=True):
        curves.setdefault(name, {})[int(lag)] = share
    for name, known in curves.items():
        yield name, [known.get(lag, math.nan) for lag in range(max(known) + 1)]
