"""One sequence after the other: every state a tensor of its own, every Jacobian formed, everything by autograd."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

KEY = ["step", "module", "layer", "direction", "chain"]
STATISTICS = ["p10", "p50", "p90", "mean"]
FLOOR = 1e-3

BLOCKS = {  # rows of weight_hh, in the order in which torch stacks them
    "RNN": ("hidden",),
    "LSTM": ("input", "forget", "candidate", "output"),
    "GRU": ("reset", "update", "candidate"),
}
CORE = ("grad_h", "grad_h_direct", "grad_c", "weight_grad", "jacobian", "jacobian_h", "jacobian_c", "state", "cell")
FULL = (*CORE, "jacobian_max", "gain")
LSTM_ONLY = {"grad_c", "jacobian_c", "cell"}

Loss = Callable[[Any, Tensor, "Tensor | None"], Tensor]


@dataclass(frozen=True)
class Call:
    """One call of a fused module and what is done with its result.

    Attributes:
        loss: of `(output, h_n, c_n)` in the module's own layout (`c_n` is None but for LSTM).
        masks: dropout masks after each layer but the last, scaled, [time, sequence, feature], in kernel order.
        weights: the weights that the kernel used, by name, where they are not the module's attributes.
        dtype: of the whole computation.
    """

    module: nn.RNNBase
    input: Tensor | PackedSequence
    loss: Loss
    hx: Any = None
    masks: Sequence[Tensor] = ()
    weights: Mapping[str, Tensor] | None = None
    dtype: torch.dtype = torch.float64


@dataclass
class Step:
    """One timestep of one sequence. `above` is h as the output, the layer above and nobody else see it."""

    x: Tensor
    h_before: Tensor
    c_before: Tensor | None
    recurrent: Tensor  # U h_{t-1} + b_hh
    h: Tensor
    c: Tensor | None
    gates: dict[str, Tensor]
    above: Tensor | None = None


@dataclass
class Cell:
    """The equations of one layer and direction, as the documentation of torch gives them."""

    family: str
    nonlinearity: str
    W: Tensor
    U: Tensor
    b_ih: Tensor | None
    b_hh: Tensor | None
    R: Tensor | None

    def __call__(self, x: Tensor, h: Tensor, c: Tensor | None) -> Step:
        from_input = self.W @ x
        if self.b_ih is not None:
            from_input = from_input + self.b_ih
        recurrent = self.U @ h
        if self.b_hh is not None:
            recurrent = recurrent + self.b_hh
        equations = {"RNN": self.rnn, "LSTM": self.lstm, "GRU": self.gru}[self.family]
        new_h, new_c, gates = equations(from_input, recurrent, h, c)
        return Step(x, h, c, recurrent, new_h, new_c, gates)

    def rnn(self, from_input, recurrent, h, c):
        squash = torch.tanh if self.nonlinearity == "tanh" else torch.relu
        new_h = squash(from_input + recurrent)
        return new_h, None, {"hidden": new_h}

    def lstm(self, from_input, recurrent, h, c):
        a_i, a_f, a_g, a_o = (from_input + recurrent).chunk(4)
        i, f, g, o = torch.sigmoid(a_i), torch.sigmoid(a_f), torch.tanh(a_g), torch.sigmoid(a_o)
        new_c = f * c + i * g
        hidden = o * torch.tanh(new_c)
        new_h = hidden if self.R is None else self.R @ hidden
        return new_h, new_c, {"input": i, "forget": f, "output": o, "candidate": g, "hidden": hidden}

    def gru(self, from_input, recurrent, h, c):
        (x_r, x_z, x_n), (h_r, h_z, h_n) = from_input.chunk(3), recurrent.chunk(3)
        r, z = torch.sigmoid(x_r + h_r), torch.sigmoid(x_z + h_z)
        n = torch.tanh(x_n + r * h_n)
        new_h = (1 - z) * n + z * h
        return new_h, None, {"reset": r, "update": z, "candidate": n, "hidden": new_h}

    def jacobian(self, step: Step) -> Tensor:
        """d(h_t, c_t) / d(h_{t-1}, c_{t-1}); without a cell state, dh_t / dh_{t-1}."""
        size = len(step.h_before)
        before = joined(step.h_before.detach(), step.c_before)

        def advance(state: Tensor) -> Tensor:
            after = self(step.x.detach(), state[:size], state[size:] if step.c is not None else None)
            return joined(after.h, after.c)

        return torch.autograd.functional.jacobian(advance, before.detach())


def joined(h: Tensor, c: Tensor | None) -> Tensor:
    return h if c is None else torch.cat([h, c])


def _grad(tensor: Tensor) -> Tensor:
    return torch.zeros_like(tensor).detach() if tensor.grad is None else tensor.grad.detach()


def _norm(tensor: Tensor) -> float:
    """Euclidean, of the entries as float64: the squares of small float32 numbers would vanish."""
    return float(tensor.detach().double().norm())


def _largest(matrix: Tensor) -> float:
    """The largest singular value; NaN where there is none."""
    return float(torch.linalg.matrix_norm(matrix, 2)) if bool(matrix.isfinite().all()) else math.nan


def _kept(tensor: Tensor) -> Tensor:
    tensor.retain_grad()
    return tensor


@dataclass
class Track:
    """One sequence through one layer in one direction; `steps` are in the order of the input."""

    cell: Cell
    reverse: bool
    steps: list[Step]
    h_n: Tensor
    c_n: Tensor | None

    @property
    def order(self) -> list[int]:
        """The timesteps in the order in which the recurrence visits them."""
        return list(range(len(self.steps)))[:: -1 if self.reverse else 1]

    @cached_property
    def jacobians(self) -> list[Tensor]:
        """In float64 whatever the precision of the network, so that products of many do not leave its range."""
        return [self.cell.jacobian(step).double() for step in self.steps]

    def entering(self, t: int) -> tuple[Tensor, Tensor | None]:
        """The gradient that enters (h_t, c_t) from outside the recurrence."""
        step, is_last = self.steps[t], t == self.order[-1]
        g_h = _grad(step.above) + (_grad(self.h_n) if is_last else 0)
        if step.c is None:
            return g_h, None
        return g_h, _grad(self.c_n) if is_last else torch.zeros_like(step.c).detach()

    @cached_property
    def products(self) -> dict[int, Tensor]:
        """ds_T/ds_t for every t, T the last step."""
        product = torch.eye(len(self.jacobians[0]), dtype=torch.float64)
        found = {}
        for t in reversed(self.order):
            found[t] = product
            product = product @ self.jacobians[t]
        return found

    @cached_property
    def anchors(self) -> list[int]:
        """Positions, counted along the recurrence, of at most three entering gradients that are not zero."""
        entries = [joined(*self.entering(t)) for t in self.order]
        return choose_anchors([position for position, g in enumerate(entries) if bool((g != 0).any())])

    @cached_property
    def reach(self) -> list[float]:
        """By lag: the median over the anchors that go back that far."""
        curves = []
        for anchor in self.anchors:
            v = joined(*self.entering(self.order[anchor])).double()
            sizes = [v.norm()]
            for position in range(anchor, 0, -1):
                v = self.jacobians[self.order[position]].T @ v
                sizes.append(v.norm())
            curves.append([float(size / sizes[0]) for size in sizes])
        longest = max(map(len, curves), default=0)
        return [float(np.median([curve[lag] for curve in curves if len(curve) > lag])) for lag in range(longest)]

    def measure(self, t: int) -> dict[str, float]:
        """Every quantity of the contract at one timestep."""
        step, jacobian = self.steps[t], self.jacobians[t]
        size, n = len(step.h), len(jacobian)
        values = {
            "grad_h": _norm(_grad(step.h)),
            "grad_h_direct": _norm(self.entering(t)[0]),
            "weight_grad": _norm(_grad(step.recurrent)) * _norm(step.h_before),
            "jacobian": _norm(jacobian) / math.sqrt(n),
            "jacobian_h": _norm(jacobian[:size, :size]) / math.sqrt(size),
            "state": _norm(step.h) / math.sqrt(size),
            "jacobian_max": _largest(jacobian),
            "gain": _norm(self.products[t]) / math.sqrt(n),
        }
        if step.c is not None:
            values["grad_c"] = _norm(_grad(step.c))
            values["jacobian_c"] = _norm(jacobian[size:, size:]) / math.sqrt(n - size)
            values["cell"] = _norm(step.c) / math.sqrt(n - size)
        return values

    @property
    def lyapunov(self) -> float | None:
        """None for a sequence of one step, that has no Jacobian between states; -inf where nothing comes back."""
        lags = len(self.steps) - 1
        if lags == 0:
            return None
        largest = _largest(self.products[self.order[0]])
        return -math.inf if largest == 0 else math.log(largest) / lags


def choose_anchors(positions: list[int], most: int = 3) -> list[int]:
    """At most `most` of the positions, evenly spaced, the last one always."""
    count, kept = len(positions), min(most, len(positions))
    return [positions[(j + 1) * count // kept - 1] for j in range(kept)]


def choose_sequences(batch: int, most: int | None) -> list[int]:
    """At most `most` of the batch, evenly spaced."""
    kept = batch if most is None else min(batch, most)
    return [math.floor(x + 0.5) for x in np.linspace(0, batch - 1, kept)]


@dataclass
class Layer:
    """One layer in one direction: a track for every sequence of the batch, in kernel order."""

    layer: int
    direction: str
    cell: Cell
    tracks: list[Track]


@dataclass
class Truth:
    """What one call did, and every layer of it."""

    output: Any
    h_n: Tensor
    c_n: Tensor | None
    loss: Tensor
    layers: list[Layer]
    weights: dict[str, Tensor] = field(repr=False)
    inputs: list[Tensor] = field(repr=False)
    initial: tuple[Tensor, Tensor | None] = field(repr=False)
