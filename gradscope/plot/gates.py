"""Saturation of gates and units."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from gradscope.errors import GradscopeError
from gradscope.plot import data, style
from gradscope.plot.data import Layer, Steps

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from gradscope.record import RunData

MARKERS = "osD^v"


def gates(
    run: RunData,
    over: Literal["t", "step"] = "t",
    *,
    layer: Layer = None,
    step: Steps = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw the share of a layer's units at their upper limit (upwards) and at their lower one (downwards), by gate.

    `over="t"` draws them by timestep, `over="step"` over the whole training, where `step` has no effect.
    """
    if over not in ("t", "step"):
        raise GradscopeError(f"over={over!r}: expected 't', by timestep, or 'step', over training")
    ax = style.axes(ax, "Saturated units" if over == "t" else "Saturated units over training")
    key = data.one(run, layer)
    frame = None if key is None else data.saturated(run, key, over, step)
    if frame is None or not frame["high"].notna().any():
        return style.message(ax, "these steps have no records of gates")
    names = list(dict.fromkeys(frame["gate"]))
    for gate, colour in zip(names, style.colours(len(names)), strict=True):
        rows = frame[frame["gate"] == gate].sort_values(over)
        marker = style.mark_lonely(rows["high"].to_numpy(float))
        ax.plot(rows[over], rows["high"], color=colour, label=gate, linewidth=1.6, marker=marker)
        ax.plot(rows[over], -rows["low"], color=colour, linewidth=1.6, marker=marker)
    _mirrored(ax)
    style.legend(ax, ncols=2 if len(names) > 2 else 1)
    ax.set(xlabel="timestep t", ylabel="at the lower | upper limit")
    (style.whole if over == "t" else style.training)(ax.xaxis, frame[over])
    return ax


def _mirrored(ax: Axes) -> None:
    """Set the axis for shares upwards and downwards from a line in the middle."""
    ax.axhline(0, color=style.muted(), linewidth=0.9)
    ax.set_ylim(-1.03, 1.03)
    ax.set_yticks([-1, -0.5, 0, 0.5, 1], ["100%", "50%", "0", "50%", "100%"])
    ax.margins(x=0.01)


def saturation(run: RunData, *, layer: Layer = None, step: Steps = None, ax: Axes | None = None) -> Axes:
    """Draw each unit of a layer by its share of time at the lower and at the upper limit (Karpathy et al. 2015).

    Units near the diagonal are always saturated, at one limit or the other; units in the lower left corner never are.
    """
    ax = style.axes(ax, "Units at their limits")
    key = data.one(run, layer)
    frame = None if key is None else data.units(run, key, step)
    if frame is None or not frame["high"].notna().any():
        return style.message(ax, "these steps have no records of units")
    names = list(dict.fromkeys(frame["gate"]))
    for gate, colour, marker in zip(names, style.colours(len(names)), MARKERS, strict=False):
        rows = frame[frame["gate"] == gate]
        many: dict[str, Any] = {"rasterized": len(rows) > 300}
        ax.plot(rows["low"], rows["high"], marker, color=colour, label=gate, alpha=0.65, markersize=4, mew=0, **many)
    ax.plot([0, 1], [1, 0], color=style.muted(), linewidth=0.9, linestyle=(0, (4, 3)), zorder=1)
    ax.set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.03), xticks=[0, 0.5, 1], yticks=[0, 0.5, 1], aspect="equal")
    ax.set(xlabel="share of time at the lower limit", ylabel="at the upper limit")
    style.legend(ax, loc="upper right")
    return ax
