"""What the records tell of the states themselves."""

from __future__ import annotations

import numpy as np

from gradscope.diagnose.frames import Frame, Seen
from gradscope.types import LayerKey

SEQUENCES = 4
"""With fewer sequences there is no telling how much states differ from one to the next."""


def sizes(seen: Seen, key: LayerKey) -> Frame:
    """The size of the state, a row for each step and timestep."""
    rows = seen.of("timesteps", key)
    return rows[rows["quantity"] == "state"]


def spread(seen: Seen, key: LayerKey) -> float:
    """By how much states differ from sequence to sequence, relative to their size: the most over time and records.

    Infinite where that is not known.
    """
    rows = sizes(seen, key)
    rows = rows[rows["sequences"] >= SEQUENCES]
    size = rows["p50"].to_numpy(dtype=np.float64)
    if not len(rows) or not (size > 0).all():
        return float("inf")
    return float(((rows["p90"] - rows["p10"]).to_numpy(dtype=np.float64) / size).max())
