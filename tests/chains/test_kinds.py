"""Cells that are not just cells: weights made anew before each call, 16-bit arithmetic, subclasses."""

from __future__ import annotations

import warnings

import pytest
import torch
from cases import uneven
from chains.hold import HIDDEN, INPUT, a_cell, data
from torch import nn
from torch.nn.utils import parametrizations, weight_norm

import gradscope

TIME, BATCH = 5, 2


@pytest.mark.parametrize("name", ["weight_norm", "parametrization", "spectral"])
def test_weights_that_are_made_before_each_call(name):
    cell = a_cell("lstm")
    if name == "weight_norm":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            weight_norm(cell, "weight_hh")
    elif name == "parametrization":
        parametrizations.weight_norm(cell, "weight_hh")
    else:
        parametrizations.spectral_norm(cell, "weight_hh")
        cell.eval()
    x = data(TIME, BATCH, INPUT)
    with gradscope.attach(cell, every=1, strict=True) as scope:
        state = None
        for t in range(TIME):
            state = cell(x[t], state)
        uneven(state[0]).backward()
    layers = scope.run.frame("layers")
    assert layers[["chain", "timesteps"]].values.tolist() == [[0, TIME]]
    assert scope.run.frame("notes").empty
    assert layers["residual"].max() < 1e-9
    assert len(scope.run.frame("timesteps", quantity="grad_h")) == TIME


def test_autocast():
    torch.manual_seed(0)
    cell, x = nn.LSTMCell(INPUT, HIDDEN), torch.randn(TIME, BATCH, INPUT)

    def run(dtype):
        state = None
        with gradscope.attach(cell, every=1, strict=True) as scope:
            with torch.autocast("cpu", dtype, enabled=dtype is not None):
                for t in range(TIME):
                    state = cell(x[t], state)
            uneven(state[0].float()).backward()
        cell.zero_grad()
        return scope.run

    half, whole = run(torch.bfloat16), run(None)
    assert half.frame("notes").empty
    for quantity in ("grad_h", "state", "jacobian", "weight_grad", "grad_c"):
        mine, theirs = (r.frame("timesteps", quantity=quantity)["p50"].tolist() for r in (half, whole))
        assert mine == pytest.approx(theirs, rel=0.05, abs=0.05 * max(theirs))
    direct = half.frame("timesteps", quantity="grad_h_direct")["p50"].tolist()
    assert direct[:-1] == [0] * (TIME - 1) and direct[-1] > 0


class Peephole(nn.LSTMCell):
    """A subclass with a forward of its own."""

    def forward(self, x, state=None):
        h, c = state if state is not None else (x.new_zeros(len(x), self.hidden_size),) * 2
        gates = x @ self.weight_ih.T + h @ self.weight_hh.T + self.bias_ih + self.bias_hh
        i, f, g, o = gates.chunk(4, 1)
        c = torch.sigmoid(f + c) * c + torch.sigmoid(i + c) * torch.tanh(g)
        return torch.sigmoid(o + c) * torch.tanh(c), c


def test_a_subclass_is_never_taken_for_the_class():
    """Measured by its own forward, or not at all: one chain, and totals that are autograd's."""
    torch.manual_seed(0)
    cell = Peephole(INPUT, HIDDEN, dtype=torch.float64)
    x = data(TIME, BATCH, INPUT)
    hs = []
    with gradscope.attach(cell, every=1, strict=True) as scope:
        state = None
        for t in range(TIME):
            state = cell(x[t], state)
            state[0].retain_grad()
            hs.append(state[0])
        uneven(state[0]).backward()
    found = scope.run.frame("timesteps", quantity="grad_h")
    if scope.run.frame("notes").empty:
        assert found["mean"].tolist() == pytest.approx([float(h.grad.norm(dim=1).mean()) for h in hs], rel=1e-9)
        assert scope.run.frame("layers")["timesteps"].tolist() == [TIME]
    else:
        assert found["mean"].isna().all()
