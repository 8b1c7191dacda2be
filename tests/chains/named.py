"""Ten cells that are not torch's, from their papers, as somebody would write them for a training of his own.

Each has `step(x, state)`, the new state, and `read(state)`, what it shows; `forward` is made of these.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import layer_norm, softplus

from gradscope import CellSpec

INPUT, HIDDEN = 3, 4


class Own(nn.Module):
    """What the ten have in common: weights that are large enough for gradients to be seen a few steps back."""

    gates_of_u = 1
    parts = 1

    def __init__(self, hidden: int = HIDDEN) -> None:
        super().__init__()
        self.hidden = hidden
        kind = {"dtype": torch.float64}
        self.w = nn.Parameter(torch.randn(self.gates_of_u * hidden, INPUT, **kind))
        self.u = nn.Parameter(torch.randn(self.gates_of_u * hidden, hidden, **kind) * 1.2 / hidden**0.5)
        self.b = nn.Parameter(torch.randn(self.gates_of_u * hidden, **kind) / 2)

    def initial(self, batch: int) -> Any:
        zeros = [torch.zeros(batch, self.hidden, dtype=torch.float64) for _ in range(self.parts)]
        return zeros[0] if self.parts == 1 else tuple(zeros)

    def step(self, x: Tensor, state: Any) -> Any:
        raise NotImplementedError

    def read(self, state: Any) -> Tensor:
        return state[0] if isinstance(state, tuple) else state

    def forward(self, x: Tensor, state: Any) -> Any:
        return self.step(x, state)

    def advance(self, x: Tensor, state: Any, *more: Any) -> Any:
        """The new state, by a call."""
        return self(x, state, *more)


class PeepholeLSTM(Own):
    """Gers, Schraudolph & Schmidhuber (2002): the gates see the cell state."""

    gates_of_u, parts = 4, 2

    def __init__(self, hidden: int = HIDDEN) -> None:
        super().__init__(hidden)
        self.peep = nn.Parameter(torch.randn(3, hidden, dtype=torch.float64))

    def gated(self, x: Tensor, state: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        h, c = state
        i, f, g, o = (x @ self.w.T + h @ self.u.T + self.b).chunk(4, 1)
        i, f, g = torch.sigmoid(i + self.peep[0] * c), torch.sigmoid(f + self.peep[1] * c), torch.tanh(g)
        new = f * c + i * g
        return {"input": i, "forget": f, "candidate": g, "output": torch.sigmoid(o + self.peep[2] * new), "cell": new}

    def step(self, x: Tensor, state: Any) -> Any:
        now = self.gated(x, state)
        return now["output"] * torch.tanh(now["cell"]), now["cell"]

    def gates(self, x: Tensor, state: Any) -> dict[str, Tensor]:
        now = self.gated(x, state)
        return {name: now[name] for name in ("input", "forget", "candidate", "output")}


class LayerNormLSTM(Own):
    """Ba, Kiros & Hinton (2016)."""

    gates_of_u, parts = 4, 2

    def step(self, x: Tensor, state: Any) -> Any:
        (h, c), wide = state, (4 * self.hidden,)
        i, f, g, o = (layer_norm(x @ self.w.T, wide) + layer_norm(h @ self.u.T, wide) + self.b).chunk(4, 1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        return torch.sigmoid(o) * torch.tanh(layer_norm(c, (self.hidden,))), c


class CoupledLSTM(Own):
    """Greff et al. (2017), CIFG: what is let in is what is forgotten; the output comes before the state."""

    gates_of_u, parts = 3, 2

    def __init__(self, hidden: int = HIDDEN) -> None:
        super().__init__(hidden)
        self.forget = nn.Sequential(nn.Linear(INPUT + hidden, hidden, dtype=torch.float64), nn.Sigmoid())

    def step(self, x: Tensor, state: Any) -> Any:
        h, c = state
        _, g, o = (x @ self.w.T + h @ self.u.T + self.b).chunk(3, 1)
        f = self.forget(torch.cat([x, h], 1))
        c = f * c + (1 - f) * torch.tanh(g)
        return torch.sigmoid(o) * torch.tanh(c), c

    def forward(self, x: Tensor, state: Any) -> Any:
        new = self.step(x, state)
        return new[0], new

    def advance(self, x: Tensor, state: Any, *more: Any) -> Any:
        return self(x, state)[1]


class ResetBeforeGRU(Own):
    """Cho et al. (2014): the reset gate acts before the product."""

    gates_of_u = 3

    def step(self, x: Tensor, state: Tensor) -> Tensor:
        r_x, z_x, n_x = (x @ self.w.T + self.b).chunk(3, 1)
        r_u, z_u, n_u = self.u.chunk(3)
        r, z = torch.sigmoid(r_x + state @ r_u.T), torch.sigmoid(z_x + state @ z_u.T)
        return z * state + (1 - z) * torch.tanh(n_x + (r * state) @ n_u.T)


class IndRNN(Own):
    """Li et al. (2018): each unit sees itself alone."""

    def step(self, x: Tensor, state: Tensor) -> Tensor:
        return torch.relu(x @ self.w.T + self.u[0] * state + self.b)


class SRU(Own):
    """Lei et al. (2018): a cell state with a forget gate, and a highway around it that is not part of the state."""

    gates_of_u = 3

    def gated(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        value, f, r = (x @ self.w.T + self.b).chunk(3, 1)
        return value, torch.sigmoid(f), torch.sigmoid(r)

    def step(self, x: Tensor, state: Tensor) -> Tensor:
        value, f, _ = self.gated(x)
        return f * state + (1 - f) * value

    def forward(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        value, _, r = self.gated(x)
        c = self.step(x, state)
        return r * torch.tanh(c) + (1 - r) * value, c

    def advance(self, x: Tensor, state: Any, *more: Any) -> Any:
        return self(x, state)[1]


class MinGRU(Own):
    """Feng et al. (2024): gate and candidate do not see the state."""

    gates_of_u = 2

    def step(self, x: Tensor, state: Tensor) -> Tensor:
        z, candidate = (x @ self.w.T + self.b).chunk(2, 1)
        return torch.lerp(state, candidate, torch.sigmoid(z))

    def kept(self, x: Tensor, state: Tensor) -> Tensor:
        """The transition."""
        return 1 - torch.sigmoid((x @ self.w.T + self.b).chunk(2, 1)[0])


class LRU(Own):
    """Orvieto et al. (2023): a complex diagonal, |lambda| < 1 by its parametrization."""

    def __init__(self, hidden: int = HIDDEN) -> None:
        super().__init__(hidden)
        self.log_decay = nn.Parameter(torch.linspace(-3, -1, hidden, dtype=torch.float64))
        self.phase = nn.Parameter(torch.linspace(0.1, 2, hidden, dtype=torch.float64))
        self.into = nn.Parameter(torch.randn(hidden, INPUT, dtype=torch.complex128))

    def initial(self, batch: int) -> Tensor:
        return torch.zeros(batch, self.hidden, dtype=torch.complex128)

    def eigenvalues(self, x: Tensor, state: Tensor) -> Tensor:
        return torch.polar(torch.exp(-self.log_decay.exp()), self.phase)

    def step(self, x: Tensor, state: Tensor) -> Tensor:
        return self.eigenvalues(x, state) * state + x.to(torch.complex128) @ self.into.T

    def read(self, state: Tensor) -> Tensor:
        return torch.view_as_real(state).flatten(1)


class Liquid(Own):
    """Hasani et al. (2022), closed-form continuous: two candidates, blended by the time that went by."""

    gates_of_u = 3

    def step(self, x: Tensor, state: Tensor, elapsed: Any = 0.7) -> Tensor:
        first, second, rate = (x @ self.w.T + state @ self.u.T + self.b).chunk(3, 1)
        blend = torch.sigmoid(-softplus(rate) * elapsed)
        return torch.tanh(first) * blend + torch.tanh(second) * (1 - blend)

    def forward(self, x: Tensor, state: Tensor, elapsed: Any = 0.7) -> Tensor:
        return self.step(x, state, elapsed)


class ThreeStates(Own):
    """In the manner of the sLSTM (Beck et al. 2024): hidden state, cell state and normaliser."""

    gates_of_u, parts = 4, 3

    def step(self, x: Tensor, state: Any) -> Any:
        h, c, n = state
        i, f, g, o = (x @ self.w.T + h @ self.u.T + self.b).chunk(4, 1)
        i, f = torch.exp(i / 4), torch.sigmoid(f)
        c, n = f * c + i * torch.tanh(g), f * n + i
        return torch.sigmoid(o) * c / n, c, n


NAMED: dict[str, tuple[type[Own], CellSpec]] = {
    "peephole LSTM": (PeepholeLSTM, CellSpec(gates=PeepholeLSTM.gates, blocks={"u": ("i", "f", "g", "o")})),
    "LayerNorm LSTM": (LayerNormLSTM, CellSpec()),
    "coupled-gate LSTM": (CoupledLSTM, CellSpec(gates={"forget": "forget"})),
    "GRU, reset before": (ResetBeforeGRU, CellSpec()),
    "IndRNN": (IndRNN, CellSpec(gates=lambda cell, x, state: {"hidden": cell(x, state)}, kinds={"hidden": "relu"})),
    "SRU": (SRU, CellSpec(transition=lambda cell, x, state: cell.gated(x)[1])),
    "minGRU": (MinGRU, CellSpec(transition=MinGRU.kept)),
    "LRU": (LRU, CellSpec(transition=LRU.eigenvalues)),
    "liquid": (Liquid, CellSpec()),
    "three states": (ThreeStates, CellSpec()),
}
