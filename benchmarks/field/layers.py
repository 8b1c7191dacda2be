"""What recurs: torch's own modules, cells in a loop, modules on top of each other."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.field import cells
from benchmarks.field.setup import Setup

State = Any


def layer(setup: Setup, inputs: int, layers: int) -> nn.RNNBase:
    """Torch's own module."""
    options: dict[str, Any] = {"num_layers": layers, "batch_first": True, "bidirectional": setup.bidirectional}
    options["dropout"] = setup.dropout if layers > 1 else 0.0
    if setup.family.startswith("rnn"):
        return nn.RNN(inputs, setup.hidden, nonlinearity=setup.family.removeprefix("rnn_"), **options)
    if setup.family == "lstm":
        return nn.LSTM(inputs, setup.hidden, proj_size=setup.proj, **options)
    return nn.GRU(inputs, setup.hidden, **options)


class Loop(nn.Module):
    """Cells over time, one after the other."""

    def __init__(self, setup: Setup, inputs: int) -> None:
        super().__init__()
        make = cells.own if setup.form == "own" else cells.torchs
        sizes = [inputs] + [setup.hidden] * (setup.layers - 1)
        self.cells = nn.ModuleList(make(setup.family, size, setup.hidden) for size in sizes)
        self.pair, self.forgetful, self.mask = setup.family == "lstm", setup.form == "forgetful", setup.mask
        for cell in self.cells:
            if isinstance(cell, cells.Elman):
                cell.leak = setup.leak

    def forward(self, x: Tensor, state: State = None) -> tuple[Tensor, State]:
        states = list(state) if state is not None else [self._zeros(x, cell) for cell in self.cells]
        outputs: list[Tensor] = []
        for step in x.unbind(1):
            for i, cell in enumerate(self.cells):
                states[i] = cell(step) if self.forgetful else cell(step, self._masked(states[i]))
                step = states[i][0] if isinstance(states[i], tuple) else states[i]
            outputs.append(step)
        return torch.stack(outputs, 1), states

    def _masked(self, state: State) -> State:
        """A state of which a share is lost, in training."""
        if not self.mask or not self.training:
            return state
        if isinstance(state, tuple):
            return tuple(self._masked(one) for one in state)
        return state * (torch.rand_like(state) >= self.mask)

    def _zeros(self, x: Tensor, cell: nn.Module) -> State:
        zero = x.new_zeros(len(x), cell.hidden_size)  # type: ignore[arg-type]
        return (zero, zero) if self.pair else zero


class Stacked(nn.Module):
    """A module a layer; those after the first are in a Python list, where nobody finds their parameters."""

    def __init__(self, setup: Setup, inputs: int) -> None:
        super().__init__()
        self.first = layer(setup, inputs, 1)
        self.others = [layer(setup, width(setup), 1) for _ in range(setup.stacked)]

    def forward(self, x: Tensor, state: State = None) -> tuple[Tensor, State]:
        layers = [self.first, *self.others]
        states = list(state) if state is not None else [None] * len(layers)
        for i, one in enumerate(layers):
            x, states[i] = one(x, states[i])
        return x, states


class Residual(nn.Module):
    """A module a layer, each normalised and added to what went into it."""

    def __init__(self, setup: Setup, inputs: int) -> None:
        super().__init__()
        self.into = nn.Linear(inputs, setup.hidden)
        self.layers = nn.ModuleList(layer(setup, setup.hidden, 1) for _ in range(setup.layers))
        self.norms = nn.ModuleList(nn.LayerNorm(setup.hidden) for _ in range(setup.layers))

    def forward(self, x: Tensor, state: State = None) -> tuple[Tensor, State]:
        x, states = self.into(x), list(state) if state is not None else [None] * len(self.layers)
        for i, (one, norm) in enumerate(zip(self.layers, self.norms, strict=True)):
            y, states[i] = one(norm(x), states[i])
            x = x + y
        return x, states


def recurrent(setup: Setup, inputs: int) -> nn.Module:
    """The recurrent part."""
    if setup.form in ("cells", "own", "forgetful"):
        return Loop(setup, inputs)
    if setup.stacked:
        return Stacked(setup, inputs)
    return Residual(setup, inputs) if setup.form == "residual" else layer(setup, inputs, setup.layers)


def width(setup: Setup) -> int:
    """Of what the recurrent part gives at a timestep."""
    return (setup.proj or setup.hidden) * (2 if setup.bidirectional else 1)
