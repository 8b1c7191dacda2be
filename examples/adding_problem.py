"""The adding problem (Hochreiter & Schmidhuber 1997): add two marked numbers of a long sequence of random ones.

Every step brings a number in [0, 1] and a mark. One step of each half has a mark, and the task asks for the sum of
their two numbers at the end. A network without memory predicts 1 and has the mean squared error 1/6. The textbook says:
a network learns nothing beyond the gradient's horizon, and an orthogonal U, or the gates of LSTM and GRU, extend it.

    python examples/adding_problem.py --length 100 --updates 3000 --out pictures
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

import gradscope
from gradscope.cells import forget_bias_, orthogonal_

BASELINE = 1 / 6  # the variance of the sum of two numbers, uniform in [0, 1]
LEARNT = 0.25  # of the baseline, at most

NETWORKS: dict[str, Callable[[int], nn.RNNBase]] = {
    "RNN": lambda hidden: nn.RNN(2, hidden, batch_first=True),
    "orthogonal RNN": lambda hidden: orthogonal_(nn.RNN(2, hidden, batch_first=True)),
    "LSTM, f bias 1": lambda hidden: forget_bias_(nn.LSTM(2, hidden, batch_first=True), 1.0),
    "GRU": lambda hidden: nn.GRU(2, hidden, batch_first=True),
}


def batch(size: int, length: int) -> tuple[Tensor, Tensor]:
    """Sequences [size, length, 2] and their sums, [size]."""
    numbers, marks, rows = torch.rand(size, length), torch.zeros(size, length), torch.arange(size)
    half = length // 2
    marks[rows, torch.randint(0, half, (size,))] = 1
    marks[rows, torch.randint(half, length, (size,))] = 1
    return torch.stack([numbers, marks], dim=-1), (numbers * marks).sum(1)


class Adder(nn.Module):
    """A recurrent layer, and a linear read-out of its last output."""

    def __init__(self, rnn: nn.RNNBase) -> None:
        super().__init__()
        self.rnn = rnn
        self.read = nn.Linear(rnn.hidden_size, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.read(self.rnn(x)[0][:, -1])[:, 0]


def train(model: Adder, length: int, updates: int) -> tuple[gradscope.Run, float]:
    """Train with ten recorded steps, evenly spaced; return the run and the mean squared error on new sequences."""
    optimizer = torch.optim.Adam(model.parameters(), lr=0.005)
    with gradscope.attach(model, every=max(1, updates // 9)) as scope:
        for _ in range(updates):
            x, y = batch(32, length)
            optimizer.zero_grad()
            (model(x) - y).square().mean().backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
    with torch.no_grad():
        x, y = batch(1000, length)
        return scope.run, (model(x) - y).square().mean().item()


def describe(name: str, run: gradscope.Run, loss: float) -> tuple[bool, bool]:
    """Print one row; return whether the horizon ever spanned the sequence, and whether the network learnt the task."""
    layers = run.frame("layers")
    horizons = [f"{row.horizon:.0f}{'+' if row.horizon_censored else ''}" for row in layers.itertuples()]
    spans, learnt = bool(layers["horizon_censored"].any()), loss < LEARNT * BASELINE
    verdict = "yes" if learnt else "no"
    decays = f"{layers['decay'].iloc[0]:>10.3f}{layers['decay'].iloc[-1]:>10.3f}"
    print(f"{name:<16}{horizons[0]:>9}{horizons[-1]:>9}{decays}{loss:>9.4f}{loss / BASELINE:>10.2f}{verdict:>8}")
    return spans, learnt


def draw(runs: dict[str, gradscope.Run], path: Path) -> None:
    """Draw the horizon of every network over training."""
    from matplotlib.figure import Figure

    from gradscope import plot

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for number, (name, run) in enumerate(runs.items()):
        plot.horizon(run, ax=axes, label=name, color=f"C{number}")
    axes.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--length", type=int, default=50, help="timesteps of a sequence")
    parser.add_argument("--hidden", type=int, default=32, help="hidden units")
    parser.add_argument("--updates", type=int, default=800, help="optimizer steps")
    parser.add_argument("--out", type=Path, help="folder for the picture")
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{args.length} steps; always predicting 1 has the loss {BASELINE:.4f}\n")
    print(f"{'':<16}{'horizon':>18}{'decay per step':>20}{'':>9}{'of the':>10}")
    print(f"{'network':<16}{'first':>9}{'last':>9}{'first':>10}{'last':>10}{'loss':>9}{'baseline':>10}{'learnt':>8}")
    runs, outcomes = {}, []
    for name, make in NETWORKS.items():
        torch.manual_seed(0)
        model = Adder(make(args.hidden))
        runs[name], loss = train(model, args.length, args.updates)
        outcomes.append(describe(name, runs[name], loss))
    print()
    for wanted, said in ((True, "spanned all steps at some recorded time"), (False, "never did")):
        learnt = [learnt for spans, learnt in outcomes if spans is wanted]
        if learnt:
            print(f"The horizon {said}: {sum(learnt)} of {len(learnt)} networks learnt the task.")
    if args.out:
        draw(runs, args.out / "adding_problem.png")
