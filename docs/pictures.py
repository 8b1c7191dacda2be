"""Draws the pictures of the documentation, from trainings that gradscope watches: `make pictures`.

Everything is seeded and takes about three minutes on one core. `--only NAME` draws one of them, `--tell` prints what
`run.findings()` says of each training beside.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import seaborn
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn import functional as F

import gradscope
from gradscope import cells, plot
from gradscope.demo.tasks import digits
from gradscope.demo.training import BATCH, LEARNING_RATE, Classifier

OUT = Path(__file__).parent / "images"
STYLE = {"grid.color": "0.92", "axes.edgecolor": "0.7"}


# --- the picture of the README: handwritten digits, read pixel by pixel


def watch_digits(cell: str, epochs: int = 8) -> gradscope.Run:
    """Train as `gradscope demo` does, clipping by value, with a record of every eighth step."""
    torch.manual_seed(0)
    x, y, *_ = digits(0)
    model = Classifier(cell)
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)
    with gradscope.attach(model, every=8) as scope:
        for _ in range(epochs):
            for batch in torch.randperm(len(x)).split(BATCH):
                optimizer.zero_grad()
                F.cross_entropy(model(x[batch]), y[batch]).backward()
                nn.utils.clip_grad_value_(model.parameters(), 0.1)
                optimizer.step()
    return scope.run


def gradient_over_pixels() -> Figure:
    """The gradient's norm over pixels and training: an RNN's and an LSTM's, in the same colours."""
    runs = {"RNN": watch_digits("rnn"), "LSTM": watch_digits("lstm")}
    figure = Figure(figsize=(10, 3.9), dpi=110, layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    for ax, (name, run) in zip(axes, runs.items(), strict=True):
        frame = run.frame("timesteps", quantity="grad_h").pivot_table(index="step", columns="t", values="p50")
        levels = np.log10(frame.to_numpy().clip(1e-12))
        mesh = ax.pcolormesh(frame.columns, frame.index, levels, cmap="viridis", vmin=-8, vmax=-1, rasterized=True)
        ax.set_title(f"{name}: gradient that reaches each pixel", loc="left")
        ax.set(xlabel="pixel (the loss is after the last)")
        ax.grid(False)
    axes[0].set_ylabel("training step")
    bar = figure.colorbar(mesh, ax=axes, pad=0.01, extend="both")
    bar.set_ticks([-8, -6, -4, -2], labels=["10⁻⁸", "10⁻⁶", "10⁻⁴", "10⁻²"])
    bar.outline.set_visible(False)
    bar.set_label("norm of dL/dh (median)")
    return figure


# --- one small task, and what can be wrong with its training

LAG, CLASSES, SIZE, STEPS = 40, 4, 24, 240


class Recall(nn.Module):
    """Name, after the last step, what the first one was (Bengio, Simard & Frasconi 1994)."""

    def __init__(self, rnn: nn.Module) -> None:
        super().__init__()
        self.rnn, self.read = rnn, nn.Linear(SIZE, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Scores, [B, CLASSES]."""
        return self.read(self.rnn(x)[0][-1])


class Case(NamedTuple):
    """One training: the layer, the optimizer's learning rate, and the clipping threshold."""

    make: Callable[[], nn.Module]
    rate: float = 0.003
    max_norm: float | None = 1.0
    optimizer: type[torch.optim.Optimizer] = torch.optim.Adam


@torch.no_grad()
def scaled(rnn: nn.RNNBase, factor: float) -> nn.RNNBase:
    """The layer with larger or smaller recurrent weights."""
    for name, weight in rnn.named_parameters():
        if "weight_hh" in name:
            weight.mul_(factor)
    return rnn


@torch.no_grad()
def biased(rnn: nn.RNNBase, value: float) -> nn.RNNBase:
    """The layer with one bias for all its units."""
    rnn.bias_ih_l0.fill_(value)
    return rnn


CASES = {
    "healthy": Case(lambda: cells.forget_bias_(nn.LSTM(CLASSES, SIZE), 3.0)),
    "vanishing": Case(lambda: scaled(nn.RNN(CLASSES, SIZE), 0.5)),
    "exploding": Case(lambda: scaled(nn.RNN(CLASSES, SIZE), 5.0), max_norm=None),
    "saturated": Case(lambda: cells.forget_bias_(nn.LSTM(CLASSES, SIZE), -6.0)),
    "dead": Case(lambda: biased(nn.RNN(CLASSES, SIZE, nonlinearity="relu"), -3.0)),
    "clipped": Case(lambda: cells.forget_bias_(nn.LSTM(CLASSES, SIZE), 3.0), 0.1, 1e-4, torch.optim.SGD),
}


def watch(case: Case) -> gradscope.Run:
    """Train on the small task."""
    torch.manual_seed(0)
    model = Recall(case.make())
    optimizer = case.optimizer(model.parameters(), lr=case.rate)
    with gradscope.attach(model, every=4) as scope:
        for _ in range(STEPS):
            x, y = torch.randn(LAG + 1, 32, CLASSES) * 0.3, torch.randint(0, CLASSES, (32,))
            x[0] = F.one_hot(y, CLASSES)
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            if case.max_norm:
                nn.utils.clip_grad_norm_(model.parameters(), case.max_norm)
            optimizer.step()
    return scope.run


def four_views(run: gradscope.Run) -> Figure:
    """What a report shows of a layer first."""
    figure = Figure(figsize=(10, 5.6), dpi=90, layout="constrained")
    places = figure.subplots(2, 2)
    plot.heatmap(run, ax=places[0, 0])
    plot.reach(run, step=0, ax=places[0, 1], label="first record")
    plot.reach(run, ax=places[0, 1], label="last records", color="C1")
    plot.gates(run, "step", ax=places[1, 0])
    plot.clipping(run, ax=places[1, 1])
    for ax in places[0, :2]:
        ax.set_title(ax.get_title(loc="left"), loc="left")
    return figure


# --- the story of the mathematics


def pair() -> tuple[Figure, Any, Any, list[Any]]:
    """A figure, two axes side by side, and four colours."""
    figure = Figure(figsize=(10, 3.6), dpi=90, layout="constrained")
    left, right = figure.subplots(1, 2)
    return figure, left, right, seaborn.color_palette("colorblind", 4)


def powers() -> Figure:
    """|lambda|^k: the reach of linear networks whose eigenvalues all have one modulus."""
    figure, left, right, palette = pair()
    for modulus, colour in zip((0.8, 0.95, 1.0, 1.1), palette, strict=True):
        torch.manual_seed(0)
        model = cells.orthogonal_(cells.Recurrent(cells.LinearCell, 2, 16))
        model.cells[0].weight_hh.data.mul_(modulus)
        with gradscope.attach(model, every=1, quantities="full") as scope:
            model(torch.randn(60, 8, 2))[0][-1].sum().backward()
        plot.reach(scope.run, ax=left, color=colour, label=f"|λ| = {modulus:g}")
        plot.spectra(scope.run, ax=right)
        for line in right.get_lines()[-2:-1]:
            line.set_color(colour)
    left.set_title("Share of the gradient left after k steps: |λ| to the k", loc="left")
    right.set_title("The eigenvalues, and the unit circle", loc="left")
    return figure


def carousel() -> Figure:
    """The cell path of an LSTM: the same network with its forget gate at 0.5, 0.73, 0.95 and 0.993."""
    figure, left, right, palette = pair()
    for bias, colour in zip((0.0, 1.0, 3.0, 5.0), palette, strict=True):
        torch.manual_seed(0)
        model = cells.forget_bias_(nn.LSTM(2, 24), bias)
        with gradscope.attach(model, every=1) as scope:
            model(torch.randn(100, 16, 2))[0][-1].sum().backward()
        plot.reach(scope.run, ax=left, color=colour, label=f"bias {bias:g}")
        plot.timesteps(scope.run, "jacobian_c", ax=right, color=colour)
    left.set_title("How far the gradient reaches, by forget bias", loc="left")
    right.set_title("Size of dc(t)/dc(t-1): the forget gate itself", loc="left")
    return figure


PICTURES: dict[str, Callable[[], Figure]] = {
    "gradient-over-pixels": gradient_over_pixels,
    "powers": powers,
    "carousel": carousel,
}


def main() -> None:
    """Draw what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=[*PICTURES, *CASES], help="draw one of them")
    parser.add_argument("--tell", action="store_true", help="print the findings beside")
    args = parser.parse_args()
    torch.set_num_threads(1)
    OUT.mkdir(exist_ok=True)
    with seaborn.axes_style("whitegrid", STYLE), seaborn.plotting_context("notebook", font_scale=0.85):
        for name, picture in PICTURES.items():
            if args.only in (None, name):
                picture().savefig(OUT / f"{name}.png")
        for name, case in CASES.items():
            if args.only in (None, name):
                run = watch(case)
                four_views(run).savefig(OUT / f"{name}.png")
                if args.tell:
                    print(f"--- {name}\n{run.report().text()}")


if __name__ == "__main__":
    main()
