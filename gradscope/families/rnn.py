"""Elman RNN: h_t = f(a_t), a_t = W x_t + b_ih + U h_{t-1} + b_hh, with f = tanh or ReLU.

Step Jacobian: dh_t/dh_{t-1} = diag(d_t) U with d = f'(a).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator
from typing import ClassVar

import torch
from torch import Tensor
from typing_extensions import override

from gradscope.families.base import (
    RELU_LIMITS,
    Cotangents,
    Family,
    Layer,
    Piece,
    State,
    Trace,
    cut,
    flat_weights,
    gram,
    total_preactivation,
)
from gradscope.types import Weights


class _Elman(Family):
    gates = ("hidden",)
    kernel: ClassVar[Callable[..., tuple[Tensor, Tensor]]]

    @override
    def run(self, weights: Weights, x: Tensor, h_0: Tensor, c_0: Tensor | None) -> Tensor:
        flat = flat_weights(self, weights)
        return self.kernel(x, h_0.unsqueeze(0), flat, weights.b_ih is not None, 1, 0.0, False, False, False)[0]

    @override
    def replay(self, layer: Layer) -> Trace:
        previous = layer.previous
        rebuilt = self.activate(total_preactivation(layer, previous, 1)).view_as(layer.output)
        return Trace(layer, previous, rebuilt.unsqueeze(2))

    @override
    def piece(self, trace: Trace, start: int, stop: int) -> Piece:
        # The kernel's own backward computes f' from the output; the same here gives the same rounding.
        output, gates = cut(trace.layer.output, start, stop), cut(trace.gates, start, stop)
        return Piece((self.slope(output),), output, gates[:, :, 0], cut(trace.previous, start, stop))

    @override
    def constants(self, weights: Weights) -> tuple[Tensor, ...]:
        return *gram(weights, 1), weights.hh.new_empty(0)

    @override
    def sizes(self, constants: tuple[Tensor, ...], piece: Piece) -> dict[str, Tensor]:
        rows, scratch = constants
        (d,) = piece.factors
        size = torch.mul(d, d, out=scratch.resize_(d.shape)) @ rows
        return {"jacobian": size, "jacobian_h": size}

    @override
    def scan(self, weights: Weights, factors: tuple[Tensor, ...], states: State) -> Iterator[int]:
        h, rows, slopes = states[0].unbind(0), states[0].flatten(1, 2).unbind(0), factors[0].unbind(0)
        gates = torch.empty_like(h[0])
        flat = gates.flatten(0, 1)
        for t in range(len(slopes) - 1, -1, -1):
            torch.mul(h[t + 1], slopes[t], out=gates)
            rows[t].addmm_(flat, weights.hh)
            yield t

    @override
    def cotangents(self, weights: Weights, factors: tuple[Tensor, ...], state: State) -> Cotangents:
        return Cotangents((state[0] * factors[0]).unsqueeze(-2))

    @override
    def push(self, weights: Weights, factors: tuple[Tensor, ...], state: State) -> State:
        return ((state[0] @ weights.hh.mT) * factors[0],)

    @override
    def activations(self, trace: Trace, piece: Piece, start: int, stop: int) -> tuple[Tensor, Tensor | None]:
        return piece.hidden.unsqueeze(2), None

    @abstractmethod
    def activate(self, a: Tensor) -> Tensor:
        """f(a), in place."""

    @abstractmethod
    def slope(self, y: Tensor) -> Tensor:
        """f'(a) from y = f(a)."""


class TanhRNN(_Elman):
    """`nn.RNN(nonlinearity="tanh")`."""

    name = "rnn_tanh"
    kernel = staticmethod(torch.rnn_tanh)

    @override
    def activate(self, a: Tensor) -> Tensor:
        return a.tanh_()

    @override
    def slope(self, y: Tensor) -> Tensor:
        return 1 - y.square()


class ReluRNN(_Elman):
    """`nn.RNN(nonlinearity="relu")`. A unit is `low` if it is exactly 0, and never `high`."""

    name = "rnn_relu"
    kernel = staticmethod(torch.rnn_relu)

    @override
    def activate(self, a: Tensor) -> Tensor:
        return a.relu_()

    @override
    def slope(self, y: Tensor) -> Tensor:
        return 1 - (y <= 0).to(y.dtype)  # 1 for NaN, as in the kernel's own backward

    @override
    def limits(self, gate: str) -> tuple[float, float]:
        return RELU_LIMITS
