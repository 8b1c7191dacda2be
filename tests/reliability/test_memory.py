"""Nothing of the user's is kept alive past its step, whatever was recorded of it and however the step ended."""

from __future__ import annotations

import atexit
import gc
import threading
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import gradscope
from gradscope.attach.kernels import KERNELS
from gradscope.attach.optimizers import OPTIMIZERS


class Own(nn.Module):
    """A cell of one's own."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 3)

    def forward(self, x: Tensor, state: Tensor | None = None) -> Tensor:
        state = torch.zeros_like(x) if state is None else state
        return torch.tanh(self.linear(torch.cat([x, state], 1)))


class Loop(nn.Module):
    """A cell, unrolled."""

    def __init__(self, cell: nn.Module) -> None:
        super().__init__()
        self.cell = cell

    def forward(self, x: Tensor) -> Tensor:
        state: Any = None
        for row in x:
            state = self.cell(row, state)
        return state[0] if isinstance(state, tuple) else state


class Fused(nn.Module):
    """A stack, of which the last layer's output counts."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.LSTM(3, 3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.rnn(x)[0]


class Mixing(nn.Module):
    """A sequence module beside a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.conv = nn.GRU(3, 3), nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(self.rnn(x)[0])


KINDS: dict[str, tuple[Callable[[], nn.Module], dict[str, Any]]] = {
    "fused": (Fused, {}),
    "cells": (lambda: Loop(nn.LSTMCell(3, 3)), {}),
    "own": (lambda: Loop(Own()), {"cells": [Own]}),
    "positions": (Mixing, {"positions": {"conv": 0}}),
}
kinds = pytest.mark.parametrize("kind", KINDS)


class Witness:
    """A hook in the user's graph: alive as long as the graph is."""

    def __call__(self, gradient: Tensor) -> None:
        return None


def forward(model: nn.Module, *hooks: Callable[[Tensor], None]) -> tuple[Tensor, list[weakref.ref[Any]]]:
    """An output, and weak references to it, to its input, and to a node at the bottom of its graph."""
    witness, leaf = Witness(), torch.randn(4, 2, 3).requires_grad_()
    x = leaf * 1.0
    for hook in (witness, *hooks):
        x.register_hook(hook)
    output = model(x)
    return output, [weakref.ref(witness), weakref.ref(output), weakref.ref(x), weakref.ref(leaf)]


def alive(witnesses: list[weakref.ref[Any]]) -> list[Any]:
    gc.collect()
    return [witness() for witness in witnesses if witness() is not None]


@kinds
def test_after_the_optimizer_s_step(kind: str) -> None:
    model, options = KINDS[kind][0](), KINDS[kind][1]
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with gradscope.attach(model, every=1, strict=True, **options) as scope:
        for _ in range(2):
            output, witnesses = forward(model)
            output.square().sum().backward()
            assert witnesses[0]() is not None and witnesses[1]() is output
            optimizer.step()
            del output
            assert not alive(witnesses)
        assert set(scope.run.frame("timesteps")["step"]) == {0, 1}


@kinds
def test_a_forward_without_a_backward(kind: str) -> None:
    """At once, within the step."""
    model, options = KINDS[kind][0](), KINDS[kind][1]
    with gradscope.attach(model, every=1, strict=True, **options):
        output, witnesses = forward(model)
        del output
        assert not alive(witnesses)


@kinds
@pytest.mark.parametrize("moment", ["forward", "backward", "after backward"])
def test_a_step_that_breaks_off(kind: str, moment: str) -> None:
    """What had received gradient goes with the next step, and the rest at once."""
    model, options = KINDS[kind][0](), KINDS[kind][1]
    optimizer = torch.optim.SGD(model.parameters(), 0.1)

    def attempt() -> list[weakref.ref[Any]]:
        output, witnesses = forward(model, *([fails] if moment == "backward" else []))
        try:
            if moment == "forward":
                raise ZeroDivisionError
            output.square().sum().backward()
            raise ZeroDivisionError
        except ZeroDivisionError:
            return witnesses

    with gradscope.attach(model, every=1, strict=True, **options):
        witnesses = attempt()
        model.zero_grad()
        model(torch.randn(4, 2, 3)).sum().backward()
        optimizer.step()
        assert not alive(witnesses)


def fails(gradient: Tensor) -> None:
    raise ZeroDivisionError


@kinds
def test_attach_and_close_many_times(kind: str) -> None:
    """No hooks, listeners, threads, callbacks at exit or objects are left, after 5 times as after 25."""
    model, options = KINDS[kind][0](), KINDS[kind][1]
    optimizer = torch.optim.SGD(model.parameters(), 0.1)

    def cycle(times: int) -> tuple[int, ...]:
        for _ in range(times):
            with gradscope.attach(model, every=1, strict=True, **options):
                model.zero_grad(set_to_none=True)
                model(torch.ones(4, 2, 3)).sum().backward()
                optimizer.step()
        gc.collect()
        hooks = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks) for m in model.modules())
        return hooks, len(KERNELS.handles), len(OPTIMIZERS.handles), threading.active_count(), atexit._ncallbacks()

    first = cycle(5)
    objects = len(gc.get_objects())
    assert cycle(20) == first and first[:3] == (0, 0, 0)
    gc.collect()
    assert len(gc.get_objects()) - objects < 20


def test_a_scope_that_was_closed_is_let_go() -> None:
    model = Fused()
    scope = gradscope.attach(model, every=1)
    model(torch.randn(4, 2, 3)).sum().backward()
    witness, run = weakref.ref(scope), scope.run
    scope.close()
    del scope
    gc.collect()
    assert witness() is None and len(run.frame("timesteps"))
