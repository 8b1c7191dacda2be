"""Many runs in one picture: the distribution of a number."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from gradscope.errors import GradscopeError
from gradscope.plot import style
from gradscope.plot.data import Frame

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_BINS = 40
SEVERITIES = {"": "healthy", "info": "info", "warning": "warning", "critical": "critical"}
LABELS = {
    "loss_first": "median loss of the first tenth of the steps",
    "loss_last": "median loss of the last tenth of the steps",
    "horizon": "steps back to 1/1000 of the loss gradient",
    "decay_min": "decades per step back, layer that loses most",
    "decay_max": "decades per step back, layer that gains most",
    "clip_rate": "share of steps clipped",
    "grad_norm": "median gradient norm",
    "grad_norm_max": "largest gradient norm",
    "nonfinite_steps": "steps not finite",
}
LOGARITHMIC = ("grad_norm", "grad_norm_max", "seconds", "residual")


def runs(table: Frame, column: str = "horizon", *, ax: Axes | None = None) -> Axes:
    """Draw the distribution of a column of `fleet.table()` over its runs, or some of them, by their worst finding.

    Raises:
        GradscopeError: the table has no such column of numbers.
    """
    from matplotlib.ticker import MaxNLocator

    ax = style.axes(ax, f"{column.replace('_', ' ')} of the runs")
    if column not in table or table[column].dtype.kind not in "if":
        raise GradscopeError(f"a fleet's table has no column of numbers {column!r}; pass a column of fleet.table()")
    values = table[column].to_numpy(float)
    known = np.isfinite(values) & ((values > 0) | (column not in LOGARITHMIC))
    if not known.any():
        return style.message(ax, f"no run has a finite {column}")
    groups = _by_severity(table[known], column)
    borders = _borders(values[known], column in LOGARITHMIC)
    ax.hist(
        list(groups.values()),
        borders,
        stacked=True,
        color=[style.severity(name) for name in groups],
        label=list(groups),
        rwidth=0.92,
    )
    if column in LOGARITHMIC:
        style.logarithmic(ax.xaxis, borders)
    ax.yaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set(xlabel=LABELS.get(column, column.replace("_", " ")), ylabel="runs")
    if "severity" in table:
        style.legend(ax)
    return ax


def _by_severity(table: Frame, column: str) -> dict[str, Any]:
    """Group values by the worst finding: healthy runs first, critical findings last."""
    if "severity" not in table:
        return {"runs": table[column].to_numpy(float)}
    groups = {name: table.loc[table["severity"] == key, column].to_numpy(float) for key, name in SEVERITIES.items()}
    return {name: values for name, values in groups.items() if len(values)}


def _borders(values: Any, logarithmic: bool) -> Any:
    """Choose borders of bins of equal width, in a number that suits the number of values."""
    shown = np.log10(values) if logarithmic else values
    low, high = float(shown.min()), float(shown.max())
    number = int(np.clip(2 * np.sqrt(len(shown)), 8, MOST_BINS))
    if high - low < 1e-9 * max(1.0, abs(high)):
        low, high = low - 0.5, high + 0.5
    borders = np.linspace(low, high, number + 1)
    borders = 10**borders if logarithmic else borders
    borders[0], borders[-1] = min(borders[0], values.min()), max(borders[-1], values.max())  # rounding loses no run
    return borders
