"""`weights.update`: the change that the step's optimizer made to a gate's block, over the norm of the block."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from loop.loops import Loop, Net, observe
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.optim import SGD, Adam

import gradscope
from gradscope import cells

GATES = {
    "lstm": ("input", "forget", "candidate", "output"),
    "gru": ("reset", "update", "candidate"),
    "rnn": ("hidden",),
}


def blocks(weight: Tensor, gates: tuple[str, ...]) -> dict[str, Tensor]:
    return dict(zip(gates, weight.detach().double().clone().chunk(len(gates)), strict=True))


def changes(before: dict[str, Tensor], after: dict[str, Tensor]) -> dict[str, float]:
    return {gate: float((after[gate] - old).norm() / old.norm()) for gate, old in before.items()}


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
@pytest.mark.parametrize("every", [1, 3])
def test_layers_of_torch_s(kind: type[nn.RNNBase], every: int) -> None:
    """Of each layer and direction, on recorded steps."""
    model = kind(3, 5, 2, bidirectional=True)
    optimizer, expected = Adam(model.parameters(), 0.01), list[dict[Any, float]]()
    gates = GATES[kind.__name__.lower()]
    weights = {
        (layer, direction): getattr(model, f"weight_hh_l{layer}{'_reverse' * (direction == 'reverse')}")
        for layer in (0, 1)
        for direction in ("forward", "reverse")
    }
    with gradscope.attach(model, every=every, strict=True) as scope:
        for _ in range(4):
            optimizer.zero_grad()
            model(torch.randn(6, 2, 3))[0].square().sum().backward()
            before = {place: blocks(weight, gates) for place, weight in weights.items()}
            optimizer.step()
            after = {place: blocks(weight, gates) for place, weight in weights.items()}
            mine = {place: changes(before[place], after[place]) for place in weights}
            expected.append({(*place, gate): x for place, found in mine.items() for gate, x in found.items()})
    frame = scope.run.frame("weights")
    assert set(frame["step"]) == set(range(0, 4, every))
    for step, rows in frame.groupby("step"):
        found = {(r.layer, r.direction, r.gate): r["update"] for _, r in rows.iterrows()}
        assert found == pytest.approx(expected[step], rel=1e-4)


@pytest.mark.parametrize("build", [lambda: nn.GRUCell(3, 5), lambda: cells.GRUCell(3, 5)], ids=["torch's", "ours"])
def test_cells_in_a_loop(build: Callable[[], Any]) -> None:
    cell = build()
    optimizer = SGD(cell.parameters(), 0.1)
    name = next(n for n, p in cell.named_parameters() if p.shape[0] == 3 * p.shape[1] and p.shape[1] == 5)
    with gradscope.attach(cell, every=1, strict=True) as scope:
        state = torch.zeros(2, 5)
        for _ in range(4):
            state = cell(torch.ones(2, 3), state)
        state.sum().backward()
        before = cell.get_parameter(name).detach().double().clone()
        optimizer.step()
    change = cell.get_parameter(name).detach().double() - before
    found = scope.run.frame("weights").set_index("gate")["update"]
    expected = change.unflatten(0, (3, 5)).flatten(1).norm(dim=1) / before.unflatten(0, (3, 5)).flatten(1).norm(dim=1)
    assert sorted(found) == pytest.approx(sorted(expected.tolist()), rel=1e-4)


def test_a_step_that_is_skipped_changes_nothing() -> None:
    def train(loop: Loop) -> None:
        optimizer, scaler = SGD(loop.model.parameters(), 0.1), GradScaler("cpu", init_scale=8.0)
        for attempt in range(2):
            optimizer.zero_grad()
            scaler.scale(loop.loss()).backward()
            if attempt:
                loop.model.head.bias.grad[0] = torch.inf
            scaler.unscale_(optimizer)
            loop.measure()
            scaler.step(optimizer)
            scaler.update()

    update = observe(train).run.frame("weights").groupby("step")["update"].max()
    assert update[0] > 0 and update[1] == 0


def test_what_is_not_known_is_nan() -> None:
    """A step that is under way, and a weight that is made anew before each call."""
    model = Net()
    with gradscope.attach(model, every=1) as scope:
        model(torch.randn(4, 2, 3)).backward()
        assert scope.run.frame("weights")["update"].isna().all()
    made = nn.utils.parametrizations.weight_norm(nn.GRU(3, 5), "weight_hh_l0")
    with gradscope.attach(made, every=1) as scope:
        made(torch.randn(4, 2, 3))[0].sum().backward()
        SGD(made.parameters(), 0.1).step()
    assert scope.run.frame("weights")["update"].isna().all()
