"""The part of a run in a report, read once: as many steps as the eye can distinguish."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from gradscope.plot import data
from gradscope.record import TABLES, RunData, arrow
from gradscope.record.query import Condition, Filters, conditions
from gradscope.types import LATE, LayerKey

if TYPE_CHECKING:
    from collections.abc import Hashable

MAX_STEPS = 64
"""Recorded steps of a long training, evenly spaced, beside the first and the last ones."""
MAX_ROWS = 1_000_000
"""Rows of one table; very long sequences or many layers lead to fewer steps."""
LATE_ONLY = ("reach", "units", "spectra")
DRAWN = ("grad_h", "jacobian", "jacobian_h", "jacobian_c", "jacobian_max", "gain")

Steps = np.ndarray[Any, np.dtype[np.int64]]
Frame = Any


@dataclass(frozen=True, slots=True)
class Excerpt:
    """A source in memory, split by layer.

    Attributes:
        meta: metadata of the run.
        ranks: ranks of the run.
        counts: number of rows of each table in the whole run.
        frames: of each table, the frame of each layer key, or of `()` for a table without layer keys.
    """

    meta: dict[str, Any]
    ranks: list[int]
    counts: Mapping[str, int]
    frames: Mapping[str, Mapping[Hashable, Frame]]

    def read(self, table: str, filters: Filters | None = None, columns: Sequence[str] | None = None) -> Frame:
        """Read the selected rows of the excerpt."""
        import pandas as pd

        wanted = conditions(table, filters or {})
        names = [*(columns or TABLES[table].columns), "rank"]
        parts = [part.loc[_mask(part, wanted), names] for part in self._parts(table, filters or {})]
        if len(parts) == 1:
            return parts[0].reset_index(drop=True)
        return pd.concat(parts, ignore_index=True) if parts else arrow.frame([], table, None)[names]

    def _parts(self, table: str, filters: Filters) -> list[Frame]:
        parts = self.frames[table]
        key = tuple(filters.get(name) for name in LayerKey._fields)
        if TABLES[table].keyed and all(isinstance(value, str | int) for value in key):
            return [parts[key]] if key in parts else []
        return list(parts.values())

    def count(self, table: str) -> int:
        """Return the number of rows in the whole run."""
        return self.counts[table]


def _mask(frame: Frame, wanted: Mapping[str, Condition]) -> Frame:
    mask = np.ones(len(frame), bool)
    for column, condition in wanted.items():
        values = frame[column]
        if condition.values is not None:
            mask &= values.isin(list(condition.values)).to_numpy()
            continue
        if condition.low is not None:
            mask &= (values >= condition.low).to_numpy()
        if condition.high is not None:
            mask &= (values <= condition.high).to_numpy()
    return mask


def excerpt(run: RunData, max_rows: int = MAX_ROWS) -> RunData:
    """Read the part of a run that a report needs into memory, and skip the rest of a folder."""
    if isinstance(run.source, Excerpt):
        return run
    counts = {name: run.source.count(name) for name in TABLES}
    layers = run.source.read("layers")
    late = _late(run, layers)
    steps = _steps(np.unique(layers["step"].to_numpy()), late, counts, max_rows)
    frames = {name: _split(name, _read(run, name, steps, late)) for name in TABLES}
    return RunData(Excerpt(dict(run.meta), run.source.ranks, counts, frames))


def _late(run: RunData, layers: Frame) -> Steps:
    """Return the last recorded steps of each layer, preferably with finite gradients, and the first step of all."""
    steps = layers.assign(sound=data.sound(run, layers)).drop_duplicates(["step", *LayerKey._fields])
    late = steps.sort_values(["sound", "step"]).groupby(list(LayerKey._fields)).tail(LATE)["step"]
    steps = steps.sort_values("step")
    return np.union1d(late.to_numpy(), steps["step"].head(1).to_numpy())


def _steps(steps: Steps, late: Steps, counts: Mapping[str, int], max_rows: int) -> Steps:
    largest = max(counts["timesteps"], counts["gates"]) / max(1, len(steps))
    number = int(np.clip(max_rows // max(1.0, largest), LATE, MAX_STEPS))
    spaced = steps[np.unique(np.linspace(0, len(steps) - 1, number).round().astype(int))] if len(steps) else steps
    return np.union1d(spaced, late)


def _read(run: RunData, table: str, steps: Steps, late: Steps) -> Frame:
    if table == "timesteps":
        import pandas as pd

        between = {"step": np.setdiff1d(steps, late), "quantity": "grad_h"}
        parts = [run.source.read(table, {"step": late, "quantity": DRAWN}), run.source.read(table, between)]
        return pd.concat(parts, ignore_index=True)
    if table in ("gates", "weights"):
        return run.source.read(table, {"step": steps})
    return run.source.read(table, {"step": late} if table in LATE_ONLY else None)


def _split(table: str, frame: Frame) -> dict[Hashable, Frame]:
    if not TABLES[table].keyed:
        return {(): frame}
    return dict(iter(frame.groupby(list(LayerKey._fields), sort=False)))
