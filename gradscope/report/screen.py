"""The small pictures of a text report's first screen: the loss, bars, and the reach of the loss gradient."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from gradscope.report.bars import bar, logarithmic, sparkline

Summary = Mapping[str, Any]
CURVES = 3
"""Number of layers, the worst ones, in the chart of reach."""
WIDEST, HEIGHT, DEEPEST = 64, 6, -4
LABEL = 24


def loss_line(picture: Summary, width: int) -> str:
    """Draw a run's losses as a sparkline, with its range of steps."""
    steps, values = column(picture, "step"), losses(picture)
    scale = " (log scale)" if logarithmic(values) else ""
    label = f"steps {int(steps[0]):,} to {int(steps[-1]) + int(column(picture, 'steps')[-1]) - 1:,}{scale}"
    return f"{sparkline(values, max(8, min(WIDEST, width - len(label) - 2)))}  {label}"


def losses(picture: Summary) -> list[float]:
    """Return the losses behind a picture; infinite in bins without finite losses."""
    return [math.inf if math.isnan(value) else value for value in column(picture, "loss")]


def column(picture: Summary, name: str) -> list[float]:
    """Return one column of the numbers behind a picture."""
    place = picture["columns"].index(name)
    return [row[place] for row in picture["rows"]]


def horizon_bar(numbers: Summary) -> str:
    """Draw a layer's horizon as a share of the longest lag."""
    if numbers["horizon"]["censored"]:
        return bar(1.0)
    return bar(numbers["horizon"]["lag"] / max(1, numbers["timesteps"] - 1))


def reach_chart(layers: Iterable[Summary], width: int, shorten: Any) -> str:
    """Draw the share of the loss gradient left, by steps back, of the worst layers; empty if unknown."""
    from gradscope.report.chart import BRAILLE, Curve, draw

    pictures = [(layer["name"], picture) for layer in layers for picture in layer["pictures"] if _is_reach(picture)]
    curves = [Curve(shorten(name, LABEL), "", _by_lag(picture)) for name, picture in pictures[:CURVES]]
    if not any(value > 0 for curve in curves for value in curve.values[1:]):
        return ""
    room = width - 10 - max(len(curve.name) for curve in curves)
    return draw(curves, BRAILLE, max(16, min(WIDEST, room)), HEIGHT, DEEPEST).plain


def _is_reach(picture: Summary) -> bool:
    return str(picture["id"]).endswith("-reach")


def _by_lag(picture: Summary) -> Sequence[float]:
    lags, shares = column(picture, "lag"), column(picture, "p50")
    known = {int(lag): share for lag, share in zip(lags, shares, strict=True)}
    return [known.get(lag, math.nan) for lag in range(max(known) + 1)]
