"""Models and losses in 16 bits: what is recorded is reckoned in 32, unscaled, and close to the truth in 64."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.amp import GradScaler

import gradscope

KINDS = {torch.bfloat16: 0.06, torch.float16: 0.01}
"""How far from the truth the kernels' own arithmetic may be, relative to the largest over the timesteps."""


class Own(nn.Module):
    """A cell of somebody's own."""

    def __init__(self, inputs: int, hidden: int) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(inputs, hidden), nn.Linear(hidden, hidden)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        return torch.tanh(self.a(x) + self.b(h))


CELLS: dict[str, Any] = {"rnn": nn.RNNCell, "lstm": nn.LSTMCell, "gru": nn.GRUCell, "own": Own}


def unroll(cell: nn.Module, x: Tensor) -> list[Tensor]:
    """All h_t, in a loop."""
    zeros = x.new_zeros(x.shape[1], 4)
    state: Any = (zeros, zeros) if isinstance(cell, nn.LSTMCell) else zeros
    states = list[Tensor]()
    for row in x:
        state = cell(row, state)
        states.append(state[0] if isinstance(state, tuple) else state)
    return states


def loss_of(states: list[Tensor]) -> Tensor:
    return (torch.stack(states[1::2]).float() * 3).square().mean()


def rounded(name: str, kind: torch.dtype, steps: int = 6) -> tuple[nn.Module, Tensor]:
    """A cell and its input, that have 16-bit values exactly."""
    torch.manual_seed(2)
    return CELLS[name](3, 4).to(kind).float(), torch.randn(steps, 3, 3).to(kind).float()


def truth(name: str, kind: torch.dtype) -> Tensor:
    """Norm of the total gradient of every h_t of every sequence, in float64, by autograd: [T, B]."""
    cell, x = rounded(name, kind)
    states = unroll(cell.double(), x.double())
    for state in states:
        state.retain_grad()
    (torch.stack(states[1::2]) * 3).square().mean().backward()
    return torch.stack([state.grad.norm(dim=-1) for state in states if state.grad is not None])


def autocast(kind: torch.dtype, how: str) -> AbstractContextManager[Any]:
    return torch.autocast("cpu", kind) if how == "autocast" else nullcontext()


@pytest.mark.parametrize("how", ["model", "autocast"])
@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("name", CELLS)
def test_cells_in_loops(name: str, kind: torch.dtype, how: str) -> None:
    cell, x = rounded(name, kind)
    cell, x = (cell.to(kind), x.to(kind)) if how == "model" else (cell, x)
    with gradscope.attach(cell, every=1, max_sequences=None, strict=True) as scope, autocast(kind, how):
        loss_of(unroll(cell, x)).backward()
    run, want = scope.run, truth(name, kind)
    assert run.frame("notes").empty and run.frame("layers")["timesteps"].tolist() == [6]
    assert 0 <= run.frame("layers")["residual"].item() < KINDS[kind]
    got = run.frame("timesteps", quantity="grad_h")
    expected = torch.quantile(want, 0.5, dim=1)
    assert got["p50"].tolist() == pytest.approx(expected.tolist(), abs=KINDS[kind] * float(want.max()))
    assert run.frame("timesteps", quantity="jacobian")["p50"].notna().all()


@pytest.mark.filterwarnings("ignore:TF32 acceleration on top of oneDNN:UserWarning")
@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("family", [nn.RNN, nn.LSTM, nn.GRU])
def test_norms_are_taken_in_32_bits(family: Any, kind: torch.dtype) -> None:
    """The squares of gradients of a thousandth are nothing in float16, and their sum overflows where they are large."""
    module, x = family(3, 4, dtype=kind), torch.randn(5, 2, 3, dtype=kind)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.0)
    for size in (1e-3, 1e3):
        module.zero_grad()
        with gradscope.attach(module, every=1, max_sequences=None, strict=True) as scope:
            with torch.backends.mkldnn.flags(enabled=False):
                (module(x)[0] * size).sum().backward()
            optimizer.step()
        exact = math.sqrt(sum(float(p.grad.double().square().sum()) for p in module.parameters()))
        assert scope.run.frame("steps")["grad_norm"].item() == pytest.approx(exact, rel=1e-5)
        direct = scope.run.frame("timesteps", quantity="grad_h_direct")
        assert direct["p50"].tolist() == pytest.approx([2 * size] * 5, rel=1e-2)  # four units
        assert (direct["nonfinite"] == 0).all()


def scaled_training(init_scale: float) -> gradscope.Run:
    """Autocast in float16 with a scaler: five attempts, the third without a finite gradient."""
    torch.manual_seed(0)
    model = nn.ModuleDict({"cell": Own(3, 4), "rnn": nn.GRU(4, 4)})
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = GradScaler("cpu", init_scale=init_scale, growth_interval=100)
    with gradscope.attach(model, every=1, max_sequences=None, strict=True) as scope:
        for attempt in range(5):
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.float16):
                states = unroll(model["cell"], torch.randn(4, 2, 3))
                output, _ = model["rnn"](torch.stack(states))
                loss = output.float().square().mean()
            scaler.scale(loss * (math.inf if attempt == 2 else 1.0)).backward()
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(model.parameters(), 1e9)
            scaler.step(optimizer)
            scaler.update()
    return scope.run


def test_a_scaler_with_autocast() -> None:
    """All tables unscaled: the same for any factor, as far as float16 carries; an infinite attempt is counted apart."""
    small, large = scaled_training(1.0), scaled_training(1024.0)
    for run in (small, large):
        steps = run.frame("steps")
        assert steps["skipped"].tolist() == [False, False, True, False, False]
        assert [n > 0 for n in steps["nonfinite"]] == [False, False, True, False, False]
        clips = run.frame("clips")
        assert clips["nonfinite"].tolist() == [0, 0, 1, 0, 0] and not clips["clipped"][[0, 1, 3, 4]].any()
        assert not [finding for finding in run.findings() if finding.code == "nonfinite_gradient"]
    finite = [0, 1, 3, 4]
    for table, column in (("steps", "grad_norm"), ("clips", "norm_before")):
        one, other = (run.frame(table, step=finite)[column].tolist() for run in (small, large))
        assert one == pytest.approx(other, rel=5e-3)
    for quantity in ("grad_h", "grad_h_direct", "jacobian"):
        frames = [run.frame("timesteps", step=finite, quantity=quantity) for run in (small, large)]
        assert {(module, 4) for module in ("cell", "rnn")} == set(frames[0].groupby("module")["t"].nunique().items())
        one, other = (torch.tensor(frame["p50"].to_numpy()) for frame in frames)
        assert one.isfinite().all() and torch.allclose(one, other, rtol=2e-2, atol=2e-3 * float(other.max()))
