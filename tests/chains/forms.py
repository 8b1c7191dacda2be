"""How public code writes its cells: the state goes in and out by other names, in other places, and in other forms.

The equations are those of an LSTM and of a GRU; what differs is the signature. Each has `advance(x, state)`, which
calls the cell as its code does and gives the new state.
"""

from __future__ import annotations

from typing import Any

import torch
from chains.named import HIDDEN, INPUT, Own, ResetBeforeGRU
from torch import Tensor, nn

from gradscope import CellSpec

State = tuple[Tensor, Tensor]


class LSTM(Own):
    """The equations."""

    gates_of_u, parts = 4, 2

    def gated(self, x: Tensor, h: Tensor) -> list[Tensor]:
        i, f, g, o = (x @ self.w.T + h @ self.u.T + self.b).chunk(4, 1)
        return [torch.sigmoid(i), torch.sigmoid(f), torch.tanh(g), torch.sigmoid(o)]

    def step(self, x: Tensor, state: State) -> State:
        i, f, g, o = self.gated(x, state[0])
        c = f * state[1] + i * g
        return o * torch.tanh(c), c


class InADict(LSTM):
    """neuralhydrology/neuralhydrology, `customlstm.py`: the gates come back in the same dict."""

    def forward(self, x_t: Tensor, h_0: Tensor, c_0: Tensor) -> dict[str, Tensor]:
        i, f, g, o = self.gated(x_t, h_0)
        c_1 = f * c_0 + i * g
        return {"i": i, "f": f, "h_n": o * torch.tanh(c_1), "c_n": c_1, "g": g, "o": o}

    def advance(self, x: Tensor, state: State) -> State:
        new = self(x_t=x, h_0=state[0], c_0=state[1])
        return new["h_n"], new["c_n"]


class TwoArguments(LSTM):
    """Most cells that are written from the equations: `h` and `c` apart."""

    def forward(self, x: Tensor, h: Tensor, c: Tensor) -> State:
        return self.step(x, (h, c))

    def advance(self, x: Tensor, state: State) -> State:
        return self(x, *state)


class Previous(TwoArguments):
    """ConvLSTM tutorials: capitals, and the time in the name."""

    def forward(self, X: Tensor, H_prev: Tensor, C_prev: Tensor) -> State:
        return self.step(X, (H_prev, C_prev))


