"""Linear RNN: every step multiplies gradients by |lambda|, and training moves the eigenvalues.

    h_t = U h_{t-1} + W x_t,    so that dh_{t+k}/dh_t = U^k

First, U = lambda Q with an orthogonal Q: every eigenvalue has the modulus |lambda|, and the gain over k steps is
|lambda|^k. A random U with the same largest |lambda| follows it only in the long run: the late rate is that of the
gain over the second half of the steps. Then a linear RNN learns to ring like a bell, y_t = sum_k r^k cos(w k) x_{t-k},
for which it needs the eigenvalues r e^{+iw} and r e^{-iw}.

    python examples/linear_rnn.py --out pictures
"""

from __future__ import annotations

import argparse
from cmath import exp
from math import log
from pathlib import Path

import torch
from torch import Tensor, nn

import gradscope
from gradscope.cells import LinearCell, Recurrent, orthogonal_

RADIUS, FREQUENCY = 0.95, 0.6  # r and w of the bell


def watch_once(u: Tensor, steps: int) -> gradscope.Run:
    """Run one backward pass through a linear RNN with this U; the loss is on the last state."""
    rnn = Recurrent(LinearCell, 2, len(u), dtype=torch.float64)
    rnn.cells[0].weight_hh.data = u
    with gradscope.attach(rnn, every=1, quantities="full") as scope:
        output, _ = rnn(torch.randn(steps, 8, 2, dtype=torch.float64))
        output[-1].sum().backward()
    return scope.run


def compare(size: int, steps: int) -> None:
    """Print |lambda|^k beside the measured gain and reach, and ln |lambda| beside their growth rates."""
    print(f"{'U':<10}{'|lambda|':>9}{'k':>5}{'|lambda|^k':>14}{'gain':>14}{'reach':>14}")
    matrices = {"lambda Q": orthogonal_(LinearCell(0, size, dtype=torch.float64)).weight_hh.data}
    matrices["random"] = torch.randn(size, size, dtype=torch.float64)
    rates = []
    for kind, u in matrices.items():
        for modulus in (0.8, 1.0, 1.1):
            run = watch_once(u * modulus / torch.linalg.eigvals(u).abs().max(), steps)
            gain = run.frame("timesteps", quantity="gain")["p50"].to_numpy()[::-1]  # now by k, as t = T - 1 - k
            reach = run.frame("reach")["p50"]
            for k in sorted({1, steps // 4, steps // 2, steps - 1}):
                values = "".join(f"{value:>14.6e}" for value in (modulus**k, gain[k], reach[k]))
                print(f"{kind:<10}{modulus:>9}{k:>5}{values}")
            layer, half = run.frame("layers").iloc[0], steps // 2
            late = log(gain[-1] / gain[half]) / (steps - 1 - half)
            horizon = f"{layer.horizon:.0f}{'+' if layer.horizon_censored else ''}"
            rates.append(f"{kind:<10}{modulus:>9}{log(modulus):>13.4f}{layer.lyapunov:>11.4f}{late:>11.4f}{horizon:>9}")
    print(f"\n{'U':<10}{'|lambda|':>9}{'ln |lambda|':>13}{'lyapunov':>11}{'late rate':>11}{'horizon':>9}")
    print(*rates, sep="\n")


def train(updates: int, steps: int) -> gradscope.Run:
    """Train a linear RNN with two units to ring like the bell."""
    torch.manual_seed(1)
    k = torch.arange(steps)
    response = RADIUS**k * torch.cos(FREQUENCY * k)
    bell = torch.where(k[:, None] >= k, response[(k[:, None] - k).clamp(min=0)], 0.0)  # y = bell @ x
    model = nn.ModuleDict({"rnn": Recurrent(LinearCell, 1, 2), "read": nn.Linear(2, 1, bias=False)})
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    with gradscope.attach(model, every=max(1, updates // 10), quantities="full") as scope:
        for _ in range(updates + 1):
            x = torch.randn(steps, 32, 1)
            output, _ = model["rnn"](x)
            optimizer.zero_grad()
            (model["read"](output) - (bell @ x[..., 0])[..., None]).square().mean().backward()
            optimizer.step()
    return scope.run


def show(run: gradscope.Run) -> None:
    """Print the eigenvalues at every recorded step."""
    print(f"\n{'step':>5}{'eigenvalues of U':>36}{'largest |lambda|':>18}{'from target':>13}")
    target = RADIUS * exp(1j * FREQUENCY)
    for step, rows in run.frame("spectra").groupby("step"):
        values = [complex(row.real, row.imag) for row in rows.itertuples()]
        distance = max(min(abs(goal - value) for value in values) for goal in (target, target.conjugate()))
        listed = "  ".join(f"{value.real:+.3f}{value.imag:+.3f}i" for value in values)
        print(f"{step:>5}{listed:>36}{max(map(abs, values)):>18.4f}{distance:>13.4f}")
    print(f"{'goal':>5}{f'{target.real:+.3f}±{target.imag:.3f}i':>36}{abs(target):>18.4f}")


def draw(run: gradscope.Run, path: Path) -> None:
    """Draw the paths of the eigenvalues in the complex plane."""
    from matplotlib.figure import Figure

    from gradscope import plot

    figure = Figure(figsize=(5, 5), layout="constrained")
    axes, spectra = plot.spectra(run, ax=figure.subplots()), run.frame("spectra")
    points = axes.scatter(spectra["real"], spectra["imag"], c=spectra["step"], s=14, cmap="viridis", zorder=3)
    figure.colorbar(points, label="training step", shrink=0.7)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=8, help="hidden units of the first part")
    parser.add_argument("--steps", type=int, default=40, help="timesteps")
    parser.add_argument("--updates", type=int, default=200, help="optimizer steps of the second part")
    parser.add_argument("--out", type=Path, help="folder for the picture")
    args = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    compare(args.size, args.steps)
    run = train(args.updates, args.steps)
    show(run)
    if args.out:
        draw(run, args.out / "linear_rnn.png")
