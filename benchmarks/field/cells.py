"""Recurrent cells as people write them themselves, called in a loop over time."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Peephole(nn.Module):
    """An LSTM whose gates see the cell as well (Gers and Schmidhuber 2000)."""

    def __init__(self, inputs: int, units: int) -> None:
        super().__init__()
        self.hidden_size = units
        self.x2h, self.h2h = nn.Linear(inputs, 4 * units), nn.Linear(units, 4 * units, bias=False)
        self.peep = nn.Parameter(torch.zeros(3, units))

    def forward(self, x: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        h, c = state
        i, f, g, o = (self.x2h(x) + self.h2h(h)).chunk(4, -1)
        c = torch.sigmoid(f + self.peep[1] * c) * c + torch.sigmoid(i + self.peep[0] * c) * torch.tanh(g)
        return torch.sigmoid(o + self.peep[2] * c) * torch.tanh(c), c


class Minimal(nn.Module):
    """One gate (Zhou et al. 2016)."""

    def __init__(self, inputs: int, units: int) -> None:
        super().__init__()
        self.hidden_size = units
        self.gate, self.candidate = nn.Linear(inputs + units, units), nn.Linear(inputs + units, units)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        z = torch.sigmoid(self.gate(torch.cat([x, h], -1)))
        return (1 - z) * h + z * torch.tanh(self.candidate(torch.cat([x, z * h], -1)))


class Elman(nn.Module):
    """A linear map of input and state, and a curve: a function of torch's, `"softmax"`, or none: `"linear"`.

    `"skip"`: ReLU, added to the state. `leak` below 1 keeps the rest of the state as it was.
    """

    def __init__(self, inputs: int, units: int, curve: str) -> None:
        super().__init__()
        self.hidden_size, self.curve, self.leak = units, curve, 1.0
        self.i2h, self.h2h = nn.Linear(inputs, units), nn.Linear(units, units)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        y = self.curved(self.i2h(x) + self.h2h(h), h)
        return y if self.leak == 1 else (1 - self.leak) * h + self.leak * y

    def curved(self, y: Tensor, h: Tensor) -> Tensor:
        """What the curve makes of it."""
        if self.curve == "linear":
            return y
        if self.curve == "skip":
            return h + torch.relu(y)
        return y.softmax(-1) if self.curve == "softmax" else getattr(torch, self.curve)(y)


def own(family: str, inputs: int, units: int) -> nn.Module:
    """The cell of one's own that stands for a family."""
    if family == "lstm":
        return Peephole(inputs, units)
    return Minimal(inputs, units) if family == "gru" else Elman(inputs, units, family.removeprefix("rnn_"))


def torchs(family: str, inputs: int, units: int) -> nn.Module:
    """Torch's own cell."""
    if family.startswith("rnn"):
        return nn.RNNCell(inputs, units, nonlinearity=family.removeprefix("rnn_"))
    return (nn.LSTMCell if family == "lstm" else nn.GRUCell)(inputs, units)
