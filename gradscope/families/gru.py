"""GRU (Cho et al. 2014) in torch's form, with the reset after the matrix product; gate order r, z, n.

    r, z = sigmoid(a_r, a_z);  m = U_n h_{t-1} + b_hn;  n = tanh(W_n x_t + b_in + r m);  h_t = (1 - z) n + z h_{t-1}

Step Jacobian:

    dh/dh' = diag(z) + D_r U_r + D_z U_z + D_n U_n
    D_z = (h' - n) z (1 - z)    D_n = (1 - z) (1 - n^2) r    D_r = (1 - z) (1 - n^2) m r (1 - r)
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from typing_extensions import override

from gradscope.families.base import (
    Cotangents,
    Family,
    Layer,
    Piece,
    State,
    Trace,
    cut,
    flat_weights,
    gram,
    linear_form,
    preactivations,
    quadratic_form,
    sigmoid_backward,
    tanh_backward,
)
from gradscope.types import Weights


class GRU(Family):
    """`nn.GRU`. Factors of a piece: D as [t, B, 3, H], then z and (1 - z) (1 - n^2), [t, B, H] each."""

    name = "gru"
    gates = ("reset", "update", "candidate")

    @override
    def run(self, weights: Weights, x: Tensor, h_0: Tensor, c_0: Tensor | None) -> Tensor:
        flat = flat_weights(self, weights)
        return torch.gru(x, h_0.unsqueeze(0), flat, weights.b_ih is not None, 1, 0.0, False, False, False)[0]

    @override
    def replay(self, layer: Layer) -> Trace:
        previous = layer.previous
        gates, recurrent = preactivations(layer, previous, 3)
        gates[:2].add_(recurrent[:2]).sigmoid_()
        inner = recurrent[2].clone()
        gates[2].addcmul_(gates[0], inner).tanh_()
        return Trace(layer, previous, gates.movedim(0, 2), inner=inner)

    @override
    def piece(self, trace: Trace, start: int, stop: int) -> Piece:
        assert trace.inner is not None
        previous, inner = cut(trace.previous, start, stop), cut(trace.inner, start, stop)
        r, z, n = cut(trace.gates, start, stop).unbind(2)
        through = 1 - z
        tanh_backward(through, n, out=through)
        d = n.new_empty(3, *n.shape)
        sigmoid_backward(torch.mul(through, inner, out=d[0]), r, out=d[0])
        difference = previous - n
        sigmoid_backward(difference, z, out=d[1])
        torch.mul(through, r, out=d[2])
        output = torch.addcmul(n, z, difference, out=difference)
        return Piece((d.movedim(0, 2), z, through), output, output, previous)

    @override
    def constants(self, weights: Weights) -> tuple[Tensor, ...]:
        diagonals = 2 * torch.diagonal(weights.hh.unflatten(0, (3, -1)), dim1=1, dim2=2)
        return *gram(weights, 3), *diagonals.unbind(0), torch.ones_like(diagonals[0]), weights.hh.new_empty(0)

    @override
    def sizes(self, constants: tuple[Tensor, ...], piece: Piece) -> dict[str, Tensor]:
        d, e, _ = piece.factors
        parts, e = [part.flatten(0, 1) for part in d.unbind(2)], e.flatten(0, 1)
        rows, spare = constants[-1].resize_(2, *e.shape).unbind(0)
        quadratic_form(constants[:6], parts, rows, spare)
        rows.addcmul_(e, linear_form(constants[6:9], parts, spare).add_(e))
        size = torch.mv(rows, constants[-2]).unflatten(0, d.shape[:2])
        return {"jacobian": size, "jacobian_h": size}

    @override
    def scan(self, weights: Weights, factors: tuple[Tensor, ...], states: State) -> Iterator[int]:
        h, rows = states[0].unbind(0), states[0].flatten(1, 2).unbind(0)
        wide = states[0].unsqueeze(-2).unbind(0)
        gates = h[0].new_empty(*h[0].shape[:2], 3, h[0].shape[2])
        flat = gates.flatten(0, 1).flatten(1)
        d, e = factors[0].unbind(0), factors[1].unbind(0)
        for t in range(len(d) - 1, -1, -1):
            torch.mul(wide[t + 1], d[t], out=gates)
            rows[t].addmm_(flat, weights.hh)
            h[t].addcmul_(h[t + 1], e[t])
            yield t

    @override
    def cotangents(self, weights: Weights, factors: tuple[Tensor, ...], state: State) -> Cotangents:
        return Cotangents(state[0].unsqueeze(-2) * factors[0])

    @override
    def push(self, weights: Weights, factors: tuple[Tensor, ...], state: State) -> State:
        d, e, _ = factors
        pre = (state[0] @ weights.hh.mT).unflatten(-1, (3, -1))
        return (torch.addcmul((d * pre).sum(-2), e, state[0]),)

    @override
    def input_cotangents(self, piece: Piece, state: State, gates: Tensor) -> Tensor:
        candidate = state[0] * piece.factors[2]
        return torch.cat([gates[:, :, :2], candidate.unsqueeze(2)], 2)
