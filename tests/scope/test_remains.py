"""After the last scope is closed, model and torch are exactly as before."""

from __future__ import annotations

import gc
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import cases
import pytest
import torch
from cases import Case
from scope.trainings import OPTIMIZER, Net, one_step, surroundings
from torch import nn
from torch.nn.utils import clip_grad

import gradscope


@pytest.fixture
def pair() -> Iterator[tuple[nn.Module, nn.Module]]:
    """Two models that have been trained for a step, and afterwards are as they were then."""
    models = Net(Case("lstm", 2, dropout=0.5)), Net(Case("gru", 2, True))
    for model in models:
        one_step(model)
    before = surroundings(*models)
    yield models
    gc.collect()
    after = surroundings(*models)
    assert before.keys() == after.keys()
    changed = [place for place in before if before[place] != after[place]]
    assert not changed


def test_the_check_of_remains_can_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each kind of thing that a careless library leaves behind is seen."""
    model = Net(Case("gru"))
    one_step(model)
    before = surroundings(model)
    leftovers: list[Callable[[], Any]] = [
        lambda: nn.modules.module.register_module_forward_hook(lambda *_: None).remove,
        lambda: OPTIMIZER.register_optimizer_step_post_hook(lambda *_: None).remove,
        lambda: model.rnn.register_forward_hook(lambda *_: None).remove,
        lambda: model.rnn.weight_hh_l0.register_hook(lambda grad: None).remove,
        lambda: monkeypatch.setattr(torch._VF, "gru", lambda *_: None, raising=False) or monkeypatch.undo,
        lambda: monkeypatch.setattr(clip_grad, "_clip_grads_with_norm_", print) or monkeypatch.undo,
        lambda: monkeypatch.setattr(model.rnn, "_gradscope", 1, raising=False) or monkeypatch.undo,
    ]
    for leave in leftovers:
        remove = leave()
        assert surroundings(model) != before
        remove()
        assert surroundings(model) == before


def test_nothing_remains(pair: tuple[nn.Module, nn.Module]) -> None:
    with gradscope.attach(pair[0], every=1):
        one_step(pair[0])


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))), ids=str)
def test_nothing_remains_in_whatever_order(pair: tuple[nn.Module, nn.Module], order: tuple[int, ...]) -> None:
    """Three scopes, two of them on one model, each of which goes on recording until it is closed itself."""
    models = pair[0], pair[1], pair[0]
    scopes = [gradscope.attach(model, every=1, strict=True) for model in models]
    for position, number in enumerate(order):
        for model in pair:
            one_step(model)
        scopes[number].close()
        scopes[number].close()  # idempotent
        assert len(set(scopes[number].run.frame("layers")["step"])) == position + 1
    for model in pair:
        one_step(model)
    assert sorted(len(set(scope.run.frame("layers")["step"])) for scope in scopes) == [1, 2, 3]


class Interrupted(Exception):
    """Ours alone, so that nothing else is taken for it."""


@pytest.mark.parametrize("moment", ["before", "after forward", "within backward", "after backward", "within step"])
def test_nothing_remains_when_the_loop_raises(pair: tuple[nn.Module, nn.Module], moment: str) -> None:
    model = pair[0]
    trainer, x = torch.optim.SGD(model.parameters(), lr=0.01), cases.build(model.case).input

    def stop(at: str) -> None:
        if at == moment:
            raise Interrupted

    def closure() -> None:
        stop("within step")

    with pytest.raises(Interrupted), gradscope.attach(model, every=1, strict=True):
        stop("before")
        loss = model(x)
        loss.register_hook(lambda grad: stop("within backward"))
        stop("after forward")
        loss.backward()
        stop("after backward")
        trainer.step(closure)
    trainer.zero_grad()


def test_nothing_remains_on_tensors() -> None:
    """Neither the input, nor what a call gave out, keeps a hook."""
    built = cases.build(Case("lstm", 2, hx="given_grad"))
    built.input.requires_grad_()
    with gradscope.attach(built.module, every=1):
        parts = built.forward()
        built.loss(*parts).backward(retain_graph=True)
        unused = built.forward()
    for tensor in (built.input, *built.hx, *parts, *unused):
        assert not tensor._backward_hooks
        assert not vars(tensor)


def test_closed_between_forward_and_backward() -> None:
    """The backward runs as ever and records nothing."""
    built = cases.build(Case("gru", 2))
    built.backward()
    want = [p.grad.clone() for p in built.module.parameters()]
    built.module.zero_grad()
    scope = gradscope.attach(built.module, every=1, strict=True)
    parts = built.forward()
    scope.close()
    built.loss(*parts).backward()
    assert all(map(torch.equal, want, (p.grad for p in built.module.parameters())))
    assert scope.run.frame("timesteps").empty


def test_an_attach_that_fails_leaves_nothing_behind() -> None:
    model = Net(Case("gru"))
    one_step(model)
    before = surroundings(model)
    with pytest.raises(gradscope.GradscopeError):
        gradscope.attach(model, quantities=["nonsense"])
    with pytest.raises(gradscope.GradscopeError):
        gradscope.attach(model, include=["nothing"])
    assert surroundings(model) == before
