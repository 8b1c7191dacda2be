"""The curves of `reach` as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from gradscope.demo.summary import Summary
from gradscope.demo.training import CELLS, CLIPPINGS
from gradscope.types import HORIZON_SHARE

LINES = dict(zip(CLIPPINGS, ("-", "--"), strict=True))


def save(summaries: Sequence[Summary], path: Path) -> None:
    """Draw the reach of every trial: colour by cell, dashes by clipping, a band from the 10th to the 90th percentile.

    Raises:
        ModuleNotFoundError: matplotlib or seaborn is not installed.
    """
    import seaborn
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    colours = dict(zip(CELLS, seaborn.color_palette("colorblind"), strict=False))
    with seaborn.axes_style("whitegrid", {"grid.color": "0.9"}), seaborn.plotting_context("notebook"):
        figure = Figure(figsize=(10, 4.5), dpi=150, layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots()
        for summary in summaries:
            reach = next(iter(summary.layers.values())).reach
            colour, style = colours[summary.trial.cell], LINES[summary.trial.clipping]
            axes.fill_between(reach.index, reach["p10"], reach["p90"], color=colour, alpha=0.12, linewidth=0)
            axes.plot(reach.index, reach["p50"], style, color=colour, linewidth=2, label=summary.trial.title)
        axes.axhline(HORIZON_SHARE, color="0.35", linewidth=1, linestyle=(0, (1, 2)))
        axes.set(yscale="log", xlabel="steps back", ylabel="share of the loss gradient left (reach)", xmargin=0)
        axes.set_title("How far back the loss gradient reaches", loc="left")
        figure.legend(frameon=False, loc="outside right upper")
        seaborn.despine(figure)
        figure.savefig(path)
