"""The loss gradient that enters a recurrent module from above: its timesteps and its size."""

from __future__ import annotations

import numpy as np

from gradscope.diagnose.frames import Frame, Tables
from gradscope.diagnose.trend import Array
from gradscope.types import LayerKey

PART = 0.1
"""The loss enters at a timestep with this share of its largest size, or more."""


def above(tables: Tables, key: LayerKey) -> Frame:
    """Return the gradient that enters the states of one recurrence from above, a row for each step and timestep."""
    rows = tables.of("timesteps", key)
    return rows[rows["quantity"] == "grad_h_direct"]


def loss_left(tables: Tables, module: str) -> float:
    """Return the share of a module's entering loss gradient that is left at the best of its later steps.

    The gradient that enters the uppermost layer is the error of the answers times the weights of the readout. It falls
    as answers become right, and stays in a training that gets nowhere. The share does not depend on the scale of the
    loss. NaN if unknown.
    """
    layers = [key.layer for key in tables.keys if key.module == module]
    sizes = _entering_by_step(tables, module, max(layers, default=0))
    return _left(sizes[np.isfinite(sizes)])


def passed_down(tables: Tables, module: str, *, first: bool = False) -> float:
    """Return the gradient that enters a stack's lowest layer over that of its uppermost, median of the records.

    Args:
        tables: of the run.
        module: the stack; NaN if it has only one layer, or no gradient enters.
        first: in the first record alone.
    """
    layers = {key.layer for key in tables.keys if key.module == module}
    if len(layers) < 2:
        return float("nan")
    highest, lowest = (_entering_by_step(tables, module, layer) for layer in (max(layers), min(layers)))
    if first:
        highest, lowest = highest[:1], lowest[:1]
    if len(highest) != len(lowest) or not (highest > 0).any():
        return float("nan")
    shares = lowest[highest > 0] / highest[highest > 0]
    return float(np.median(shares[np.isfinite(shares)])) if np.isfinite(shares).any() else float("nan")


def _entering_by_step(tables: Tables, module: str, layer: int) -> Array:
    """Sum the gradient that enters one layer from above over directions and chains, a number for each record."""
    size: dict[int, float] = {}
    for key in tables.keys:
        if (key.module, key.layer) == (module, layer):
            rows = above(tables, key)
            for step, entering in (rows["mean"] * rows["sequences"]).groupby(rows["step"]).sum().items():
                size[step] = size.get(step, 0.0) + float(entering)
    return np.array([size[step] for step in sorted(size)], dtype=np.float64)


def _left(size: Array) -> float:
    """Return the smallest share left in the second half, of the level in the first tenth."""
    if len(size) < 2:
        return float("nan")
    begin = float(np.median(size[: max(1, len(size) // 10)]))
    window = max(1, len(size) // 8)
    later = [float(np.median(size[i : i + window])) for i in range(len(size) // 2, len(size) - window + 1)]
    return min(later) / begin if begin > 0 else float("nan")


def loss_enters(tables: Tables, module: str) -> float:
    """Return the share of timesteps at which the loss enters the uppermost layer with a tenth of its largest size.

    Small if the loss reads the end, 1 if it reads every timestep. The larger of two directions.
    """
    keys = [key for key in tables.keys if key.module == module]
    top = max((key.layer for key in keys), default=0)
    shares: list[float] = []
    for direction in {key.direction for key in keys}:
        read = [key for key in keys if key.layer == top and key.direction == direction]
        sizes = [_by_timestep(tables, key).to_numpy(dtype=np.float64) for key in read]
        largest = max((float(size.max()) for size in sizes if len(size)), default=0.0)
        count = sum(len(size) for size in sizes)
        shares.append(sum(int((size >= PART * largest).sum()) for size in sizes) / count if largest > 0 else 0.0)
    return max(shares, default=0.0)


def entered(tables: Tables, key: LayerKey) -> list[int]:
    """List the timesteps at which the loss enters one recurrence with a tenth of its largest size or more."""
    sizes = _by_timestep(tables, key)
    largest = float(sizes.max()) if len(sizes) else 0.0
    return [int(t) for t in sizes.index[sizes >= PART * largest]] if largest > 0 else []


def entered_by_record(tables: Tables, key: LayerKey) -> dict[int, list[int]]:
    """List them for each record with a gradient; in batches padded to their longest sequence the end moves."""
    places: dict[int, list[int]] = {}
    for step, rows in above(tables, key).groupby("step"):
        sizes = rows["mean"].to_numpy(dtype=np.float64)
        largest = float(np.nanmax(sizes, initial=0.0))
        if largest > 0:
            places[int(str(step))] = sorted(int(t) for t in rows["t"].to_numpy()[sizes >= PART * largest])
    return places


def _by_timestep(tables: Tables, key: LayerKey) -> Frame:
    """Return the mean size of the entering gradient at each timestep over the records, a series."""
    rows = above(tables, key)
    return rows[np.isfinite(rows["mean"])].groupby("t")["mean"].mean()
