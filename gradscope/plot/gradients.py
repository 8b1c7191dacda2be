"""Gradients and Jacobians: over timesteps, over lags, and over training."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from gradscope.plot import data, style
from gradscope.plot.data import Frame, Layer, Steps
from gradscope.types import HORIZON_SHARE, in_short

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from gradscope.record import RunData

JACOBIANS = {
    "jacobian": "whole state",
    "jacobian_h": "h alone",
    "jacobian_c": "along the cell",
    "jacobian_max": "largest singular value",
}

FEW = 64
"""Largest number of points that are drawn large."""


def timesteps(
    run: RunData,
    quantity: str = "grad_h",
    *,
    layer: Layer = None,
    step: Steps = None,
    ax: Axes | None = None,
    **line: Any,
) -> Axes:
    """Draw a quantity of the table `timesteps` for each layer, by timestep.

    A line is the median over the sequences, its band reaches from the 10th to the 90th percentile.
    """
    ax = style.axes(ax, style.TITLES.get(quantity, quantity))
    keys = data.chosen(run, layer)
    frames = {in_short(key): data.spread(run, key, quantity, step) for key in keys}
    level = 1.0 if quantity in (*JACOBIANS, "gain") else None
    if not _curves(ax, frames, "t", line, level):
        return style.message(ax, f"no positive finite {quantity} at these steps", line)
    if level:
        style.reference(ax, level)
    ax.set(xlabel="timestep t", ylabel=style.UNITS.get(quantity, quantity))
    return ax


def reach(run: RunData, *, layer: Layer = None, step: Steps = None, ax: Axes | None = None, **line: Any) -> Axes:
    """Draw the share of the loss gradient left by steps back, for each layer, and the line of the horizon."""
    ax = style.axes(ax, "Reach of the loss gradient")
    frames = {in_short(key): data.reached(run, key, step) for key in data.chosen(run, layer)}
    if not _curves(ax, frames, "lag", line, HORIZON_SHARE):
        return style.message(ax, "no positive finite reach at these steps", line)
    style.reference(ax, HORIZON_SHARE, "horizon")
    ax.set(xlabel="steps back", ylabel="share of the gradient left")
    return ax


def jacobians(run: RunData, *, layer: Layer = None, step: Steps = None, ax: Axes | None = None) -> Axes:
    """Draw the sizes of one layer's Jacobians by timestep; at the line of 1 a gradient keeps its size.

    Their product, the gain, spans many more decades: `timesteps(run, "gain")` draws it.
    """
    ax = style.axes(ax, "Jacobians")
    key = data.one(run, layer)
    frames = {} if key is None else {label: data.spread(run, key, name, step) for name, label in JACOBIANS.items()}
    if "h alone" in frames and frames["h alone"].equals(frames["whole state"]):
        del frames["h alone"]  # without a cell, they are the same
    if not _curves(ax, frames, "t", {}, 1.0):
        return style.message(ax, "these steps have no records of Jacobians")
    style.reference(ax, 1)
    ax.set(xlabel="timestep t", ylabel="size of ds(t)/ds(t-1)")
    return ax


def _curves(ax: Axes, frames: dict[str, Frame], over: str, line: dict[str, Any], level: float | None) -> bool:
    """Draw a curve and its band for every frame with positive finite values; returns False if there is none.

    The axis includes the reference `level`.
    """
    shown = {name: frame for name, frame in frames.items() if style.drawable(frame["p50"])}
    if not shown:
        return False
    for (name, frame), colour in zip(shown.items(), style.colours(len(shown)), strict=True):
        named = {"label": name} if len(shown) > 1 else {}
        _curve(ax, frame, over, {"color": colour, **named, **line})
    drawn = [np.asarray(line.get_ydata(), float) for line in ax.get_lines()]
    style.logarithmic(ax.yaxis, np.concatenate([*drawn, [level or np.nan]]))
    style.mark_nonfinite(ax, sorted({at for frame in shown.values() for at in frame.loc[frame["nonfinite"] > 0, over]}))
    style.legend(ax)
    ax.margins(x=0.01)
    style.whole(ax.xaxis, np.concatenate([frame[over] for frame in shown.values()]))
    return True


def _curve(ax: Axes, frame: Frame, over: str, line: dict[str, Any]) -> None:
    low, middle, high = (style.positive(frame[name]) for name in data.QUANTILES)
    look: dict[str, Any] = {"linewidth": 1.8, "marker": style.mark_lonely(middle), **line}
    (drawn,) = ax.plot(frame[over], middle, **look)
    floor = np.where(np.isnan(low), middle, low)  # a tenth percentile of 0 lies below any logarithmic axis
    ax.fill_between(frame[over], floor, high, color=drawn.get_color(), alpha=0.18, linewidth=0)


def heatmap(run: RunData, quantity: str = "grad_h", *, layer: Layer = None, ax: Axes | None = None) -> Axes:
    """Draw a quantity of one layer over timesteps and training: log10 of the median, recorded steps x timesteps.

    The quantity is one of the table `timesteps`; cells without a positive finite value stay empty. The figure gets a
    colour bar beside the axes.
    """
    ax = style.axes(ax, f"{style.TITLES.get(quantity, quantity)} over training")
    key = data.one(run, layer)
    cells = None if key is None else data.over_training(run, key, quantity)
    if cells is None or not style.drawable(cells):
        return style.message(ax, f"the run has no positive finite {quantity}")
    levels = np.log10(style.positive(cells))
    borders = style.edges(cells.columns.to_numpy()), style.edges(cells.index.to_numpy())
    mesh = ax.pcolormesh(*borders, np.ma.masked_invalid(levels), cmap="viridis", rasterized=True)
    bar = ax.figure.colorbar(mesh, ax=ax, pad=0.02)
    bar.outline.set_visible(False)  # type: ignore[operator]
    bar.set_label(f"log10 {style.UNITS.get(quantity, quantity)}")
    ax.grid(False)
    style.whole(ax.xaxis, cells.columns)
    style.training(ax.yaxis, cells.index)
    ax.autoscale_view()  # to the borders of the cells
    ax.set_xlabel("timestep t")
    return ax


def horizon(run: RunData, *, layer: Layer = None, ax: Axes | None = None, **line: Any) -> Axes:
    """Draw each layer's horizon over training; a hollow point: the gradient reaches further back than the sequence."""
    ax = style.axes(ax, "Horizon over training")
    frames = {in_short(key): data.horizons(run, key) for key in data.chosen(run, layer)}
    frames = {name: frame for name, frame in frames.items() if frame["horizon"].notna().any()}
    if not frames:
        return style.message(ax, "the run has no horizon", line)
    for (name, frame), colour in zip(frames.items(), style.colours(len(frames)), strict=True):
        named = {"label": name} if len(frames) > 1 else {}
        look: dict[str, Any] = {"color": colour, "linewidth": 1.4, **named, **line}
        (drawn,) = ax.plot(frame["step"], frame["horizon"], **look)
        beyond, size = frame["horizon_censored"], 4 if len(frame) <= FEW else 2
        for rows, face in ((frame[~beyond], drawn.get_color()), (frame[beyond], "none")):
            ax.plot(rows["step"], rows["horizon"], "o", color=drawn.get_color(), markerfacecolor=face, markersize=size)
    style.whole(ax.yaxis)
    ax.set_ylim(0, 1.06 * max(1.0, *(float(np.nanmax(line.get_ydata(), initial=0)) for line in ax.get_lines())))
    style.legend(ax)
    style.training(ax.xaxis, np.concatenate([line.get_xdata() for line in ax.get_lines()]))
    ax.set(ylabel="steps back to 1/1000 (○: beyond)")
    return ax
