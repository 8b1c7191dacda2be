"""Curves over a logarithmic axis, made of braille dots."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import ceil, floor, isfinite, log2, log10

from gradscope.types import HORIZON_SHARE

TICKS = 10  # labels on the vertical axis, at most
MARGIN = 8  # width of the labels on the vertical axis
NUMBER_WIDTH = 6  # width of the labels on the horizontal axis, with the space between them
ACROSS, DOWN = 2, 4  # dots of a character
_DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))

Cells = dict[tuple[int, int], str]
"""Characters by row and column."""


@dataclass(frozen=True, slots=True)
class Axes:
    """Decades from `top` down to `bottom`, and lags from 0 to `last`, on `rows` x `columns` characters."""

    top: int
    bottom: int
    last: int
    rows: int
    columns: int

    def row(self, decade: float, dots: int = 1) -> int:
        """Return the row of a power of ten, counted from the top in characters of so many dots."""
        return round((self.top - decade) / (self.top - self.bottom) * (self.rows * dots - 1))

    def column(self, lag: float, dots: int = 1) -> int:
        """Return the column of a lag, counted from the left."""
        return round(lag / self.last * (self.columns * dots - 1))

    @property
    def rule(self) -> int:
        """The row of the horizon."""
        return self.row(log10(HORIZON_SHARE))


def draw(curves: Mapping[str, Sequence[float]], columns: int, rows: int, deepest: int) -> str:
    """Draw curves on a base-10 logarithmic axis, each with its name at its end.

    Args:
        curves: values at lag 0, 1, 2, ... by name; the chart leaves out values that are not positive and finite. Later
            curves lie on top.
        columns: width of the plot without labels.
        rows: approximate height.
        deepest: the lowest power of ten of the axis.
    """
    axes = _fit(list(curves.values()), columns, rows, deepest)
    rule: Cells = {(axes.rule, column): "┄" for column in range(columns)}
    drawn: Cells = {}
    ends: list[tuple[int, int, str]] = []
    for name, values in curves.items():
        curve = _characters(_points(values, axes))
        drawn |= curve
        if curve:
            ends.append((*list(curve)[-1], name))
    return _compose(rule | drawn | _labels(ends, drawn, axes), axes)


def _fit(curves: Sequence[Sequence[float]], columns: int, height: int, deepest: int) -> Axes:
    visible = [log10(value) for values in curves for value in values if _visible(value)] or [0.0]
    top = max(0, ceil(max(visible)))
    bottom = min(round(log10(HORIZON_SHARE)) - 1, max(deepest, floor(min(visible))), top - 1)
    decades = top - bottom
    rows = decades * (height // decades) if decades <= height else height
    return Axes(top, bottom, max(1, *(len(values) - 1 for values in curves)), rows + 1, columns)


def _visible(value: float) -> bool:
    return isfinite(value) and value > 0


def _points(values: Sequence[float], axes: Axes) -> Iterator[tuple[int, int]]:
    """Yield the dots of a curve within the axes from left to right, without gaps."""
    before: tuple[int, int] | None = None
    for lag, value in enumerate(values):
        if not _visible(value):
            before = None
            continue
        here = axes.row(log10(value), DOWN), axes.column(lag, ACROSS)
        start = before or here
        steps = max(abs(here[0] - start[0]), abs(here[1] - start[1]), 1)
        for step in range(steps + 1):
            row, column = (round(a + (b - a) * step / steps) for a, b in zip(start, here, strict=True))
            if 0 <= row < axes.rows * DOWN:
                yield row, column
        before = here


def _characters(points: Iterator[tuple[int, int]]) -> Cells:
    """Gather dots in characters."""
    dots: dict[tuple[int, int], int] = {}
    for row, column in points:
        place = row // DOWN, column // ACROSS
        dots[place] = dots.get(place, 0) | _DOTS[row % DOWN][column % ACROSS]
    return {place: chr(0x2800 + some) for place, some in dots.items()}


def _labels(ends: list[tuple[int, int, str]], drawn: Cells, axes: Axes) -> Cells:
    """Put names to the right of their curves' ends, and of other characters in the row; one name a row."""
    cells: Cells = {}
    used: set[int] = set()
    for row, column, name in sorted(ends):
        free = min(set(range(axes.rows)) - used, key=lambda candidate: (abs(candidate - row), -candidate))
        used.add(free)
        start = 1 + max([column, *(right for line, right in drawn if line == free)])
        label = f" {name}{' ' * (free == axes.rule)}"
        cells |= {(free, start + place): letter for place, letter in enumerate(label)}
    return cells


def _compose(cells: Cells, axes: Axes) -> str:
    every = ceil((axes.top - axes.bottom) / TICKS)
    ticks = {axes.row(decade): decade for decade in range(axes.top, axes.bottom - 1, -every)}
    lines: list[str] = []
    for row in range(axes.rows):
        name = "1" if ticks.get(row) == 0 else f"1e{ticks[row]}" if row in ticks else ""
        width = 1 + max((column for line, column in cells if line == row), default=-1)
        curve = "".join(cells.get((row, column), " ") for column in range(width))
        lines.append(f"{name:>{MARGIN - 2}} │{curve}")
    return "\n".join([*lines, _lags(axes)])


def _lags(axes: Axes) -> str:
    """Draw the horizontal axis: line, numbers and label."""
    step = 2 ** max(0, ceil(log2(NUMBER_WIDTH * axes.last / axes.columns)))
    line, numbers = ["─"] * axes.columns, [" "] * (axes.columns + 4)
    for lag in range(0, axes.last + 1, step):
        column = axes.column(lag)
        line[column] = "┬"
        numbers[column : column + len(str(lag))] = str(lag)
    rows = "└" + "".join(line), " " + "".join(numbers).rstrip(), f" {'steps back':^{axes.columns}}".rstrip()
    return "\n".join(" " * (MARGIN - 1) + row for row in rows)
