"""The loss over training."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from gradscope.plot import data, style
from gradscope.plot.data import Frame

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from gradscope.record import RunData

FAR = 10.0
"""The axis is logarithmic if the running median falls by this factor and nothing is negative."""


def loss(run: RunData, *, ax: Axes | None = None, **line: Any) -> Axes:
    """Draw the loss of every optimizer step, faint, with its running median, and a tick for every recorded step.

    Runs of more than a thousand steps appear in bins: their medians, and a band from the 10th to the 90th percentile. A
    curve with a `label`, for several curves in the same axes, is the running median alone.
    """
    ax = style.axes(ax, "Loss")
    frame = data.losses(run)
    bins = data.binned_losses(frame)
    if not bins["running"].notna().any():
        return style.message(ax, "the run has no loss", line)
    (colour,) = style.colours(1)
    running = bins["running"].to_numpy()
    mark = "." if len(bins) < data.CALM else style.mark_lonely(running)
    look: dict[str, Any] = {"color": colour, "linewidth": 1.8, "marker": mark, **line}
    (drawn,) = ax.plot(bins["step"], running, **look)
    alone = "label" not in line
    if alone:
        _points(ax, bins, drawn.get_color())
    _scale(ax)
    if alone:
        style.mark_nonfinite(ax, bins.loc[bins["nonfinite"] > 0, "step"])
        _ticks(ax, run)
    style.legend(ax)
    ax.margins(x=0.01)
    style.whole(ax.xaxis, np.concatenate([line.get_xdata() for line in ax.get_lines()]))
    ax.set(xlabel="training step (ticks: recorded)" if alone else "training step", ylabel="loss")
    return ax


def _points(ax: Axes, bins: Frame, colour: Any) -> None:
    """Draw the losses behind their running median: every step, or the median of its bin and a band."""
    many: dict[str, Any] = {"rasterized": len(bins) > 300}
    ax.plot(bins["step"], bins["loss"], ".", color=colour, alpha=0.35, markersize=4, mew=0, gid="points", **many)
    if bins["steps"].max() > 1:
        ax.fill_between(bins["step"], bins["p10"], bins["p90"], color=colour, alpha=0.18, linewidth=0)


def _ticks(ax: Axes, run: RunData) -> None:
    """Draw a tick for every recorded step at the lower edge; ticks too close for the eye are one."""
    steps = np.unique(run.source.read("steps", {"recorded": True}, ["step"])["step"].to_numpy())
    if len(steps):
        width = max(1, (steps[-1] - steps[0]) // data.MAX_POINTS)
        where = ax.get_xaxis_transform()
        ax.vlines(np.unique(steps // width * width), 0, 0.035, color=style.muted(), linewidth=0.7, transform=where)


def _scale(ax: Axes) -> None:
    """Set a logarithmic axis if the loss falls far, and limits for all but the oddest points."""
    values = {line: np.asarray(line.get_ydata(), float) for line in ax.get_lines() if line.get_gid() != "marks"}
    running = np.concatenate([losses for line, losses in values.items() if line.get_gid() != "points"])
    points = np.concatenate([losses for line, losses in values.items() if line.get_gid() == "points"] or [running])
    shown = np.r_[np.nanquantile(points, [0.01, 0.99]), np.nanmin(running), np.nanmax(running)]
    low, high = float(shown.min()), float(shown.max())
    if np.nanmin(points) > 0 and np.nanmax(running) >= FAR * np.nanmin(running) > 0:
        style.logarithmic(ax.yaxis, np.array([low, high]))
        ax.set_ylim(low * (low / high) ** 0.06, high * (high / low) ** 0.06)
    elif high > low:
        ax.set_ylim(low - 0.06 * (high - low), high + 0.06 * (high - low))
