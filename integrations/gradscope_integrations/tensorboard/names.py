"""Names, rows and limits common to the writer and the tab. Imports nothing of ours, so that both can use it."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

PLUGIN = "gradscope"
VERSION = 1
"""Version of the event data; the tab reports other versions."""

STATE, FINDINGS, NOTES = "run/state", "run/findings", "run/notes"
"""Tags of JSON records; only the last record of each counts."""
TABLES = {name: f"table/{name}" for name in ("layers", "blocks", "clips", "steps")}
"""Tags of records of rows: a JSON head, then the columns as float64 one after the other."""

CHAINS = 8
POSITIONS, UNITS, EIGENVALUES = 512, 1024, 512


class Family(NamedTuple):
    """A kind of curve.

    Attributes:
        axis: column of the positions.
        rows: columns of the numbers. A record leaves out `nonfinite` if all are 0, and has the positions as one more
            row, after all of these, unless they are 0, 1, 2, ...
        shown: the default row.
        limit: the largest number of positions in a record.
    """

    axis: str
    rows: tuple[str, ...]
    shown: str
    limit: int


SPREAD = ("p10", "p50", "p90", "mean", "nonfinite")
FAMILIES = {
    "timesteps": Family("t", SPREAD, "p50", POSITIONS),
    "reach": Family("lag", SPREAD, "p50", POSITIONS),
    "gates": Family("t", ("low", "high", "mean"), "high", POSITIONS),
    "units": Family("unit", ("low", "high"), "high", UNITS),
    "spectra": Family("index", ("real", "imag"), "real", EIGENVALUES),
}


class Key(NamedTuple):
    """One recurrence: the layer key of the tables."""

    module: str
    layer: int
    direction: str
    chain: int

    def __str__(self) -> str:
        """The key as part of a tag."""
        name = f"{self.module}/{self.layer}/{self.direction}"
        return f"{name}/{self.chain}" if self.chain else name


def family_of(curve: str) -> Family:
    """The family of a curve, `gates/forget` or `grad_h`, or of its tag."""
    return FAMILIES.get(curve.partition("/")[0], FAMILIES["timesteps"])


def compact(value: Any) -> bytes:
    """JSON without spaces, of values without non-finite numbers."""
    return json.dumps(value, separators=(",", ":"), allow_nan=False).encode()
