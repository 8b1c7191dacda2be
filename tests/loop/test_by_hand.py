"""Loops that update their parameters themselves, without an optimizer."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import gradscope
from gradscope.observe.byhand import BY_HAND

NO_STEP = r"no torch.optim.Optimizer has stepped them.*call scope.step\(\)"
Update = Callable[[nn.Module], None]


def in_place(model: nn.Module) -> None:
    with torch.no_grad():
        for p in model.parameters():
            p -= 0.1 * p.grad  # type: ignore[operator]


def by_data(model: nn.Module) -> None:
    for p in model.parameters():
        p.data.add_(p.grad, alpha=-0.1)  # type: ignore[arg-type]


def another_storage(model: nn.Module) -> None:
    for p in model.parameters():
        p.data = p.data - 0.1 * p.grad  # type: ignore[operator]


def another_parameter(model: nn.Module) -> None:
    for name, p in list(model.named_parameters()):
        setattr(model, name, nn.Parameter((p - 0.1 * p.grad).detach()))  # type: ignore[operator]


def train(model: nn.Module, update: Update, steps: int = 3, after: Callable[[], Any] = lambda: None) -> None:
    for _ in range(steps):
        model.zero_grad()
        model(torch.ones(4, 2, 2))[0].square().sum().backward()
        update(model)
        after()


@pytest.mark.parametrize("update", [in_place, by_data, another_storage, another_parameter])
@pytest.mark.parametrize("kind", [nn.GRU, nn.LSTM])
def test_it_is_said_once(update: Update, kind: type[nn.Module]) -> None:
    model = kind(2, 3)
    with gradscope.attach(model, strict=True) as scope:
        with pytest.warns(gradscope.GradscopeWarning, match=NO_STEP) as said:
            train(model, update, 6)
    assert len(said) == 1
    assert scope.run.frame("notes", step=0)["reason"].tolist().count(BY_HAND) == 1


def test_it_is_said_where_the_first_step_is_not_recorded() -> None:
    model = nn.GRU(2, 3)
    with gradscope.attach(model, every=lambda step: step == 7, strict=True):
        with pytest.warns(gradscope.GradscopeWarning, match=NO_STEP):
            train(model, in_place)


@pytest.mark.parametrize("update", [in_place, by_data, another_storage, another_parameter])
def test_a_loop_that_says_its_steps(update: Update) -> None:
    model = nn.GRU(2, 3)
    with gradscope.attach(model, every=1, strict=True) as scope:
        train(model, update, after=scope.step)
    assert scope.run.frame("steps")["step"].tolist() == [0, 1, 2]


def quiet(loop: Callable[[nn.Module, Any], None]) -> None:
    model = nn.GRU(2, 3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with gradscope.attach(model, every=1, strict=True) as scope:
            loop(model, torch.optim.SGD(model.parameters(), 0.1))
    assert not scope.run.frame("notes")["reason"].str.contains("by hand|scope.step").any()


def backward(model: nn.Module) -> None:
    model(torch.ones(4, 2, 2))[0].square().sum().backward()


def test_accumulation_says_nothing() -> None:
    def loop(model: nn.Module, optimizer: Any) -> None:
        for _ in range(2):
            for _ in range(3):
                backward(model)
            optimizer.step()
            optimizer.zero_grad()

    quiet(loop)


def test_weights_that_are_changed_behind_the_optimizer_say_nothing() -> None:
    """Constraints, averages: what a loop with an optimizer does to weights is its own business."""

    def loop(model: nn.Module, optimizer: Any) -> None:
        for _ in range(3):
            backward(model)
            optimizer.step()
            with torch.no_grad():
                for p in model.parameters():
                    p.clamp_(-1, 1)
            backward(model)
            with torch.no_grad():
                for p in model.parameters():
                    p.mul_(0.99)

    quiet(loop)


def test_a_closure_says_nothing() -> None:
    def loop(model: nn.Module, _: Any) -> None:
        optimizer = torch.optim.LBFGS(model.parameters(), max_iter=3)

        def closure() -> torch.Tensor:
            optimizer.zero_grad()
            loss = model(torch.ones(4, 2, 2))[0].square().sum()
            loss.backward()
            return loss.detach()  # torch 2.8's LBFGS warns otherwise

        for _ in range(2):
            optimizer.step(closure)

    quiet(loop)


def test_an_optimizer_that_looks_around_says_nothing() -> None:
    """As SAM does: up the gradient, another pass, back, and then a step."""

    def loop(model: nn.Module, optimizer: Any) -> None:
        for _ in range(2):
            for sign in (1, -1):
                backward(model)
                with torch.no_grad():
                    for p in model.parameters():
                        p += sign * 0.1
            optimizer.step()

    quiet(loop)


def test_a_model_that_moves_says_nothing() -> None:
    def loop(model: nn.Module, optimizer: Any) -> None:
        backward(model)
        model.double()
        model(torch.ones(4, 2, 2, dtype=torch.float64))[0].sum().backward()

    quiet(loop)
