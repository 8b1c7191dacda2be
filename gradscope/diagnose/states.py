"""Sizes of the states, and their differences between sequences."""

from __future__ import annotations

import numpy as np

from gradscope.diagnose.frames import Frame, Tables
from gradscope.types import LayerKey

SEQUENCES = 4
"""Fewer sequences do not show the differences of states between sequences."""


def sizes(tables: Tables, key: LayerKey) -> Frame:
    """Return the size of the state, a row for each step and timestep."""
    rows = tables.of("timesteps", key)
    return rows[rows["quantity"] == "state"]


def spread(tables: Tables, key: LayerKey) -> float:
    """Return the largest relative difference of states between sequences, over time and records.

    Infinite if unknown.
    """
    rows = sizes(tables, key)
    rows = rows[rows["sequences"] >= SEQUENCES]
    size = rows["p50"].to_numpy(dtype=np.float64)
    if not len(rows) or not (size > 0).all():
        return float("inf")
    return float(((rows["p90"] - rows["p10"]).to_numpy(dtype=np.float64) / size).max())