class OutputFirst(LSTM):
    """Decoders of sequence-to-sequence tutorials: the prediction comes before the state."""

    def forward(self, x: Tensor, hidden: Tensor, cell: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        h, c = self.step(x, (hidden, cell))
        return h.exp(), h, c

    def advance(self, x: Tensor, state: State) -> State:
        return self(x, *state)[1:]


class OutputLast(LSTM):
    """A ConvLSTM that gives its output gate behind the state."""

    def forward(self, input: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return *self.step(input, (h, c)), self.gated(input, h)[3]

    def advance(self, x: Tensor, state: State) -> State:
        return self(x, *state)[:2]


class TurnedRound(LSTM):
    """The input comes last, and what comes back is the other way round."""

    def forward(self, h: Tensor, c: Tensor, x: Tensor) -> State:
        return self.step(x, (h, c))[::-1]

    def advance(self, x: Tensor, state: State) -> State:
        return self(*state, x)[::-1]


class StateFirst(ResetBeforeGRU):
    """princeton-vl/RAFT, `update.py`: the state comes before the input."""

    def forward(self, h: Tensor, x: Tensor) -> Tensor:
        return self.step(x, h)

    def advance(self, x: Tensor, state: Tensor) -> Tensor:
        return self(state, x)


class Context(ResetBeforeGRU):
    """Iterative refinement: what is called `c` is a context, and no state."""

    def forward(self, x: Tensor, h: Tensor, c: Tensor) -> Tensor:
        return self.step(x + c, h)

    def advance(self, x: Tensor, state: Tensor) -> Tensor:
        return self(x / 2, state, x / 2)


class Current(LSTM):
    """ndrplz/ConvLSTM_pytorch: a list goes in, a tuple comes out."""

    def forward(self, input_tensor: Tensor, cur_state: list[Tensor]) -> State:
        return self.step(input_tensor, (cur_state[0], cur_state[1]))

    def advance(self, x: Tensor, state: State) -> State:
        return self(input_tensor=x, cur_state=list(state))


class Graph(LSTM):
    """benedekrozemberczki/pytorch_geometric_temporal, `gconv_lstm.py`: the state comes late, and may be missing."""

    def forward(self, X: Tensor, edges: Tensor, weight: Any = None, H: Any = None, C: Any = None) -> State:
        zeros = X.new_zeros(len(X), self.hidden)
        return self.step(X * edges, (zeros if H is None else H, zeros if C is None else C))

    def advance(self, x: Tensor, state: State) -> State:
        given = {"H": state[0], "C": state[1]} if any(part.any() for part in state) else {}
        return self(x, torch.ones(1, INPUT, dtype=torch.float64), **given)


class Decaying(ResetBeforeGRU):
    """GRU-D: the state is behind a mask, a time gap and an earlier input."""

    def forward(self, x_t: Tensor, m_t: Tensor, delta_t: Tensor, x_last: Tensor, h_prev: Tensor) -> Tensor:
        return self.step(m_t * x_t + (1 - m_t) * x_last * torch.exp(-delta_t), h_prev)

    def advance(self, x: Tensor, state: Tensor) -> Tensor:
        return self(x, torch.ones_like(x), torch.rand_like(x), x, state)


class Distances(LSTM):
    """yikangshen/Ordered-Neurons, `ON_LSTM.py`: a pair of [B, .] that is no state comes behind the state."""

    def forward(self, input: Tensor, hidden: State, transformed_input: Any = None) -> tuple[Tensor, Tensor, State]:
        h, c = self.step(input, hidden)
        return h, c, (h.mean(1, keepdim=True), c.mean(1, keepdim=True))

    def advance(self, x: Tensor, state: State) -> State:
        return self(x, state)[:2]


class OtherNames(LSTM):
    """Names that say nothing."""

    def forward(self, x: Tensor, memory: Tensor, fast: Tensor) -> dict[str, Tensor]:
        h, c = self.step(x, (fast, memory))
        return {"slow": c, "out": h * 1, "quick": h}

    def advance(self, x: Tensor, state: State) -> State:
        new = self(x, memory=state[1], fast=state[0])
        return new["quick"], new["slow"]


class StepMethod(LSTM):
    """neuralhydrology/neuralhydrology, `mclstm.py`: `forward` has the loop, and a method of it is the step."""

    def forward(self, x: Tensor) -> Tensor:
        state, seen = self.initial(x.shape[1]), []
        for row in x:
            state = self.advance(row, state)
            seen.append(state[0])
        return torch.stack(seen)

    def _step(self, x_m: Tensor, x_a: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        h, c = self.step(x_m + x_a, (h, c))
        return torch.relu(h), h, c

    def advance(self, x: Tensor, state: State) -> State:
        return self._step(x / 2, x / 2, *state)[1:]


class OneStep(Own):
    """The same, with a state of one tensor that is called `c`."""

    gates_of_u = 2

    def step(self, x: Tensor, state: Tensor) -> Tensor:
        gate, new = (x @ self.w.T + state @ self.u.T + self.b).chunk(2, 1)
        return torch.lerp(state, torch.tanh(new), torch.sigmoid(gate))

    def forward(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def _step(self, x_m: Tensor, x_a: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        c = self.step(x_m + x_a, c)
        return torch.relu(c), c

    def advance(self, x: Tensor, state: Tensor) -> Tensor:
        return self._step(x / 2, x / 2, state)[1]


NEW: dict[str, tuple[type[Own], CellSpec | None]] = {
    "h_0 and c_0, a dict": (InADict, None),
    "h and c": (TwoArguments, None),
    "H_prev and C_prev": (Previous, None),
    "output, hidden, cell": (OutputFirst, None),
    "h, c, output": (OutputLast, None),
    "h, c, x": (TurnedRound, CellSpec()),
    "h, x": (StateFirst, CellSpec()),
    "a context": (Context, None),
    "cur_state": (Current, None),
    "a graph": (Graph, CellSpec()),
    "GRU-D": (Decaying, CellSpec()),
    "ON-LSTM": (Distances, None),
    "named": (OtherNames, CellSpec(state=("fast", "memory"), result=("quick", "slow"))),
    "one named": (StateFirst, CellSpec(state="h")),
    "a method": (StepMethod, CellSpec(method="_step")),
    "a method with one tensor": (OneStep, CellSpec(method="_step", state="c")),
}
"""Name -> a cell, and what has to be said of it: nothing where that is None."""


class EntityAware(nn.Module):
    """kratzert/ealstm_regional_modeling, `lstm.py`: all in one `forward`; the input gate sees static inputs alone."""

    def __init__(self) -> None:
        super().__init__()
        kind = {"dtype": torch.float64}
        self.w, self.u = (nn.Parameter(torch.randn(3 * HIDDEN, n, **kind) / 2) for n in (INPUT, HIDDEN))
        self.b = nn.Parameter(torch.randn(3 * HIDDEN, **kind))
        self.static = nn.Linear(INPUT, HIDDEN, **kind)

    def forward(self, x: Tensor, x_s: Tensor) -> Tensor:
        h, c, seen = x.new_zeros(x.shape[1], HIDDEN), x.new_zeros(x.shape[1], HIDDEN), []
        i = torch.sigmoid(self.static(x_s))
        for row in x:
            f, g, o = (row @ self.w.T + h @ self.u.T + self.b).chunk(3, 1)
            c = torch.sigmoid(f) * c + i * torch.tanh(g)
            h = torch.sigmoid(o) * torch.tanh(c)
            seen.append(h)
        return torch.stack(seen)


class StepOfEntityAware(EntityAware):
    """The same after the edit that the message asks for: what was in the loop is a method."""

    def forward(self, x: Tensor, x_s: Tensor) -> Tensor:
        h, c, seen = x.new_zeros(x.shape[1], HIDDEN), x.new_zeros(x.shape[1], HIDDEN), []
        i = torch.sigmoid(self.static(x_s))
        for row in x:
            h, c = self.one(row, h, c, i)
            seen.append(h)
        return torch.stack(seen)

    def one(self, x: Tensor, h: Tensor, c: Tensor, i: Tensor) -> State:
        f, g, o = (x @ self.w.T + h @ self.u.T + self.b).chunk(3, 1)
        c = torch.sigmoid(f) * c + i * torch.tanh(g)
        return torch.sigmoid(o) * torch.tanh(c), c
