"""The small pictures of the first screen of a text report: a loss, bars, and how far the loss gradient reaches."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from gradscope.report.bars import bar, logarithmic, sparkline

Summary = Mapping[str, Any]
CURVES = 3
"""Layers whose reach is drawn, the worst ones."""
WIDEST, HEIGHT, DEEPEST = 64, 6, -4
LABEL = 24


def loss_line(picture: Summary, width: int) -> str:
    """A run's losses as a sparkline, and which steps it spans."""
    steps, values = column(picture, "step"), losses(picture)
    scale = " (log scale)" if logarithmic(values) else ""
    said = f"steps {int(steps[0]):,} to {int(steps[-1]) + int(column(picture, 'steps')[-1]) - 1:,}{scale}"
    return f"{sparkline(values, max(8, min(WIDEST, width - len(said) - 2)))}  {said}"


def losses(picture: Summary) -> list[float]:
    """The losses behind a picture of them; those of bins without any finite one are infinite."""
    return [math.inf if math.isnan(value) else value for value in column(picture, "loss")]


def column(picture: Summary, name: str) -> list[float]:
    """One column of the numbers behind a picture."""
    place = picture["columns"].index(name)
    return [row[place] for row in picture["rows"]]


def horizon_bar(numbers: Summary) -> str:
    """How far a layer's horizon lies back, of the longest way that there is."""
    if numbers["horizon"]["censored"]:
        return bar(1.0)
    return bar(numbers["horizon"]["lag"] / max(1, numbers["timesteps"] - 1))


def reach_chart(layers: Iterable[Summary], width: int, shorten: Any) -> str:
    """The share of the loss gradient that is left, by steps back, of the worst layers; empty where nobody knows."""
    from gradscope.report.chart import BRAILLE, Curve, draw

    found = [(layer["name"], picture) for layer in layers for picture in layer["pictures"] if _is_reach(picture)]
    curves = [Curve(shorten(name, LABEL), "", _by_lag(picture)) for name, picture in found[:CURVES]]
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
