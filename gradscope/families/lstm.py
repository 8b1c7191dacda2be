"""LSTM (Hochreiter & Schmidhuber 1997; Gers et al. 2000), gate order i, f, g, o, with or without a projection R.

    i, f, o = sigmoid(a_i, a_f, a_o);  g = tanh(a_g);  a = W x_t + b_ih + U h_{t-1} + b_hh
    c_t = f c_{t-1} + i g;  q_t = o tanh(c_t);  h_t = q_t, or R q_t (Sak et al. 2014)

Step Jacobian, with tc = tanh c_t and k = o (1 - tc^2) = dq/dc:

    dc/dc' = diag(f)         dc/dh' = A_i U_i + A_f U_f + A_g U_g
    dq/dc' = diag(k f)       dq/dh' = k (A_i U_i + A_f U_f + A_g U_g) + A_o U_o
    A_i = g i (1 - i)   A_f = c_{t-1} f (1 - f)   A_g = i (1 - g^2)   A_o = tc o (1 - o)
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

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
    quadratic_form,
    sigmoid_backward,
    tanh_backward,
    total_preactivation,
)
from gradscope.types import Weights

CHUNKED, SMALL = 64, 1024
"""Timesteps from which the cell path takes fewer operations in chunks. On a CPU only those of small layers do."""


class LSTM(Family):
    """`nn.LSTM`. Factors of a piece: A_i, A_f, A_g as [t, B, 3, H], then A_o, k and f, [t, B, H] each."""

    name = "lstm"
    gates = ("input", "forget", "candidate", "output")
    cell = True

    @override
    def run(self, weights: Weights, x: Tensor, h_0: Tensor, c_0: Tensor | None) -> Tensor:
        assert c_0 is not None
        state = [h_0.unsqueeze(0), c_0.unsqueeze(0)]
        flat = flat_weights(self, weights)
        return torch.lstm(x, state, flat, weights.b_ih is not None, 1, 0.0, False, False, False)[0]

    @override
    def replay(self, layer: Layer) -> Trace:
        assert layer.c_0 is not None
        previous = layer.previous
        gates = _gates(layer, previous) if layer.gates is None else layer.gates
        if layer.state_inputs is not None:
            inputs = layer.state_inputs[1]
            cells = torch.cat([inputs[:1], torch.addcmul(gates[0] * gates[2], gates[1], inputs)])
            return Trace(layer, previous, gates.movedim(0, 2), cells, cell_inputs=inputs)
        return Trace(layer, previous, gates.movedim(0, 2), _cell_path(gates, layer.c_0))

    @override
    def piece(self, trace: Trace, start: int, stop: int) -> Piece:
        assert trace.cells is not None
        i, f, g, o = cut(trace.gates, start, stop).unbind(2)
        inputs = (trace.cells if trace.cell_inputs is None else trace.cell_inputs)[start:stop]
        a_i, a_f, a_g, a_o, k, tc = factors = g.new_empty(6, *g.shape)
        torch.tanh(trace.cells[start + 1 : stop + 1], out=tc)
        sigmoid_backward(tc, o, out=a_o)
        tanh_backward(o, tc, out=k)
        q = tc.mul_(o)
        sigmoid_backward(g, i, out=a_i)
        sigmoid_backward(inputs, f, out=a_f)
        tanh_backward(i, g, out=a_g)
        hr = trace.layer.weights.hr
        output = q if hr is None else q @ hr.mT
        return Piece((factors[:3].movedim(0, 2), a_o, k, f), q, output, cut(trace.previous, start, stop))

    @override
    def constants(self, weights: Weights) -> tuple[Tensor, ...]:
        i_i, i_f, i_g, i_o, f_f, f_g, f_o, g_g, g_o, o_o = gram(weights, 4)
        inner = (i_i, i_f, i_g, f_f, f_g, g_g, i_o, f_o, g_o, o_o)
        working = torch.ones_like(o_o), o_o.new_empty(0)
        if weights.hr is None:
            return *inner, *working
        # ||R sum_k diag(d_k) U_k||_F^2 = sum_kl d_k^T [(R^T R) o (U_k U_l^T)] d_l
        projection = weights.hr.mT @ weights.hr
        return *inner, projection.repeat(4, 4) * (weights.hh @ weights.hh.mT), projection.diagonal(), *working

    @override
    def sizes(self, constants: tuple[Tensor, ...], piece: Piece) -> dict[str, Tensor]:
        a, a_o, k, f = piece.factors
        parts = [*a.movedim(2, 0).flatten(1, 2).unbind(0)]
        a_o, k, f = a_o.flatten(0, 1), k.flatten(0, 1), f.flatten(0, 1)
        inner, projected, ones = constants[:10], constants[10:-2], constants[-2]
        cell_rows, squares, part = constants[-1].resize_(3, *f.shape).unbind(0)
        sums = f.new_empty(4, *a.shape[:2])
        h_h, h_c, c_h, c_c = sums.flatten(1).unbind(0)
        torch.mv(torch.mul(f, f, out=squares), ones, out=c_c)
        torch.mv(quadratic_form(inner[:6], parts, cell_rows, part), ones, out=c_h)
        if projected:
            d = torch.cat([*(k * x for x in parts), a_o], 1)
            torch.sum((d @ projected[0]).mul_(d), -1, out=h_h)
            torch.mv(squares.mul_(torch.mul(k, k, out=part)), projected[1], out=h_c)
        else:
            linear_form(inner[6:9], parts, part).mul_(k).addcmul_(inner[9], a_o, value=0.5).mul_(a_o)
            torch.mv(part, ones, out=h_h)
            torch.mul(k, k, out=part)
            h_h.addmv_(cell_rows.mul_(part), ones, beta=2)
            torch.mv(squares.mul_(part), ones, out=h_c)
        return {"jacobian": sums.sum(0), "jacobian_h": sums[0], "jacobian_c": sums[3]}

    @override
    def scan(self, weights: Weights, factors: tuple[Tensor, ...], states: State) -> Iterator[int]:
        h, rows = states[0].unbind(0), states[0].flatten(1, 2).unbind(0)
        c = states[1].unbind(0)
        total, gates = torch.empty_like(c[0]), c[0].new_empty(*c[0].shape[:2], 4, c[0].shape[2])
        flat, into_c, into_o = gates.view(-1, weights.hh.shape[0]), gates[..., :3, :], gates[..., 3, :]
        wide = total.unsqueeze(-2)
        steps = list(zip(*(f.unbind(0) for f in factors), strict=True))
        for t in range(len(steps) - 1, -1, -1):
            a, a_o, k, f = steps[t]
            q = h[t + 1] if weights.hr is None else h[t + 1] @ weights.hr
            torch.addcmul(c[t + 1], q, k, out=total)
            torch.mul(wide, a, out=into_c)
            torch.mul(q, a_o, out=into_o)
            rows[t].addmm_(flat, weights.hh)
            c[t].addcmul_(total, f)
            yield t

    @override
    def cotangents(self, weights: Weights, factors: tuple[Tensor, ...], state: State) -> Cotangents:
        a, a_o, k, _ = factors
        q = state[0] if weights.hr is None else state[0] @ weights.hr
        cell = torch.addcmul(state[1], q, k)
        gates = cell.new_empty(*cell.shape[:2], 4, cell.shape[2])
        torch.mul(cell.unsqueeze(-2), a, out=gates[..., :3, :])
        torch.mul(q, a_o, out=gates[..., 3, :])
        return Cotangents(gates, cell)

    @override
    def push(self, weights: Weights, factors: tuple[Tensor, ...], state: State) -> State:
        a, a_o, k, f = factors
        pre = (state[0] @ weights.hh.mT).unflatten(-1, (4, -1))
        c = torch.addcmul((a * pre[..., :3, :]).sum(-2), f, state[1])
        q = torch.addcmul(a_o * pre[..., 3, :], k, c)
        return (q if weights.hr is None else q @ weights.hr.mT, c)


def _gates(layer: Layer, previous: Tensor) -> Tensor:
    """The gates after their nonlinearity, [4, T, B, H], from the inputs and h_{t-1}."""
    return apply_nonlinearity(total_preactivation(layer, previous, 4))


def apply_nonlinearity(gates: Tensor) -> Tensor:
    """The gates from their pre-activations, [4, ...], in place."""
    i, f, g, o = gates
    for gate in (i, f, o):
        gate.sigmoid_()
    g.tanh_()
    return gates


def _cell_path(gates: Tensor, c_0: Tensor) -> Tensor:
    """c_{-1}, ..., c_{T-1}, [T + 1, B, H]: an elementwise scan, within `count` chunks of time at once."""
    i, f, g, _ = gates
    cells = torch.cat([c_0.unsqueeze(0), i * g])
    launching = c_0.device.type != "cpu" or c_0.numel() <= SMALL
    length = math.isqrt(len(f) // 3) if launching and len(f) >= CHUNKED else 1
    count = len(f) // length if length > 1 else 0
    first = len(f) - count * length  # the steps before the chunks
    _scan_cells(cells.unbind(0)[: first + 1], f.unbind(0)[:first])
    if count:
        inside, forget = (x[-count * length :].unflatten(0, (count, length)).unbind(1) for x in (cells, f))
        own, share = inside[0], forget[0].clone()  # a chunk ends with its own + share * the cell before it
        for now, keep in zip(inside[1:], forget[1:], strict=True):
            own = torch.addcmul(now, keep, own)
            share.mul_(keep)
        ends = torch.cat([cells[first : first + 1], own])
        _scan_cells(ends.unbind(0), share.unbind(0))
        _scan_cells([ends[:-1], *inside], forget)
    return cells


def _scan_cells(cells: Sequence[Tensor], forget: Sequence[Tensor]) -> None:
    for now, share, before in zip(cells[1:], forget, cells, strict=False):
        now.addcmul_(share, before)
