"""Copy memory (Hochreiter & Schmidhuber 1997; Arjovsky et al. 2016): repeat some symbols after a pause.

Some symbols come first, then `lag` blanks, the last of them a signal; then the network has to name the symbols in
order. A network without memory guesses, with a loss of ln 8 for 8 symbols. The loss is on the recall alone, so that all
gradient enters there, and has to cross the pause. The textbook says: an orthogonal U, and gates that start open
(chrono: with memories of up to two pauses), carry it across, and the network learns the task.

    python examples/copy_memory.py --lag 40 --updates 3000 --out pictures
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from math import log
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import gradscope
from gradscope.cells import chrono_, forget_bias_, orthogonal_

SYMBOLS, LENGTH = 8, 2  # kinds of symbols, and number to remember
BLANK, SIGNAL = SYMBOLS, SYMBOLS + 1
LEARNT = 0.25  # of the loss of guessing, at most

NETWORKS: dict[str, Callable[[int, int], nn.RNNBase]] = {
    "RNN": lambda hidden, lag: nn.RNN(SYMBOLS + 2, hidden, batch_first=True),
    "orthogonal RNN": lambda hidden, lag: orthogonal_(nn.RNN(SYMBOLS + 2, hidden, batch_first=True)),
    "LSTM, f bias 1": lambda hidden, lag: forget_bias_(nn.LSTM(SYMBOLS + 2, hidden, batch_first=True), 1.0),
    "LSTM, chrono": lambda hidden, lag: chrono_(nn.LSTM(SYMBOLS + 2, hidden, batch_first=True), t_max=2 * lag),
    "GRU": lambda hidden, lag: nn.GRU(SYMBOLS + 2, hidden, batch_first=True),
}


def batch(size: int, lag: int) -> tuple[Tensor, Tensor]:
    """Sequences [size, lag + 2 LENGTH, SYMBOLS + 2], one-hot, and the symbols to recall, [size, LENGTH]."""
    symbols = torch.randint(0, SYMBOLS, (size, LENGTH))
    x = torch.full((size, lag + 2 * LENGTH), BLANK)
    x[:, :LENGTH] = symbols
    x[:, LENGTH + lag - 1] = SIGNAL  # the last of the pause
    return F.one_hot(x, SYMBOLS + 2).float(), symbols


class Copier(nn.Module):
    """A recurrent layer, and scores of the symbols, [size, SYMBOLS, LENGTH], at the last steps."""

    def __init__(self, rnn: nn.RNNBase) -> None:
        super().__init__()
        self.rnn = rnn
        self.read = nn.Linear(rnn.hidden_size, SYMBOLS)

    def forward(self, x: Tensor) -> Tensor:
        return self.read(self.rnn(x)[0][:, -LENGTH:]).mT


def train(model: Copier, lag: int, updates: int) -> tuple[gradscope.Run, float, float]:
    """Train with ten recorded steps, evenly spaced; return the run, and loss and recall on new sequences."""
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    with gradscope.attach(model, every=max(1, updates // 9)) as scope:
        for _ in range(updates):
            x, y = batch(32, lag)
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
    with torch.no_grad():
        x, y = batch(500, lag)
        scores = model(x)
        return scope.run, F.cross_entropy(scores, y).item(), (scores.argmax(1) == y).float().mean().item()


def draw(runs: dict[str, gradscope.Run], path: Path) -> None:
    """Draw the reach of every network before training."""
    from matplotlib.figure import Figure

    from gradscope import plot

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for number, (name, run) in enumerate(runs.items()):
        plot.reach(run, step=0, ax=axes, label=name, color=f"C{number}")
    axes.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lag", type=int, default=20, help="timesteps of the pause")
    parser.add_argument("--hidden", type=int, default=32, help="hidden units")
    parser.add_argument("--updates", type=int, default=1000, help="optimizer steps")
    parser.add_argument("--out", type=Path, help="folder for the picture")
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{LENGTH} symbols, a pause of {args.lag} steps; guessing has the loss ln {SYMBOLS} = {log(SYMBOLS):.3f}\n")
    print(f"{'network':<16}{'horizon: first':>15}{'longest':>9}{'last':>7}{'loss':>9}{'recalled':>10}{'learnt':>8}")
    runs, outcomes = {}, []
    for name, make in NETWORKS.items():
        torch.manual_seed(0)
        runs[name], loss, recalled = train(Copier(make(args.hidden, args.lag)), args.lag, args.updates)
        h = runs[name].frame("layers")["horizon"]
        outcomes.append((h.max() > args.lag, loss < LEARNT * log(SYMBOLS)))
        learnt = "yes" if outcomes[-1][1] else "no"
        print(f"{name:<16}{h.iloc[0]:>15.0f}{h.max():>9.0f}{h.iloc[-1]:>7.0f}{loss:>9.4f}{recalled:>10.1%}{learnt:>8}")
    print()
    for wanted, said in ((True, "exceeded the pause at some recorded time"), (False, "never did")):
        learnt = [learnt for reached, learnt in outcomes if bool(reached) is wanted]
        if learnt:
            print(f"The horizon {said}: {sum(learnt)} of {len(learnt)} networks learnt the task.")
    if args.out:
        draw(runs, args.out / "copy_memory.png")
