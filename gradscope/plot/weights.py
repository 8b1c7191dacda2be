"""The recurrent weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from gradscope.plot import data, style
from gradscope.plot.data import Layer, Steps

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from gradscope.record import RunData


def updates(run: RunData, *, layer: Layer = None, ax: Axes | None = None) -> Axes:
    """Draw the change of one layer's recurrent blocks by each recorded step, relative to the norm of the block."""
    ax = style.axes(ax, "Updates of the recurrent weights")
    key = data.one(run, layer)
    frame = None if key is None else data.updates(run, key)
    if frame is None or not style.drawable(frame["update"]):
        return style.message(ax, "the run has no update of the weights")
    names = list(dict.fromkeys(frame["gate"]))
    for gate, colour in zip(names, style.colours(len(names)), strict=True):
        rows = frame[frame["gate"] == gate].sort_values("step")
        sizes = style.positive(rows["update"])
        ax.plot(rows["step"], sizes, color=colour, label=gate, linewidth=1.6, marker=style.mark_lonely(sizes))
    style.logarithmic(ax.yaxis, frame["update"].to_numpy())
    style.legend(ax)
    ax.margins(x=0.01)
    style.training(ax.xaxis, frame["step"])
    ax.set(ylabel="norm of the change / norm of the block")
    return ax


def spectra(run: RunData, *, layer: Layer = None, step: Steps = None, ax: Axes | None = None) -> Axes:
    """Draw the eigenvalues of one layer's recurrent blocks in the complex plane, with the unit circle.

    `attach(..., quantities="full")` records them. The figure shows the last step alone.
    """
    ax = style.axes(ax, "Eigenvalues of the recurrent weights")
    key = data.one(run, layer)
    frame = None if key is None else data.eigenvalues(run, key, step)
    if frame is None or not frame["real"].notna().any():
        return style.message(ax, 'no eigenvalues: attach with quantities="full"')
    names = list(dict.fromkeys(frame["gate"]))
    for gate, colour in zip(names, style.colours(len(names)), strict=True):
        rows = frame[frame["gate"] == gate]
        many: dict[str, Any] = {"rasterized": len(rows) > 300}
        named: dict[str, Any] = {"label": gate} if len(names) > 1 else {}
        ax.plot(rows["real"], rows["imag"], "o", color=colour, alpha=0.7, markersize=4, mew=0, **named, **many)
    angle = np.linspace(0, 2 * np.pi, 181)
    ax.plot(np.cos(angle), np.sin(angle), color=style.muted(), linewidth=0.9, linestyle=(0, (4, 3)), zorder=1)
    ax.set(aspect="equal", xlabel="real part", ylabel="imaginary part")
    style.legend(ax, handletextpad=0.1)
    return ax
