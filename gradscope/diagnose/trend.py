"""What several rules ask of a training: how something began, and how it ended."""

from __future__ import annotations

from typing import Any

import numpy as np

from gradscope.diagnose.frames import Frame, Seen
from gradscope.diagnose.words import plural
from gradscope.types import LayerKey

Array = np.ndarray[Any, np.dtype[np.float64]]

ENOUGH = 3
"""With fewer recorded steps there is no trend."""


def by_step(frame: Frame, column: str, how: str = "mean") -> Frame:
    """One number a step, a series."""
    return frame.groupby("step", sort=True)[column].agg(how)


def early_and_late(values: Frame) -> tuple[float, float]:
    """Median over the first and over the last quarter of the steps; NaN where nothing is finite.

    Records may lie as closely as they like: each counts for the steps around it.

    Args:
        values: a series by step, rising.
    """
    steps, numbers = values.index.to_numpy(dtype=np.float64), values.to_numpy(dtype=np.float64)
    if not len(steps):
        return float("nan"), float("nan")
    quarter = (steps[-1] - steps[0]) / 4
    stands_for = np.gradient(steps) if len(steps) > 1 else np.ones(1)
    ends = steps <= steps[0] + quarter, steps >= steps[-1] - quarter
    first, last = (_median(numbers[end], stands_for[end]) for end in ends)
    return first, last


def _median(values: Array, weights: Array) -> float:
    """Of finite values, weighted: between the two in the middle where both halves weigh the same."""
    finite = np.isfinite(values)
    if not finite.any():
        return float("nan")
    order = np.argsort(values[finite], kind="stable")
    values, weights = values[finite][order], weights[finite][order]
    heap = np.cumsum(weights) / weights.sum()
    low, high = (min(int(np.searchsorted(heap, 0.5 + side)), len(values) - 1) for side in (-1e-9, 1e-9))
    return float(values[low] + values[high]) / 2


def median(values: Frame) -> float:
    """Of what is finite in a column; NaN where nothing is."""
    array = values.to_numpy(dtype=np.float64)
    return float(np.median(array[np.isfinite(array)])) if np.isfinite(array).any() else float("nan")


def peak_reach(seen: Seen, key: LayerKey) -> tuple[float, float]:
    """The largest median reach over the lags, early and late in the training."""
    return early_and_late(by_step(seen.of("reach", key), "p50", "max"))


def horizons(seen: Seen, key: LayerKey) -> tuple[float, float, float]:
    """Horizon early and late, and the longest lag there is, from where the loss enters to the chain's start."""
    early, late = early_and_late(by_step(seen.of("layers", key), "horizon"))
    lags = seen.of("reach", key).groupby("step")["lag"].max()
    return early, late, float(lags.median()) if len(lags) else 0.0


def spectral_radius(seen: Seen, key: LayerKey) -> tuple[float, float]:
    """The largest of a recurrence's gate blocks, early and late."""
    weights = seen.of("weights", key)
    return early_and_late(by_step(weights, "spectral_radius", "max")) if len(weights) else (np.nan, np.nan)


def timesteps(seen: Seen, key: LayerKey) -> int:
    """Length of the longest sequence."""
    return int(seen.of("layers", key)["timesteps"].max())


def span(seen: Seen) -> tuple[int, int]:
    """The first and the last recorded step."""
    return seen.records[0], seen.records[-1]


def rests_on(seen: Seen, key: LayerKey) -> str:
    """Where in the training and in the sequences a finding is from, a sentence."""
    count, (first, last) = len(seen.records), span(seen)
    steps = f"step {first}" if count == 1 else f"steps {first} to {last}"
    return f" ({plural(count, 'record')}, {steps}; sequences of up to {plural(timesteps(seen, key), 'timestep')}.)"
