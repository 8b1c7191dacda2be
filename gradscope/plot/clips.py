"""The effect of clipping, and of other thresholds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from gradscope.plot import data, style
from gradscope.plot.data import Frame

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from gradscope.record import RunData


def clipping(run: RunData, *, ax: Axes | None = None) -> Axes:
    """Draw the gradient norm before and after every clipping call, with the threshold.

    If nothing clips, the figure shows the norm of the recurrent layers' gradients. Runs of more than a thousand steps
    appear in bins: the median, and a band from the 10th to the 90th percentile.
    """
    ax = style.axes(ax, "Gradient norm before and after clipping")
    frame = data.norms(run)
    if not style.drawable(frame["before"]):
        return style.message(ax, "the run has no positive finite gradient norm")
    clips = bool(frame["kind"].iloc[0])
    if not clips:
        ax.set_title("Gradient norm (nothing clips)", loc="left")
    before, after = style.colours(2)
    bins = data.binned_norms(frame)
    _norms(ax, bins, "before", before, "before" if clips else "")
    if len(bins) < len(frame):
        low, high = style.positive(bins["p10"]), style.positive(bins["p90"])
        ax.fill_between(bins["step"], low, high, color=before, alpha=0.18, linewidth=0)
    if clips:
        _norms(ax, bins, "after", after, "after")
        _thresholds(ax, frame)
    style.logarithmic(ax.yaxis, frame[["before", "after"]].to_numpy().ravel())
    style.legend(ax)
    ax.margins(x=0.01)
    style.whole(ax.xaxis, bins["step"])
    ax.set(xlabel="training step", ylabel="norm of the gradient")
    return ax


def _norms(ax: Axes, frame: Frame, column: str, colour: str, name: str) -> None:
    values = style.positive(frame[column])
    named: dict[str, Any] = {"label": name} if name else {}
    ax.plot(frame["step"], values, color=colour, linewidth=1.2, marker=style.mark_lonely(values), **named)


def _thresholds(ax: Axes, frame: Frame) -> None:
    """Draw the threshold of clipping by norm; thresholds of clipping by value are no norms."""
    limits = frame[frame["kind"] == "norm"].groupby("step")["threshold"].median()
    if len(set(limits)) == 1:
        level = float(limits.iloc[0])
        ax.axhline(level, color=style.muted(), linestyle=(0, (4, 3)), linewidth=0.9, label=f"threshold {level:g}")
    elif len(limits):
        ax.plot(limits.index, limits, color=style.muted(), linestyle=(0, (4, 3)), linewidth=0.9, label="threshold")


def thresholds(run: RunData, *, ax: Axes | None = None, **line: Any) -> Axes:
    """Draw the share of gradients that clipping by norm would have changed, for every threshold."""
    ax = style.axes(ax, "What other thresholds would have clipped")
    curve = data.would_clip(run)
    if curve.empty:
        return style.message(ax, "the run has no positive finite gradient norm", line)
    (colour,) = style.colours(1)
    first = curve["threshold"].iloc[0] * 0.8
    x, y = np.r_[first, curve["threshold"]], np.r_[1.0, curve["share"]]
    look: dict[str, Any] = {"color": colour, "linewidth": 1.8, "drawstyle": "steps-post", **line}
    (drawn,) = ax.plot(x, y, **look)
    frame = data.norms(run)
    for limit in sorted(set(frame.loc[frame["kind"] == "norm", "threshold"].dropna()))[:3]:
        tint = drawn.get_color() if "label" in line else style.muted()
        ax.axvline(limit, color=tint, linewidth=0.9, linestyle=(0, (4, 3)))
        ax.text(limit, 0.98, f" {limit:g}", transform=ax.get_xaxis_transform(), va="top", fontsize="small")
    style.logarithmic(ax.xaxis, np.concatenate([np.asarray(line.get_xdata(), float) for line in ax.get_lines()]))
    style.legend(ax)
    ax.set(ylim=(-0.03, 1.03), xlabel="threshold (max_norm)", ylabel="share of steps clipped")
    ax.set_yticks([0, 0.5, 1], ["0", "50%", "100%"])
    return ax
