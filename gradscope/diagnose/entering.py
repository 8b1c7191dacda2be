"""Where the loss gradient enters a recurrent module from above, and how much of it."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from gradscope.diagnose.frames import Frame, Seen
from gradscope.diagnose.trend import Array
from gradscope.types import LayerKey

PART = 0.1
"""The loss enters at a timestep with this share of its largest size, or more."""


def above(seen: Seen, key: LayerKey) -> Frame:
    """What enters the states of one recurrence from above, a row for each step and timestep."""
    rows = seen.of("timesteps", key)
    return rows[rows["quantity"] == "grad_h_direct"]


def loss_left(seen: Seen, module: str) -> float:
    """How much of the loss gradient that enters a module is left at the best of its later steps, relative to its start.

    What enters the states of the uppermost layer from above is the error of the answers times the weights of what
    reads them. It falls as answers become right; in a training that gets nowhere it stays. It does not depend on the
    loss's scale. NaN where it is not known.
    """
    layers = [key.layer for key in seen.keys if key.module == module]
    sizes = _entering_by_step(seen, module, max(layers, default=0))
    return _left(sizes[np.isfinite(sizes)])


def passed_down(seen: Seen, module: str) -> float:
    """How much of the loss gradient that enters a stack's uppermost layer enters its lowest one, median of the records.

    NaN where there is but one layer, or nothing enters.
    """
    layers = {key.layer for key in seen.keys if key.module == module}
    if len(layers) < 2:
        return float("nan")
    highest, lowest = (_entering_by_step(seen, module, layer) for layer in (max(layers), min(layers)))
    if len(highest) != len(lowest) or not (highest > 0).any():
        return float("nan")
    shares = lowest[highest > 0] / highest[highest > 0]
    return float(np.median(shares[np.isfinite(shares)])) if np.isfinite(shares).any() else float("nan")


def _entering_by_step(seen: Seen, module: str, layer: int) -> Array:
    """What enters the states of one layer from above, all directions and chains together, a number for each record."""
    size: dict[int, float] = {}
    for key in seen.keys:
        if (key.module, key.layer) == (module, layer):
            rows = above(seen, key)
            for step, entering in (rows["mean"] * rows["sequences"]).groupby(rows["step"]).sum().items():
                size[step] = size.get(step, 0.0) + float(entering)
    return np.array([size[step] for step in sorted(size)], dtype=np.float64)


def _left(size: Array) -> float:
    """The least that is left in the second half, of what there was in the first tenth."""
    if len(size) < 2:
        return float("nan")
    begin = float(np.median(size[: max(1, len(size) // 10)]))
    window = max(1, len(size) // 8)
    later = [float(np.median(size[i : i + window])) for i in range(len(size) // 2, len(size) - window + 1)]
    return min(later) / begin if begin > 0 else float("nan")


def loss_enters(seen: Seen, module: str) -> float:
    """The share of the timesteps at which the loss enters the uppermost layer, by a tenth of the largest size or more.

    Small where answers are asked at the end, 1 where every timestep has one. The larger of two directions.
    """
    keys = [key for key in seen.keys if key.module == module]
    top = max((key.layer for key in keys), default=0)
    shares: list[float] = []
    for direction in {key.direction for key in keys}:
        rows = [above(seen, key) for key in keys if key.layer == top and key.direction == direction]
        sizes = [size for _, size in _by_timestep(rows)]
        largest = max((float(size.max()) for size in sizes if len(size)), default=0.0)
        count = sum(len(size) for size in sizes)
        shares.append(sum(int((size >= PART * largest).sum()) for size in sizes) / count if largest > 0 else 0.0)
    return max(shares, default=0.0)


def entered(seen: Seen, key: LayerKey) -> list[int]:
    """The timesteps at which the loss enters one recurrence, by a tenth of the largest size or more."""
    ((times, size),) = _by_timestep([above(seen, key)])
    largest = float(size.max()) if len(size) else 0.0
    return [int(t) for t in times[size >= PART * largest]] if largest > 0 else []


def entered_by_record(seen: Seen, key: LayerKey) -> dict[int, list[int]]:
    """The same of each record with a gradient; where batches are padded to their longest, the end moves."""
    found: dict[int, list[int]] = {}
    for step, rows in above(seen, key).groupby("step"):
        sizes = rows["mean"].to_numpy(dtype=np.float64)
        largest = float(np.nanmax(sizes, initial=0.0))
        if largest > 0:
            found[int(str(step))] = sorted(int(t) for t in rows["t"].to_numpy()[sizes >= PART * largest])
    return found


def _by_timestep(frames: list[Frame]) -> Iterator[tuple[Array, Array]]:
    """Timesteps, and the size of what enters at each, over the records."""
    for frame in frames:
        sizes = frame[np.isfinite(frame["mean"])].groupby("t")["mean"].mean()
        yield sizes.index.to_numpy(), sizes.to_numpy(dtype=np.float64)
