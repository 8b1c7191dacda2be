"""The remedies for vanishing gradients, one by one, on the same failing network.

The task is that of Bengio, Simard & Frasconi (1994): name after the last step the class of the first step, one of
four, across noise. A tanh RNN fails, as its gradient vanishes on the way. Each row changes one thing and trains again.
Skips around the layer shorten the path through depth, not through time; in one row the skip runs through time.

    python examples/remedies.py --lag 100 --updates 800 --out pictures
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from math import inf, log
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import gradscope
from gradscope import cells

CLASSES = 4


class ResidualCell(cells.RNNCell):
    """h_t = h_{t-1} + tanh(W x_t + b + U h_{t-1} + b') / 4."""

    def forward(self, x: Tensor, state: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        before = self.initial_state(x) if state is None else state
        return before + super().forward(x, before, mask) / 4


def rnn(cell: type[cells.Cell] = cells.RNNCell, **options: str) -> Callable[[int], cells.Recurrent]:
    return lambda size: cells.Recurrent(cell, size, size, **options)


REMEDIES = {
    "none: tanh RNN": rnn(),
    "clipping by norm": rnn(),  # see the call of `train`
    "residual layer": rnn(skip="residual"),
    "highway layer": rnn(skip="highway"),
    "ReLU": rnn(nonlinearity="relu"),
    "ReLU, identity": lambda size: cells.identity_(rnn(nonlinearity="relu")(size)),
    "GELU": rnn(nonlinearity="gelu"),
    "LayerNorm": rnn(cells.LayerNormRNNCell),
    "orthogonal": lambda size: cells.orthogonal_(rnn()(size)),
    "residual in time": rnn(ResidualCell),
    "LSTM, chrono": lambda size: cells.chrono_(rnn(cells.LSTMCell)(size), t_max=100),
    "GRU, chrono": lambda size: cells.chrono_(rnn(cells.GRUCell)(size), t_max=100),
}


def batch(size: int, lag: int) -> tuple[Tensor, Tensor]:
    """Sequences [lag + 1, size, CLASSES] and their classes [size]."""
    x, y = torch.randn(lag + 1, size, CLASSES) * 0.3, torch.randint(0, CLASSES, (size,))
    x[0] = F.one_hot(y, CLASSES)
    return x, y


def classify(model: nn.ModuleDict, x: Tensor) -> Tensor:
    """Scores [size, CLASSES], from the last output; inputs become as wide as the layer, so that skips fit."""
    return model["read"](model["rnn"](model["widen"](x))[0][-1])


def train(model: nn.ModuleDict, lag: int, updates: int, bound: float) -> tuple[gradscope.Run, float, float]:
    optimizer = torch.optim.Adam(model.parameters(), lr=0.003)
    torch.manual_seed(1)  # the same sequences for all
    with gradscope.attach(model, every=max(1, updates // 3)) as scope:
        for _ in range(updates):
            x, y = batch(32, lag)
            optimizer.zero_grad()
            F.cross_entropy(classify(model, x), y).backward()
            nn.utils.clip_grad_norm_(model.parameters(), bound)
            optimizer.step()
    with torch.no_grad():
        x, y = batch(500, lag)
        scores = classify(model, x)
        return scope.run, F.cross_entropy(scores, y).item(), (scores.argmax(1) == y).float().mean().item()


def draw(runs: dict[str, gradscope.Run], folder: Path) -> None:
    from matplotlib.figure import Figure

    from gradscope import plot

    figure = Figure(figsize=(12, 8), layout="constrained")
    for axes, (name, run) in zip(figure.subplots(3, 4, sharex=True, sharey=True).flat, runs.items(), strict=True):
        plot.reach(run, step=0, ax=axes).set_title(name, loc="left")
    axes.set_yscale("log")  # of all: the ticks were those of the last one's values
    folder.mkdir(parents=True, exist_ok=True)
    figure.savefig(folder / "remedies.png")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lag", type=int, default=40, help="timesteps from the class to the question")
    parser.add_argument("--size", type=int, default=24, help="hidden units")
    parser.add_argument("--updates", type=int, default=300, help="optimizer steps")
    parser.add_argument("--out", type=Path, help="folder for the picture")
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{args.lag} steps back; guessing has the loss {log(CLASSES):.3f}, and is right {1 / CLASSES:.0%}\n")
    print(f"{'remedy':<18}{'horizon: first':>15}{'last':>6}{'decay: first':>14}{'last':>8}{'loss':>9}{'right':>8}")
    runs, best = {}, {True: 0.0, False: 0.0}
    for name, make in REMEDIES.items():
        torch.manual_seed(0)
        net = {"widen": nn.Linear(CLASSES, args.size), "rnn": make(args.size), "read": nn.Linear(args.size, CLASSES)}
        runs[name], loss, right = train(nn.ModuleDict(net), args.lag, args.updates, 0.1 if "clipping" in name else inf)
        layer = runs[name].frame("layers")
        spans = bool(layer["horizon_censored"].any())
        best[spans] = max(best[spans], right)
        first, last = (f"{r.horizon:.0f}{'+' if r.horizon_censored else ''}" for r in layer.iloc[[0, -1]].itertuples())
        decays = f"{layer['decay'].iloc[0]:>14.3f}{layer['decay'].iloc[-1]:>8.3f}"
        print(f"{name:<18}{first:>15}{last:>6}{decays}{loss:>9.4f}{right:>8.1%}", flush=True)
    print(f"\nBest where the horizon spanned all steps at some time: {best[True]:.1%}; where not: {best[False]:.1%}")
    if args.out:
        draw(runs, args.out)
