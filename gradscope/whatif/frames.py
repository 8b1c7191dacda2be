"""Predicted effects of remedies, as frames: one row for each remedy and recurrence, and `reach` lag by lag."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from gradscope.diagnose.frames import KEY, Frame, Recorded
from gradscope.types import LayerKey, Remedy

UNCHANGED = "as it is"
REMEDY = ["remedy", "code", "changed"]
MEASURED = ["timesteps", "horizon", "horizon_censored", "decay"]
LAYERS = [*REMEDY, *KEY, *MEASURED, "peak", "left", "enters", "loss", "note"]
REACH = [*REMEDY, *KEY, "lag", "p10", "p50", "p90", "mean", "sequences", "nonfinite"]


class Candidate(NamedTuple):
    """A remedy, and its module."""

    module: str
    remedy: Remedy


class Trial(NamedTuple):
    """One copy: its remedy (None for none), its loss, and its records or the reason of a failure."""

    candidate: Candidate | None
    loss: float
    run: Recorded | None
    note: str = ""


@dataclass(frozen=True, slots=True, repr=False)
class WhatIf:
    """The reach of gradients with each remedy, on one batch, at the start of a training with the remedy.

    In both frames, `remedy` is the remedy (`"as it is"` for the unchanged model), `code` its code, and `changed` the
    changed module; the rows are of recurrences that are, or are within, this module.

    Attributes:
        layers: one row per remedy and recurrence: `timesteps`, `horizon`, `horizon_censored` and `decay` as in a run's
            table `layers`; `peak` the largest median reach and `left` the median reach at the longest lag; `enters` the
            size of the loss gradient that enters the states from above, the mean of its norm, summed over the
            timesteps; the batch's `loss`; and a `note` with the reason of a failed trial.
        reach: one row per remedy, recurrence and lag, with the columns of a run's table `reach`.
    """

    layers: Frame
    reach: Frame

    def __repr__(self) -> str:
        """Write a line for each remedy and recurrence."""
        return self._shown().to_string(index=False)

    def _repr_html_(self) -> str:
        return self._shown().to_html(index=False, border=0)

    def _shown(self) -> Frame:
        import pandas as pd

        return pd.DataFrame([_line(row) for row in self.layers.to_dict("records")])


def _line(row: dict[str, Any]) -> dict[str, str]:
    where = f"{row['module'] or 'model'}, layer {row['layer']}, {row['direction']}"
    head = {"remedy": row["remedy"], "where": row["changed"] or "model" if row["note"] else where}
    if row["note"]:
        return {**head, "horizon": "the trial failed", "decay": "", "left": "", "peak": "", "enters": ""}
    lags = "all" if row["horizon_censored"] else f"{row['horizon']:g}"
    numbers = {name: f"{row[name]:.2g}" for name in ("decay", "left", "peak", "enters")}
    return {**head, "horizon": f"{lags} of {row['timesteps'] - 1:g}", **numbers}


def as_frames(trials: Sequence[Trial]) -> WhatIf:
    """Put the trials into two frames, in their order."""
    import pandas as pd

    layers: list[dict[str, Any]] = []
    reach: list[Frame] = []
    for candidate, loss, run, note in trials:
        head = _head(candidate)
        if run is None:
            layers.append({**head, **LayerKey(head["changed"], 0, "forward", 0)._asdict(), "note": note})
            continue
        lags = _within(run.frame("reach"), candidate)
        layers += [{**head, **row, "loss": loss, "note": ""} for row in _rows(run, lags, candidate)]
        reach.append(lags.assign(**head))
    whole = pd.concat(reach, ignore_index=True) if reach else pd.DataFrame(columns=REACH)
    return WhatIf(pd.DataFrame(layers, columns=LAYERS), whole[REACH])


def _head(candidate: Candidate | None) -> dict[str, str]:
    if candidate is None:
        return {"remedy": UNCHANGED, "code": "", "changed": ""}
    return {"remedy": candidate.remedy.title, "code": candidate.remedy.code, "changed": candidate.module}


def _within(frame: Frame, candidate: Candidate | None) -> Frame:
    """Select the rows of the changed module, or of cells within it."""
    if candidate is None or not candidate.module:
        return frame
    names = frame["module"].astype(str)
    return frame[(names == candidate.module) | names.str.startswith(f"{candidate.module}.")]


def _rows(run: Recorded, lags: Frame, candidate: Candidate | None) -> Iterator[dict[str, Any]]:
    groups = {tuple(key): rows for key, rows in lags.groupby(KEY, sort=False)}
    above = run.frame("timesteps", quantity="grad_h_direct").groupby(KEY)["mean"].sum()
    for row in _within(run.frame("layers"), candidate).to_dict("records"):
        key = {name: row[name] for name in KEY}
        rows = groups.get(tuple(key.values()))
        left = math.nan if rows is None else float(rows.sort_values("lag")["p50"].iloc[-1])
        peak = math.nan if rows is None else float(rows["p50"].max())
        enters = float(above.get(tuple(key.values()), math.nan))
        yield {**key, **{name: row[name] for name in MEASURED}, "peak": peak, "left": left, "enters": enters}
