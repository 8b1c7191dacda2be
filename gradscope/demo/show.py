"""The demo's output on the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from math import isnan

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from gradscope.demo.summary import Horizon, Summary, sentence
from gradscope.demo.training import CELLS
from gradscope.report.chart import ASCII, BRAILLE, COLOURS, Curve, draw

LEGEND = {
    "clipping": "kind of clipping, and the share of steps whose gradients it changed",
    "horizon": "steps until 1/1000 of the loss gradient is left, before and after",
    "decay": "decades that the loss gradient gains (+) or loses (-) per step back",
    "saturated": "the most saturated gate, and its share of units and steps at a limit",
    "cost": "gradscope's own share of the training time",
}


def progress(console: Console) -> Progress:
    """Make a progress bar of epochs per trial."""
    columns = (TextColumn("{task.description:<23}"), BarColumn(32), MofNCompleteColumn(), TextColumn("epochs"))
    return Progress(*columns, TimeElapsedColumn(), console=console)


def show(summaries: Sequence[Summary], console: Console) -> None:
    """Print the table, the meanings of its columns, a sentence per layer, and the chart."""
    plain = console.options.ascii_only
    console.print("", _table(summaries, plain), "", sep="\n")
    for name, meaning in LEGEND.items():
        console.print(Text(f"{name:<11}{meaning}", "dim"))
    for summary in summaries:
        for name, layer in summary.layers.items():
            title = summary.trial.title if len(summary.layers) == 1 else f"{summary.trial.title}, {name}"
            loss = f"loss {summary.loss}; " if summary.loss else ""
            console.print(Text.assemble("\n", (title, f"bold {_colour(summary)}"), f": {loss}{sentence(layer)}"))
    clipping = summaries[0].trial.clipping
    console.print(Text(f"\nReach: the share of the loss gradient left, clipping by {clipping}", "bold"))
    curves = [_curve(summary) for summary in summaries if summary.trial.clipping == clipping]
    console.print(draw(curves, ASCII if plain else BRAILLE), soft_wrap=True)


def _table(summaries: Sequence[Summary], plain: bool) -> Table:
    table = Table(box=None, padding=(0, 3, 0, 0), pad_edge=False, header_style="bold")
    for name in ("cell", "clipping", "accuracy", "horizon", "decay", "saturated", "cost"):
        table.add_column(name, justify="left" if name in ("cell", "saturated") else "right", no_wrap=True)
    for summary in summaries:
        for layer in summary.layers.values():
            table.add_row(
                Text(summary.trial.cell.upper(), _colour(summary)),
                f"{summary.trial.clipping} {summary.clipped:>4.0%}",
                f"{summary.accuracy:.1%}",
                f" {'->' if plain else '→'} ".join(_lags(end, plain) for end in (layer.before, layer.after) if end),
                f"{layer.decay:+.3f}",
                f"{layer.gate} {layer.saturated:.0%}",
                f"{summary.overhead:.1%}",
            )
    return table


def _lags(horizon: Horizon, plain: bool) -> str:
    at_least = (">=" if plain else "≥") if horizon.censored else ""
    return "?" if isnan(horizon.lag) else f"{at_least}{horizon.lag:.0f}"


def _colour(summary: Summary) -> str:
    return COLOURS[list(CELLS).index(summary.trial.cell)]


def _curve(summary: Summary) -> Curve:
    layer = next(iter(summary.layers.values()))
    return Curve(summary.trial.cell.upper(), _colour(summary), layer.reach["p50"].tolist())
