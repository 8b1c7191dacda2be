"""Scopes that nobody closes: a scope lives as long as its model, held or not, and keeps no model alive."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import gradscope
from gradscope.scope import _OPEN


class OwnCell(nn.Module):
    """A cell of somebody's own."""

    def __init__(self) -> None:
        super().__init__()
        self.w, self.u = nn.Linear(3, 5), nn.Linear(5, 5)

    def forward(self, x: Tensor, state: Tensor) -> Tensor:
        return torch.tanh(self.w(x) + self.u(state))


class Net(nn.Module):
    """A layer or a cell, and a head; some hooks know the model."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.head = inner, nn.Linear(5, 1)
        self.inner.register_forward_hook(lambda *_: self.seen())

    def seen(self) -> None:
        pass

    def forward(self, x: Tensor) -> Tensor:
        if isinstance(self.inner, nn.RNNBase):
            return self.head(self.inner(x)[0])
        if isinstance(self.inner, nn.Sequential):
            return self.head(self.inner(x))
        state = x.new_zeros(x.shape[1], 5)
        for row in x:
            state = self.inner(row, state)
        return self.head(state)


def train(model: nn.Module, steps: int = 3, *, stepped: bool = True) -> None:
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for number in range(steps):
        optimizer.zero_grad()
        model(torch.ones(4, 2, 3)).square().mean().backward()
        if stepped or number < steps - 1:
            optimizer.step()


INNER: dict[str, Any] = {
    "layer": lambda: nn.GRU(3, 5),
    "cell": lambda: nn.GRUCell(3, 5),
    "own cell": OwnCell,
    "by position": lambda: nn.Sequential(nn.Linear(3, 5), nn.Tanh()),
}


@pytest.mark.parametrize("stepped", [True, False], ids=["", "unfinished"])
@pytest.mark.parametrize("inner", INNER)
def test_a_sweep_that_never_closes(tmp_path: Path, inner: str, stepped: bool) -> None:
    """No model stays, and every folder is complete, with the step that was under way."""
    arguments: Any = {"positions": {"inner": 0}} if inner == "by position" else {}

    def one(number: int) -> weakref.ref[nn.Module]:
        model = Net(INNER[inner]())
        gradscope.attach(model, tmp_path / str(number), every=1, strict=True, **arguments)
        train(model, stepped=stepped)
        return weakref.ref(model)

    models = [one(number) for number in range(4)]
    gc.collect()
    assert not any(model() for model in models) and not _OPEN
    for number in range(4):
        run = gradscope.load(tmp_path / str(number))
        assert run.frame("steps")["step"].tolist() == [0, 1, 2]
        assert run.frame("timesteps")["step"].unique().tolist() == [0, 1, 2]
        assert not run.frame("notes")["reason"].str.contains("failed|no longer").any()
    gradscope.attach(Net(nn.GRU(3, 5)), tmp_path / "0", every=1, first_step=3).close()  # nobody holds the folder


def test_forty_models_in_memory() -> None:
    scopes: list[gradscope.Scope] = []

    def one() -> weakref.ref[nn.Module]:
        model = Net(nn.LSTM(3, 5))
        scopes.append(gradscope.attach(model, every=2))
        train(model)
        return weakref.ref(model)

    models = [one() for _ in range(40)]
    gc.collect()
    assert not any(model() for model in models)
    assert all(len(scope.run.frame("steps")) == 3 for scope in scopes)


def test_a_bare_statement_goes_on_as_long_as_the_model() -> None:
    model, batches = Net(nn.GRU(3, 5)), list[int]()

    class Sink:
        def write(self, batch: gradscope.Batch) -> None:
            batches.append(batch.step)

        def close(self) -> None:
            batches.append(-1)

    gradscope.attach(model, every=1, sinks=[Sink()])
    gc.collect()
    train(model)
    del model
    gc.collect()
    assert batches == [0, 1, 2, -1]


def test_a_container_made_for_attach_alone() -> None:
    """It goes at once; what was in it is observed until that goes."""
    layer = nn.GRU(3, 5)
    scope = gradscope.attach(nn.ModuleList([layer]), every=1, strict=True)
    gc.collect()
    optimizer = torch.optim.SGD(layer.parameters(), 0.1)
    for _ in range(2):
        optimizer.zero_grad()
        layer(torch.ones(4, 2, 3))[0].sum().backward()
        optimizer.step()
    assert scope.run.frame("layers")["module"].tolist() == ["0", "0"]
    with pytest.raises(gradscope.GradscopeError, match="the attached module is gone"):
        scope.whatif(torch.ones(4, 2, 3), lambda model, x: model(x)[0].sum())
    del layer, optimizer
    gc.collect()
    with pytest.raises(gradscope.GradscopeError, match="closed"):
        scope.step()
    assert len(scope.run.frame("steps")) == 2


def test_a_layer_that_the_next_model_takes_over() -> None:
    """The training was the first model's: its scope closes with it."""
    layer, models = nn.GRU(3, 5), list[nn.Module]()
    for _ in range(3):
        models[:] = [nn.ModuleDict({"rnn": layer, "head": nn.Linear(5, 1)})]
        gradscope.attach(models[0], every=1, strict=True)
        optimizer = torch.optim.SGD(models[0].parameters(), 0.1)
        layer(torch.ones(4, 2, 3))[0].sum().backward()
        optimizer.step()
    gc.collect()
    assert len(_OPEN) == 1
    models.clear()
    gc.collect()
    assert not _OPEN
