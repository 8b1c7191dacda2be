"""Reduces a curve or a table to the resolution of a screen, by selection, never by interpolation."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from gradscope_integrations.tensorboard.reading import Curve, Table

Array = np.ndarray[Any, np.dtype[Any]]
View = tuple[dict[str, Any], dict[str, Array]]
"""The arguments of `wire.pack`."""

REDUCED = {"median": np.nanmedian, "max": np.nanmax, "min": np.nanmin, "mean": np.nanmean}


class Range(NamedTuple):
    """A closed interval."""

    low: float = -math.inf
    high: float = math.inf

    def holds(self, values: Array) -> Array:
        """A mask of the values inside."""
        return (values >= self.low) & (values <= self.high)


def pick(count: int, limit: int) -> Array:
    """The places of at most `limit` of `count` items, evenly spaced, including the first and the last.

    >>> pick(10, 4).tolist(), pick(3, 4).tolist(), pick(9, 1).tolist()
    ([0, 3, 6, 9], [0, 1, 2], [8])
    """
    if count <= limit:
        return np.arange(count)
    return np.array([count - 1]) if limit < 2 else (np.arange(limit) * (count - 1) / (limit - 1) + 0.5).astype(int)


def heatmap(curve: Curve, row: str, size: tuple[int, int], steps: Range, positions: Range) -> View:
    """One row of a curve, step by position."""
    within = np.flatnonzero(steps.holds(curve.steps))
    chosen = within[pick(len(within), size[0])]
    grid = _grid([curve.positions[place] for place in chosen.tolist()])
    grid = grid[positions.holds(grid)]
    columns = grid[pick(len(grid), size[1])]
    values = np.full((len(chosen), len(columns)), np.nan, np.float32)
    padded, left_out, nan, inf = np.zeros(len(chosen), np.int32), 0, 0, 0
    for rows, where, at in _alike(curve, chosen, columns):
        block = np.stack([curve.row(place, row)[at] for place in chosen[rows].tolist()])
        values[np.ix_(rows, where)] = block
        padded[rows] = len(columns) - len(where)
        nan, inf = nan + int(np.isnan(block).sum()), inf + int(np.isinf(block).sum())
        if "nonfinite" in curve.family.rows:
            left_out += sum(int((curve.row(place, "nonfinite")[at] > 0).sum()) for place in chosen[rows].tolist())
    head = {
        **about(curve), "row": row, "steps_kept": len(within), "positions_kept": len(grid),
        "positions_last": max((float(curve.positions[place][-1]) for place in chosen.tolist()), default=None),
        "nan": nan, "inf": inf, "left_out": left_out,
    }  # fmt: skip
    return head, {"steps": curve.steps[chosen], "positions": columns, "values": values, "padded": padded}


def profile(curve: Curve, step: float) -> View:
    """All rows at the step nearest to the requested one."""
    place = nearest(curve, step)
    arrays = {"positions": curve.positions[place], **{name: curve.row(place, name) for name in curve.family.rows}}
    return {**about(curve), "step": float(curve.steps[place]), "steps_kept": len(curve.steps)}, arrays


def series(curve: Curve, row: str, over: str | float, points: int, steps: Range) -> View:
    """One number per step: a row at a position, or its median, ... over the positions."""
    within = np.flatnonzero(steps.holds(curve.steps))
    chosen = within[pick(len(within), points)]
    values = np.full(len(chosen), np.nan, np.float32)
    for rows, _, _ in _alike(curve, chosen, np.empty(0)):
        block = np.stack([curve.row(place, row) for place in chosen[rows].tolist()])
        values[rows] = _at(block, curve.positions[int(chosen[rows[0]])], over)
    head = {**about(curve), "row": row, "over": over, "steps_kept": len(within)}
    head |= {"nan": int(np.isnan(values).sum()), "inf": int(np.isinf(values).sum())}
    return head, {"steps": curve.steps[chosen], "values": values}


def _at(block: Array, positions: Array, over: str | float) -> Array:
    """Reduce float32 [steps, positions] to [steps]."""
    if over in ("first", "last"):
        return block[:, 0 if over == "first" else -1]
    if isinstance(over, str):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # all NaN gives NaN
            return REDUCED[over](block, axis=1)
    place = np.flatnonzero(positions == over)
    return block[:, place[0]] if len(place) else np.full(len(block), np.nan, np.float32)


def several(curves: dict[str, Curve], step: float, rows: Sequence[str]) -> View:
    """Curves of one layer by gate, at the step nearest to the requested one."""
    first = next(iter(curves.values()))
    wanted = first.steps[nearest(first, step)]
    arrays: dict[str, Array] = {}
    for gate, curve in curves.items():
        place = nearest(curve, wanted)
        arrays[f"{gate}/positions"] = curve.positions[place]
        arrays |= {f"{gate}/{name}": curve.row(place, name) for name in rows}
    head = {"gates": list(curves), "step": float(wanted), "steps": first.steps.tolist()}
    return {**about(first), **head, "steps_kept": len(first.steps)}, arrays


def pair(curve: Curve, row: str, place: int) -> Array:
    """Positions and values of the step at a place, float32 [2, n]."""
    return np.stack([curve.positions[place], curve.row(place, row)]).astype(np.float32)


def rows(table: Table, limit: int, steps: Range) -> View:
    """Rows of a table, evenly thinned to at most `limit` rows."""
    within = np.flatnonzero(steps.holds(table.columns["step"]))
    return _selected(table, within, within[pick(len(within), limit)])


def steps(table: Table, limit: int, steps: Range, key: str | None = None) -> View:
    """Rows of a table, of one layer if there is a key, thinned to at most `limit` steps."""
    number = table.columns["step"]
    wanted = steps.holds(number)
    if key is not None:
        wanted &= table.columns["key"] == (table.texts["key"].index(key) if key in table.texts["key"] else -1)
    within = np.flatnonzero(wanted)
    known = np.unique(number[within])
    return _selected(table, within, within[np.isin(number[within], known[pick(len(known), limit)])])


def _selected(table: Table, within: Array, chosen: Array) -> View:
    arrays = {
        name: column[chosen].astype(np.int32 if name in table.texts else np.float64)
        for name, column in table.columns.items()
    }
    steps_kept = len(np.unique(table.columns["step"][within]))
    return {"texts": table.texts, "rows_kept": len(within), "steps_kept": steps_kept}, arrays


def about(curve: Curve) -> dict[str, Any]:
    """The common part of all answers on a curve."""
    first, last = (float(curve.steps[0]), float(curve.steps[-1])) if len(curve.steps) else (None, None)
    return {"axis": curve.family.axis, "rows": curve.family.rows, "steps_first": first, "steps_last": last}


def nearest(curve: Curve, step: float) -> int:
    """The place of the step nearest to a number; for infinity, the last."""
    return len(curve.steps) - 1 if step == math.inf else int(np.abs(curve.steps - step).argmin())


def _alike(curve: Curve, chosen: Array, columns: Array) -> Iterator[tuple[Array, Array, Array]]:
    """Group steps with the same positions: their places in `chosen`, their columns, and the places of these columns."""
    groups: dict[int, list[int]] = {}
    for place, step in enumerate(chosen.tolist()):
        groups.setdefault(id(curve.positions[step]), []).append(place)
    for group in groups.values():
        positions = curve.positions[int(chosen[group[0]])]
        at = np.minimum(np.searchsorted(positions, columns), len(positions) - 1)
        where = np.flatnonzero(positions[at] == columns)
        yield np.array(group), where, at[where]


def _grid(positions: Sequence[Array]) -> Array:
    """The positions of several steps together, at the coarsest spacing among them.

    The writer thins by powers of two, so that the finer steps have the positions of the coarsest.
    """
    distinct = list({id(each): each for each in positions}.values())
    if len(distinct) < 2:
        return distinct[0] if distinct else np.empty(0)
    strides = [_stride(each) for each in distinct]
    if not all(strides):
        return np.unique(np.concatenate(distinct))
    end = max(each[-1] for each in distinct)
    return np.union1d(np.arange(0, end, max(strides)), [end])


def _stride(positions: Array) -> float:
    """The distance between neighbours, 0 unless evenly spaced from 0; the last may be nearer."""
    if len(positions) < 2 or positions[0] != 0:
        return float(len(positions) == 1 and positions[0] == 0)
    steps = np.diff(positions)
    even = bool(np.all(steps[:-1] == steps[0])) and 0 < steps[-1] <= steps[0]
    return float(steps[0]) if even else 0.0
