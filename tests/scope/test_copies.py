"""While a scope is attached: copies, files and compilers; and nothing is kept alive."""

from __future__ import annotations

import copy
import gc
import io
import pickle
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import cases
import pytest
import torch
from cases import Case
from scope.trainings import Net, one_step, surroundings
from torch import Tensor, nn

import gradscope

# -- copies, files and compilers while a scope is attached


@pytest.fixture
def attached() -> Iterator[tuple[nn.Module, gradscope.Scope]]:
    model = Net(Case("lstm", 2, dropout=0.5))
    one_step(model)
    with gradscope.attach(model, every=1, strict=True) as scope:
        model(cases.build(model.case).input).backward()
        yield model, scope


def test_a_deep_copy_is_free(attached: tuple[nn.Module, gradscope.Scope]) -> None:
    """It records nothing, trains like the original, and the original goes on recording."""
    model, scope = attached
    twin = copy.deepcopy(model)
    assert surroundings(twin).keys() == surroundings(model).keys()
    rows = len(scope.run.frame("timesteps"))
    one_step(twin)
    assert len(scope.run.frame("timesteps")) == rows
    model.zero_grad()
    one_step(model)
    assert len(scope.run.frame("timesteps")) >= rows


@pytest.mark.parametrize("write", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["deepcopy", "pickle"])
def test_a_copy_of_a_recorded_model_is_as_one_of_a_bare_one(write: Callable[[nn.Module], nn.Module]) -> None:
    bare = Net(Case("lstm", 2))
    one_step(bare)
    expected = {name: sorted(vars(module)) for name, module in write(bare).named_modules()}
    with gradscope.attach(bare, every=1):
        one_step(bare)
        found = {name: sorted(vars(module)) for name, module in write(bare).named_modules()}
    assert found == expected


def test_saving_and_loading(attached: tuple[nn.Module, gradscope.Scope]) -> None:
    model, _ = attached
    whole, weights = io.BytesIO(), io.BytesIO()
    torch.save(model, whole)
    torch.save(model.state_dict(), weights)
    for file in (whole, weights):
        file.seek(0)
    again = torch.load(whole, weights_only=False)
    state = torch.load(weights, weights_only=True)
    again.load_state_dict(state)
    assert type(again) is Net
    assert all(map(torch.equal, again.parameters(), model.parameters()))
    assert list(state) == list(model.state_dict())
    one_step(again)


def test_pickles_are_byte_for_byte_the_same() -> None:
    model = Net(Case("gru"))
    one_step(model)
    bare = pickle.dumps(model)
    with gradscope.attach(model, every=1):
        assert pickle.dumps(model) == bare


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_scripting_and_tracing_other_models(attached: tuple[nn.Module, gradscope.Scope], kind: type) -> None:
    """torch.jit finds the kernels as it always does."""
    other, x = nn.Sequential(kind(3, 4)), torch.randn(5, 2, 3)
    want, _ = other(x)
    for made in (torch.jit.script(other), torch.jit.trace(other, x)):
        assert torch.equal(made(x)[0], want)


def test_exporting_another_model(attached: tuple[nn.Module, gradscope.Scope]) -> None:
    other, x = nn.Sequential(nn.Linear(3, 4), nn.ReLU()), torch.randn(5, 3)
    assert torch.equal(torch.export.export(other, (x,)).module()(x), other(x))


# -- nothing is kept alive


class Sentinel:
    """A hook in the user's graph: alive as long as the graph is."""

    def __call__(self, grad: Tensor) -> None:
        return None


def through(model: nn.Module, x: Tensor) -> tuple[Any, weakref.ref[Sentinel]]:
    """The model's result on an input with a node behind it, and a witness of that node."""
    sentinel, leaf = Sentinel(), x.detach().requires_grad_()
    node = leaf * 1.0
    node.register_hook(sentinel)
    return model(node), weakref.ref(sentinel)


@pytest.mark.parametrize("kind", ["rnn_tanh", "lstm", "gru"])
def test_forwards_without_a_backward_are_let_go(kind: str) -> None:
    """Within a recorded step, as soon as the user has let go, without waiting for the step's end."""
    built = cases.build(Case(kind, 2))
    with gradscope.attach(built.module, every=1) as scope:
        result, witness = through(built.module, built.input)
        output = weakref.ref(result[0])
        assert witness() is not None and output() is not None
        del result
        gc.collect()
        assert witness() is None and output() is None
        assert scope.run.frame("timesteps").empty


@pytest.mark.parametrize("kind", ["rnn_tanh", "lstm", "gru"])
def test_graphs_are_let_go_after_the_step(kind: str) -> None:
    built = cases.build(Case(kind, 2))
    trainer = torch.optim.SGD(built.module.parameters(), lr=0.1)
    with gradscope.attach(built.module, every=1) as scope:
        result, witness = through(built.module, built.input)
        output = weakref.ref(result[0])
        result[0].sum().backward()
        trainer.step()
        del result
        gc.collect()
        assert witness() is None and output() is None
        assert len(scope.run.frame("timesteps")) > 0


def test_unwatched_steps_keep_nothing() -> None:
    built = cases.build(Case("lstm", 2))
    with gradscope.attach(built.module, every=1000) as scope:
        scope.pause()
        result, witness = through(built.module, built.input)
        del result
        assert witness() is None  # not even a cycle


@pytest.mark.filterwarnings("ignore")  # isinstance on everything wakes lazy modules
@pytest.mark.parametrize("every", [1, 1000])
def test_steps_pile_up_no_tensors(every: int) -> None:
    built = cases.build(Case("lstm", 2))
    optimizer = torch.optim.SGD(built.module.parameters(), lr=0.0)

    def tensors_after(steps: int) -> int:
        for _ in range(steps):
            built.module.zero_grad()
            built.backward()
            optimizer.step()
        gc.collect()
        tensors = [thing for thing in gc.get_objects() if isinstance(thing, Tensor)]
        return sum(tensor.requires_grad or tensor.dim() > 1 for tensor in tensors)  # rows are kept, states are not

    with gradscope.attach(built.module, every=every):
        few = tensors_after(3)
        assert tensors_after(20) <= few


def test_a_closed_scope_and_its_run_keep_no_model_alive() -> None:
    model = Net(Case("gru"))
    with gradscope.attach(model, every=1) as scope:
        one_step(model)
    run, witness = scope.run, weakref.ref(model.rnn)
    del model, scope
    gc.collect()
    assert witness() is None
    assert len(run.frame("timesteps")) > 0
