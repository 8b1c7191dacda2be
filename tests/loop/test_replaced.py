"""Layers that are replaced after `attach`: nothing of what takes their place is observed, and that is said."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import gradscope
from gradscope.observe.unseen import REPLACED


class Net(nn.Module):
    """Two layers, of which one may be replaced."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.rnn = nn.GRU(2, 2), nn.GRU(2, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.rnn(self.first(x)[0])[0]


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int = 3) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.ones(4, 2, 2)).square().sum().backward()
        optimizer.step()


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), 0.1)


def reasons(scope: gradscope.Scope) -> list[tuple[str, str]]:
    notes = scope.run.frame("notes")
    return list(dict.fromkeys(zip(notes["module"], notes["reason"], strict=True)))


@pytest.mark.parametrize("keep", [True, False], ids=["the old one is kept", ""])
@pytest.mark.parametrize("early", [True, False], ids=["before the first step", "later"])
@pytest.mark.parametrize("arguments", [{"include": "rnn"}, {}], ids=["all that is watched", "one of two"])
def test_a_layer_that_is_replaced(early: bool, keep: bool, arguments: Any) -> None:
    """By an optimizer that is made afterwards, which where no layer is left is none of ours."""
    model = Net()
    with gradscope.attach(model, every=1, strict=True, **arguments) as scope:
        if not early:
            train(model, sgd(model))
        old, model.rnn = model.rnn, nn.GRU(2, 3)
        if not keep:
            del old
        with pytest.warns(gradscope.GradscopeWarning, match="^rnn: it is no longer part of the model") as said:
            train(model, sgd(model))
    assert len(said) == 1
    assert ("rnn", REPLACED) in reasons(scope)


def test_a_cell_and_a_module_by_position() -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell, self.mixer = nn.GRUCell(2, 3), nn.Linear(3, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            states, state = [], x.new_zeros(2, 3)
            for row in x:
                state = self.cell(row, state)
                states.append(state)
            return self.mixer(torch.stack(states))

    model = Own()
    with gradscope.attach(model, every=1, strict=True, positions={"mixer": 0}) as scope:
        model.cell, model.mixer = nn.GRUCell(2, 3), nn.Linear(3, 3)
        with pytest.warns(gradscope.GradscopeWarning) as said:
            train(model, sgd(model))
    assert sorted(str(each.message).partition(":")[0] for each in said) == ["cell", "mixer"]
    assert reasons(scope) == [("cell", REPLACED), ("mixer", REPLACED)]


def test_a_layer_that_is_left_alone_says_nothing() -> None:
    model = Net()
    with gradscope.attach(model, every=1, strict=True, include="rnn") as scope:
        model.first = nn.GRU(2, 2)
        train(model, sgd(model))
    assert not reasons(scope)
