"""Numbers that several rules use: a quantity early and late in the training."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

from gradscope.diagnose.frames import Frame, Tables
from gradscope.diagnose.words import plural
from gradscope.types import LayerKey

Array = np.ndarray[Any, np.dtype[np.float64]]

ENOUGH = 3
"""Fewer recorded steps show no trend."""
SEQUENCES = 4
"""Fewer sequences do not show the differences of states between sequences."""


def by_step(frame: Frame, column: str, how: Literal["mean", "max"] = "mean") -> Frame:
    """Reduce a column of rows sorted by step to one number a step, a series; NaN does not count."""
    import pandas as pd

    steps, values = frame["step"].to_numpy(), frame[column].to_numpy(dtype=np.float64)
    if not len(steps):
        return pd.Series([], pd.Index(steps, name="step"), np.float64)
    starts = np.flatnonzero(np.diff(steps, prepend=steps[0] - 1))
    index = pd.Index(steps[starts], name="step")
    if how == "max":
        return pd.Series(np.fmax.reduceat(values, starts), index)
    known = ~np.isnan(values)
    with np.errstate(invalid="ignore"):
        return pd.Series(
            np.add.reduceat(np.where(known, values, 0), starts) / np.add.reduceat(known, starts, dtype=np.int64), index
        )


def early_and_late(values: Frame) -> tuple[float, float]:
    """Return the medians over the first and the last quarter of the steps; NaN without finite values.

    The density of records does not matter: each counts for the steps around it.
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
    """Return the weighted median of finite values: the mean of two if both halves weigh the same."""
    finite = np.isfinite(values)
    if not finite.any():
        return float("nan")
    order = np.argsort(values[finite], kind="stable")
    values, weights = values[finite][order], weights[finite][order]
    heap = np.cumsum(weights) / weights.sum()
    low, high = (min(int(np.searchsorted(heap, 0.5 + side)), len(values) - 1) for side in (-1e-9, 1e-9))
    return float(values[low] + values[high]) / 2


def median(values: Frame) -> float:
    """Return the median of the finite values of a column; NaN without any."""
    array = values.to_numpy(dtype=np.float64)
    return float(np.median(array[np.isfinite(array)])) if np.isfinite(array).any() else float("nan")


def peak_reach(tables: Tables, key: LayerKey) -> tuple[float, float]:
    """Return the largest median reach over the lags, early and late in the training."""
    return early_and_late(by_step(tables.of("reach", key), "p50", "max"))


def horizons(tables: Tables, key: LayerKey) -> tuple[float, float, float]:
    """Return the horizon early and late, and the longest lag, from the loss's entry to the start of the chain."""
    early, late = early_and_late(by_step(tables.of("layers", key), "horizon"))
    lags = tables.of("reach", key).groupby("step")["lag"].max()
    return early, late, float(lags.median()) if len(lags) else 0.0


def spectral_radius(tables: Tables, key: LayerKey) -> tuple[float, float]:
    """Return the largest spectral radius of a recurrence's gate blocks, early and late."""
    weights = tables.of("weights", key)
    return early_and_late(by_step(weights, "spectral_radius", "max")) if len(weights) else (np.nan, np.nan)


def timesteps(tables: Tables, key: LayerKey) -> int:
    """Return the length of the longest sequence."""
    return int(tables.of("layers", key)["timesteps"].max())


def span(tables: Tables) -> tuple[int, int]:
    """Return the first and the last recorded step."""
    return tables.records[0], tables.records[-1]


def rests_on(tables: Tables, key: LayerKey) -> str:
    """Name the records and sequences behind a finding, in brackets."""
    count, (first, last) = len(tables.records), span(tables)
    steps = f"step {first}" if count == 1 else f"steps {first} to {last}"
    return f" ({plural(count, 'record')}, {steps}; sequences of up to {plural(timesteps(tables, key), 'timestep')}.)"


def state_sizes(tables: Tables, key: LayerKey) -> Frame:
    """Return the size of the state, a row for each step and timestep."""
    rows = tables.of("timesteps", key)
    return rows[rows["quantity"] == "state"]


def state_spread(tables: Tables, key: LayerKey) -> float:
    """Return the largest relative difference of states between sequences, over time and records.

    Infinite if unknown.
    """
    rows = state_sizes(tables, key)
    rows = rows[rows["sequences"] >= SEQUENCES]
    size = rows["p50"].to_numpy(dtype=np.float64)
    if not len(rows) or not (size > 0).all():
        return float("inf")
    return float(((rows["p90"] - rows["p10"]).to_numpy(dtype=np.float64) / size).max())
