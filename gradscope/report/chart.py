"""Curves over a logarithmic axis, made of characters."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import ceil, floor, isfinite, log2, log10

from rich.text import Text

from gradscope.types import HORIZON_SHARE

COLOURS = ("#56B4E9", "#E69F00", "#009E73")  # Okabe and Ito 2008: distinct for the colour-blind as well
DEEPEST = -9
HEIGHT = 16
TICKS = 10  # labels on the vertical axis, at most
MARGIN = 8  # width of the labels on the vertical axis
NUMBER_WIDTH = 6  # width of the labels on the horizontal axis, with the space between them

_DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))


@dataclass(frozen=True, slots=True)
class Pen:
    """The points of one character: `across` x `down`, as braille dots or as one of the `marks`."""

    across: int
    down: int
    rule: str
    side: str
    corner: str
    bottom: str
    tick: str
    marks: str = ""

    def glyph(self, points: set[tuple[int, int]], curve: int) -> str:
        """Return the character for a set of points."""
        return self.marks[curve] if self.marks else chr(0x2800 + sum(_DOTS[y][x] for x, y in points))


BRAILLE = Pen(2, 4, rule="┄", side="│", corner="└", bottom="─", tick="┬")
ASCII = Pen(1, 1, rule="-", side="|", corner="+", bottom="-", tick="+", marks="o*x")


@dataclass(frozen=True, slots=True)
class Axes:
    """Decades from `top` down to `bottom`, and lags from 0 to `last`, on `rows` x `columns` characters."""

    top: int
    bottom: int
    last: int
    rows: int
    columns: int

    def row(self, decade: float, points: int = 1) -> int:
        """Return the row of a power of ten, counted from the top in characters of so many points."""
        return round((self.top - decade) / (self.top - self.bottom) * (self.rows * points - 1))

    def column(self, lag: float, points: int = 1) -> int:
        """Return the column of a lag, counted from the left."""
        return round(lag / self.last * (self.columns * points - 1))


@dataclass(frozen=True, slots=True)
class Curve:
    """Values at lag 0, 1, 2, ...; the chart leaves out values that are not positive and finite."""

    name: str
    colour: str
    values: Sequence[float]


Cells = dict[tuple[int, int], tuple[str, str]]
"""Character and style by row and column."""


def draw(curves: Sequence[Curve], pen: Pen, columns: int = 64, rows: int = HEIGHT, deepest: int = DEEPEST) -> Text:
    """Draw up to three curves on a base-10 logarithmic axis, each with its name at its end.

    Args:
        curves: the curves; later ones lie on top.
        pen: `BRAILLE`, or `ASCII` for terminals without braille.
        columns: width of the plot without labels.
        rows: approximate height.
        deepest: the lowest power of ten of the axis.
    """
    axes = _fit([curve.values for curve in curves], columns, rows, deepest)
    rule: Cells = {(axes.row(log10(HORIZON_SHARE)), column): (pen.rule, "dim") for column in range(columns)}
    cells: Cells = {}
    ends: list[tuple[int, int, str, str]] = []
    for index, curve in enumerate(curves):
        drawn = _characters(_points(curve.values, axes, pen), pen, index)
        cells |= {place: (glyph, curve.colour) for place, glyph in drawn.items()}
        if drawn:
            label = f"{pen.marks[index]} {curve.name}" if pen.marks else curve.name
            ends.append((*list(drawn)[-1], label, curve.colour))
    return _compose(rule | cells | _labels(ends, cells, axes), axes, pen)


def _fit(curves: Sequence[Sequence[float]], columns: int, height: int, deepest: int) -> Axes:
    visible = [log10(value) for values in curves for value in values if _visible(value)] or [0.0]
    top = max(0, ceil(max(visible)))
    bottom = min(round(log10(HORIZON_SHARE)) - 1, max(deepest, floor(min(visible))), top - 1)
    decades = top - bottom
    rows = decades * (height // decades) if decades <= height else height
    return Axes(top, bottom, max(1, *(len(values) - 1 for values in curves)), rows + 1, columns)


def _visible(value: float) -> bool:
    return isfinite(value) and value > 0


def _points(values: Sequence[float], axes: Axes, pen: Pen) -> Iterator[tuple[int, int]]:
    """Yield the points of a curve within the axes from left to right, without gaps."""
    before: tuple[int, int] | None = None
    for lag, value in enumerate(values):
        if not _visible(value):
            before = None
            continue
        here = axes.row(log10(value), pen.down), axes.column(lag, pen.across)
        start = before or here
        steps = max(abs(here[0] - start[0]), abs(here[1] - start[1]), 1)
        for step in range(steps + 1):
            row, column = (round(a + (b - a) * step / steps) for a, b in zip(start, here, strict=True))
            if 0 <= row < axes.rows * pen.down:
                yield row, column
        before = here


def _characters(points: Iterator[tuple[int, int]], pen: Pen, curve: int) -> dict[tuple[int, int], str]:
    grouped: dict[tuple[int, int], set[tuple[int, int]]] = {}
    for row, column in points:
        place = row // pen.down, column // pen.across
        grouped.setdefault(place, set()).add((column % pen.across, row % pen.down))
    return {place: pen.glyph(dots, curve) for place, dots in grouped.items()}


def _labels(ends: list[tuple[int, int, str, str]], drawn: Cells, axes: Axes) -> Cells:
    """Put names to the right of their curves' ends, and of other marks in the row; one name a row."""
    cells: Cells = {}
    used: set[int] = set()
    for row, column, name, style in sorted(ends):
        free = min(set(range(axes.rows)) - used, key=lambda candidate: (abs(candidate - row), -candidate))
        used.add(free)
        start = 1 + max([column, *(right for line, right in drawn if line == free)])
        cells |= {
            (free, start + place): (letter, style)
            for place, letter in enumerate(f" {name}{' ' * (free == axes.row(log10(HORIZON_SHARE)))}")
        }
    return cells


def _compose(cells: Cells, axes: Axes, pen: Pen) -> Text:
    every = ceil((axes.top - axes.bottom) / TICKS)
    ticks = {axes.row(decade): decade for decade in range(axes.top, axes.bottom - 1, -every)}
    text = Text()
    for row in range(axes.rows):
        name = "1" if ticks.get(row) == 0 else f"1e{ticks[row]}" if row in ticks else ""
        text.append(f"{name:>{MARGIN - 2}} {pen.side}", "dim")
        width = 1 + max((column for line, column in cells if line == row), default=-1)
        for column in range(width):
            text.append(*cells.get((row, column), (" ", "")))
        text.append("\n")
    return text.append(_lags(axes, pen), "dim")


def _lags(axes: Axes, pen: Pen) -> str:
    """Draw the horizontal axis: line, numbers and label."""
    step = 2 ** max(0, ceil(log2(NUMBER_WIDTH * axes.last / axes.columns)))
    line, numbers = [pen.bottom] * axes.columns, [" "] * (axes.columns + 4)
    for lag in range(0, axes.last + 1, step):
        column = axes.column(lag)
        line[column] = pen.tick
        numbers[column : column + len(str(lag))] = str(lag)
    rows = pen.corner + "".join(line), " " + "".join(numbers).rstrip(), f" {'steps back':^{axes.columns}}".rstrip()
    return "\n".join(" " * (MARGIN - 1) + row for row in rows)
