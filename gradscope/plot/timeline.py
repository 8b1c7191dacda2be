"""Loss, horizon and findings over one axis of training steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from gradscope.errors import GradscopeError
from gradscope.plot import data, style
from gradscope.plot.gradients import horizon
from gradscope.plot.loss import loss
from gradscope.types import LATE, Finding, LayerKey, in_short

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from gradscope.plot.data import Layer
    from gradscope.record import RunData

LAYERS, FINDINGS = 6, 5
"""Largest numbers of layers and findings."""
HORIZON, STRIP = 0.62, 0.17
"""Heights of the horizon and of each finding, relative to the loss."""
RISEN = 0.1
"""A loss has turned if it rises again by this share of its fall."""


def timeline(run: RunData, findings: Sequence[Finding] = (), *, layer: Layer = None, ax: Axes | None = None) -> Axes:
    """Draw loss, horizon and findings one below the other over the same steps.

    A ring marks the lowest point of a loss that has risen again. The figure shows at most six layers, with the shortest
    horizons, and five findings, at their steps. The axes belong to a grid, as from `plt.subplots()`; the figure divides
    their place, and they become the uppermost.

    Raises:
        GradscopeError: the run has no such layer, or the axes belong to no grid.
    """
    ax = style.axes(ax)
    panels = _panels(run, findings, layer)
    if not panels:
        return style.message(ax, "the run has no records")
    shown = _divide(ax, [height for _, height in panels])
    for place, (draw, _) in zip(shown, panels, strict=True):
        draw(place)
    _share(shown, run)
    ax.set_title("Loss, horizon and findings", loc="left")
    return ax


def _panels(run: RunData, findings: Sequence[Finding], layer: Layer) -> list[tuple[Callable[[Axes], object], float]]:
    """Return the function that draws each part, and its height."""
    drawn = [finding for finding in findings if finding.code != "healthy" and finding.evidence.get("steps")][:FINDINGS]
    keys = _shortest(run, data.chosen(run, layer))
    panels: list[tuple[Callable[[Axes], object], float]] = []
    if (data.losses(run)["nonfinite"] == 0).any():
        panels.append((lambda ax: _loss(ax, run), 1.0))
    if keys:
        panels.append((lambda ax: _horizons(ax, run, keys), HORIZON))
    return [*panels, (lambda ax: _strips(ax, drawn), STRIP * len(drawn))] if drawn and panels else panels


def _shortest(run: RunData, keys: Sequence[LayerKey]) -> list[LayerKey]:
    """Return the layers with the shortest last horizons, in their order."""
    last = {key: data.horizons(run, key)["horizon"].dropna().tail(LATE).median() for key in keys}
    known = sorted((key for key in keys if np.isfinite(last[key])), key=lambda key: last[key])[:LAYERS]
    return [key for key in keys if key in known]


def _divide(ax: Axes, heights: Sequence[float]) -> list[Axes]:
    """Divide the place of the axes between them and new axes below."""
    place, figure = ax.get_subplotspec(), ax.get_figure()
    if place is None or figure is None:
        raise GradscopeError("timeline divides a place of a grid; pass axes from plt.subplots() or add_subplot()")
    grid = place.subgridspec(len(heights), 1, height_ratios=heights)
    ax.set_subplotspec(grid[0])
    return [ax, *(figure.add_subplot(grid[row], sharex=ax) for row in range(1, len(heights)))]


def _loss(ax: Axes, run: RunData) -> None:
    loss(run, ax=ax)
    bins = data.binned_losses(data.losses(run))
    running = bins["running"].to_numpy(float)
    known = running[np.isfinite(running)]
    lowest = int(np.nanargmin(running))
    if known[-1] - running[lowest] > RISEN * (known[0] - running[lowest]) > 0:
        look: dict[str, Any] = {"color": ax.get_lines()[0].get_color(), "markerfacecolor": "none", "markersize": 8}
        ax.plot(bins["step"].iloc[lowest], running[lowest], "o", label="lowest", **look)
        style.legend(ax)


def _horizons(ax: Axes, run: RunData, keys: Sequence[LayerKey]) -> None:
    for key, colour in zip(keys, style.colours(len(keys)), strict=True):
        horizon(run, layer=key, ax=ax, color=colour, **({"label": in_short(key)} if len(keys) > 1 else {}))
    style.legend(ax, loc="upper left", bbox_to_anchor=(1, 1.1))
    ax.set_title("", loc="left")
    ax.set_ylabel("horizon")


def _strips(ax: Axes, findings: Sequence[Finding]) -> None:
    """Draw a line over the steps of each finding."""
    ends = ax.get_xlim()
    for row, finding in enumerate(findings):
        first, last = finding.evidence["steps"][0], finding.evidence["steps"][-1]
        tint, late = style.severity(finding.severity), first - ends[0] > 0.7 * (ends[1] - ends[0])
        ax.plot([first, last], [-row, -row], color=tint, linewidth=3, marker="|", markersize=7)
        text = finding.code.replace("_", " ")
        place: dict[str, Any] = {"xytext": (0, 3), "textcoords": "offset points", "ha": "right" if late else "left"}
        ax.annotate(text, (last if late else first, -row), va="bottom", fontsize="small", color=tint, **place)
    ax.set(ylim=(-len(findings) + 0.6, 0.9), yticks=[])
    ax.grid(False, axis="y")
    ax.spines["left"].set_visible(False)


def _share(shown: Sequence[Axes], run: RunData) -> None:
    """Set one axis of all steps, with labels at the bottom only."""
    steps = np.concatenate([run.source.read(table, None, ["step"])["step"] for table in ("steps", "layers")])
    ends = float(steps.min()), float(steps.max())
    margin = 0.01 * (ends[1] - ends[0]) or 1.0
    shown[0].set_xscale("linear")
    style.whole(shown[0].xaxis, ends)
    shown[0].set_xlim(ends[0] - margin, ends[1] + margin)
    for ax in shown:
        ax.tick_params(labelbottom=ax is shown[-1])
        ax.set_xlabel("training step (ticks: recorded)" if ax is shown[-1] else "")
