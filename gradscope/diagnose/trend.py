"""What several rules ask of a training: how it began, how it ended, and whether it has got anywhere."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from gradscope.diagnose.frames import Frame, Seen
from gradscope.diagnose.words import plural
from gradscope.types import LayerKey, Severity

Array = np.ndarray[Any, np.dtype[np.float64]]

ENOUGH = 3
"""With fewer recorded steps there is no trend, and a finding is no more than a hint."""


def by_step(frame: Frame, column: str, how: str = "mean") -> Frame:
    """One number a step, a series."""
    return frame.groupby("step", sort=True)[column].agg(how)


def early_and_late(values: Sequence[float] | Array) -> tuple[float, float]:
    """Median of the first and of the last quarter, at least one value each; NaN where nothing is finite."""
    array = np.asarray(values, dtype=np.float64)
    quarter = max(1, len(array) // 4)
    return _median(array[:quarter]), _median(array[-quarter:])


def _median(values: Array) -> float:
    finite = values[np.isfinite(values)]
    return float(np.median(finite)) if len(finite) else float("nan")


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
    above, below = (_entering_by_step(seen, module, layer) for layer in (max(layers), min(layers)))
    if len(above) != len(below):
        return float("nan")
    return _median(np.divide(below, above, out=np.full_like(above, np.nan), where=above > 0))


def _entering_by_step(seen: Seen, module: str, layer: int) -> Array:
    """What enters the states of one layer from above, all directions and chains together, a number for each record."""
    size: dict[int, float] = {}
    for key in seen.keys:
        if (key.module, key.layer) == (module, layer):
            rows = seen.of("timesteps", key)
            rows = rows[rows["quantity"] == "grad_h_direct"]
            for step, entering in (rows["mean"] * rows["sequences"]).groupby(rows["step"]).sum().items():
                size[step] = size.get(step, 0.0) + float(entering)
    return np.array([size[step] for step in sorted(size)], dtype=np.float64)


def loss_enters(seen: Seen, module: str) -> float:
    """The share of the timesteps at which the loss enters the uppermost layer, by a tenth of the largest size or more.

    Small where answers are asked at the end, 1 where every timestep has one. The larger of two directions.
    """
    keys = [key for key in seen.keys if key.module == module]
    top = max((key.layer for key in keys), default=0)
    shares: list[float] = []
    for direction in {key.direction for key in keys}:
        rows = [seen.of("timesteps", key) for key in keys if key.layer == top and key.direction == direction]
        sizes = [_entering(frame) for frame in rows]
        largest = max((float(size.max()) for size in sizes if len(size)), default=0.0)
        count = sum(len(size) for size in sizes)
        shares.append(sum(int((size >= PART * largest).sum()) for size in sizes) / count if largest > 0 else 0.0)
    return max(shares, default=0.0)


PART = 0.1


def _entering(frame: Frame) -> Array:
    """The size of what enters at each timestep, over the records."""
    rows = frame[(frame["quantity"] == "grad_h_direct") & np.isfinite(frame["mean"])]
    return rows.groupby("t")["mean"].mean().to_numpy(dtype=np.float64)


def _left(size: Array) -> float:
    """The least that is left in the second half, of what there was in the first tenth."""
    if len(size) < 2:
        return float("nan")
    begin = float(np.median(size[: max(1, len(size) // 10)]))
    window = max(1, len(size) // 8)
    later = [float(np.median(size[i : i + window])) for i in range(len(size) // 2, len(size) - window + 1)]
    return min(later) / begin if begin > 0 else float("nan")


def stalled(seen: Seen, module: str, left: float) -> bool:
    """Whether a training has got nowhere: more than `left` of its loss gradient is still there, or nobody knows."""
    return not loss_left(seen, module) <= left


def peak_reach(seen: Seen, key: LayerKey) -> tuple[float, float]:
    """The largest median reach over the lags, early and late in the training."""
    return early_and_late(by_step(seen.of("reach", key), "p50", "max").to_numpy())


def horizons(seen: Seen, key: LayerKey) -> tuple[float, float, float]:
    """Horizon early and late, and the longest lag there is, from where the loss enters to the chain's start."""
    layers = seen.of("layers", key)
    early, late = early_and_late(layers["horizon"].to_numpy())
    lags = seen.of("reach", key).groupby("step")["lag"].max()
    return early, late, float(lags.median()) if len(lags) else 0.0


def spectral_radius(seen: Seen, key: LayerKey) -> tuple[float, float]:
    """The largest of a recurrence's gate blocks, early and late."""
    weights = seen.of("weights", key)
    return early_and_late(by_step(weights, "spectral_radius", "max").to_numpy()) if len(weights) else (np.nan, np.nan)


def weights_moved(seen: Seen) -> float:
    """The largest relative change of the spectral norm of any gate block from the first record to the last."""
    weights = seen["weights"]
    if not len(weights) or weights["step"].nunique() < 2:
        return float("nan")
    blocks = weights.pivot_table(index="step", columns=["module", "layer", "direction", "gate"], values="spectral_norm")
    change = (blocks.iloc[-1] / blocks.iloc[0] - 1).abs()
    return float(change.max()) if change.notna().any() else float("nan")


def rests_on(seen: Seen, key: LayerKey) -> str:
    """Where in the training and in the sequences a finding is from, a sentence."""
    count, longest = len(seen.records), int(seen.of("layers", key)["timesteps"].max())
    steps = f"step {seen.records[0]}" if count == 1 else f"steps {seen.records[0]} to {seen.records[-1]}"
    return f" ({plural(count, 'record')}, {steps}; sequences of up to {plural(longest, 'timestep')}.)" + too_few(seen)


def too_few(seen: Seen) -> str:
    """A sentence about trainings so short that the budget allows a record or two, or nothing."""
    if not 0 < len(seen.records) < ENOUGH:
        return ""
    return " That is too little to see a trend in; every=N, or `gradscope run --every N`, records more of a short run."


def severity(seen: Seen, critical: bool) -> Severity:
    """Critical or a warning; no more than a hint where there are too few records for a trend."""
    if len(seen.records) < ENOUGH:
        return "info"
    return "critical" if critical else "warning"
