"""A stack run layer by layer, forced on the CPU, where its masks can be drawn by other means as well."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import cases
import oracles
import pytest
import torch
from cases import Case
from families.jobs import recorded
from scope.trainings import surroundings
from torch import Tensor, nn

import gradscope
from gradscope.attach import split


@pytest.fixture(autouse=True)
def _hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the CPU's kernels kept their masks to themselves."""
    monkeypatch.setattr(split, "hides", lambda call: True)


STACKS = [
    Case(kind, layers, bidirectional=bidirectional, layout=layout, dropout=0.5, loss="output_h_n", hx="given_grad")
    for kind, layers, bidirectional, layout in (
        ("rnn_tanh", 3, False, "time_first"),
        ("rnn_relu", 2, True, "packed"),
        ("lstm", 2, True, "batch_first"),
        ("lstm", 3, False, "packed_unsorted"),
        ("lstm_proj", 2, True, "packed_unsorted"),
        ("lstm_proj", 3, False, "batch_first"),
        ("gru", 2, True, "unbatched"),
        ("gru", 3, False, "batch_first"),
    )
]


@pytest.mark.parametrize("case", [*STACKS, replace(STACKS[2], bias=False, name="no bias")], ids=str)
def test_the_numbers_are_the_oracle_s_under_the_same_mask(case: Case) -> None:
    built = cases.build(case)
    with pytest.warns(gradscope.GradscopeWarning, match="layer by layer"):
        run = recorded(built, split_layers=True)
    oracles.assert_agrees(run, oracles.frames(oracles.examine(built.call())), rtol=1e-10)
    assert run.frame("layers")["residual"].max() <= 1e-10
    assert "random numbers" in run.frame("notes")["reason"].item()
    assert run.meta["arguments"]["split_layers"] is True


@pytest.mark.parametrize("case", STACKS, ids=str)
def test_it_computes_what_the_kernel_computes(case: Case) -> None:
    """Outputs, states and gradients: with the CPU's own kernel the masks are even the same."""
    grads: list[list[Tensor]] = []
    for divided in (False, True):
        built = cases.build(case)
        with _attached(built.module, divided):
            built.backward()
        grads.append([p.grad for p in built.module.parameters()])
        grads[-1].append(torch.get_rng_state())
    torch.testing.assert_close(*grads, rtol=1e-12, atol=1e-12)


def _attached(module: nn.Module, divided: bool) -> Any:
    scope = gradscope.attach(module, every=1, split_layers=divided)
    return _Expecting(scope) if divided else scope


class _Expecting:
    """A scope that warns once."""

    def __init__(self, scope: gradscope.Scope) -> None:
        self.scope, self.warning = scope, pytest.warns(gradscope.GradscopeWarning, match="layer by layer")

    def __enter__(self) -> None:
        self.warning.__enter__()

    def __exit__(self, *exception: Any) -> None:
        self.scope.close()
        self.warning.__exit__(*exception)


def test_it_says_so_once_and_splits_at_every_step() -> None:
    """Recorded or not, paused or not: the arithmetic of a training does not hang on what is recorded."""
    module, x = nn.LSTM(3, 4, 2, dropout=0.5), torch.randn(5, 2, 3)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    with pytest.warns(gradscope.GradscopeWarning) as caught, _counted() as kernels:
        with gradscope.attach(module, every=2, split_layers=True, strict=True) as scope:
            for step in range(4):
                (scope.pause if step == 3 else scope.resume)()
                optimizer.zero_grad()
                module(x)[0].sum().backward()
                optimizer.step()
    assert len(caught) == 1 and kernels.layers == [1] * 8
    assert scope.run.frame("notes")["step"].tolist() == [0]


def test_nothing_is_split_without_dropout_or_without_training() -> None:
    with _counted() as kernels:
        for module in (nn.LSTM(3, 4, 2), nn.LSTM(3, 4, 2, dropout=0.5).eval(), nn.GRU(3, 4)):
            with gradscope.attach(module, every=1, split_layers=True, strict=True) as scope:
                module(torch.randn(5, 2, 3))[0].sum().backward()
            assert scope.run.frame("notes").empty
    assert kernels.layers == [2, 2, 1]


def test_other_models_are_left_alone() -> None:
    model, other = nn.LSTM(3, 4, 2, dropout=0.5), nn.LSTM(3, 4, 2, dropout=0.5)
    with _counted() as kernels, gradscope.attach(model, every=1, split_layers=True, strict=True):
        other(torch.randn(5, 2, 3))
    assert kernels.layers == [2]


def test_a_second_scope_sees_the_masks_as_well() -> None:
    built = cases.build(STACKS[2])
    with pytest.warns(gradscope.GradscopeWarning, match="layer by layer"):
        with gradscope.attach(built.module, every=1, quantities="full", max_sequences=None) as plain:
            recorded(built, split_layers=True)
    oracles.assert_agrees(plain.run, oracles.frames(oracles.examine(built.call())), rtol=1e-10)


def test_carried_states_make_one_chain() -> None:
    """Two calls linked by their state, each split."""
    torch.manual_seed(0)
    module, x = nn.LSTM(3, 4, 2, dropout=0.5, dtype=torch.float64), torch.randn(6, 2, 3, dtype=torch.float64)
    with pytest.warns(gradscope.GradscopeWarning, match="layer by layer"):
        with gradscope.attach(module, every=1, split_layers=True, strict=True) as scope:
            first, state = module(x[:3])
            second, _ = module(x[3:], state)
            (first.square().sum() + second.square().sum()).backward()
    layers = scope.run.frame("layers")
    assert layers["chain"].tolist() == [0, 0] and layers["timesteps"].tolist() == [6, 6]
    assert layers["residual"].max() < 1e-12
    grad = scope.run.frame("timesteps", quantity="grad_h", layer=0)["p50"]
    assert grad.notna().all()


def test_nothing_remains() -> None:
    module = nn.LSTM(3, 4, 2, dropout=0.5)
    module(torch.randn(5, 2, 3))[0].sum().backward()
    before = surroundings(module)
    for order in (1, -1):
        scopes = [gradscope.attach(module, split_layers=divided) for divided in (True, False)]
        for scope in scopes[::order]:
            scope.close()
        assert surroundings(module) == before
        assert not split.SPLITS.busy


class _counted:
    """Counts the layers of every call that reaches torch's own kernels."""

    def __init__(self) -> None:
        self.layers: list[int] = []

    def __enter__(self) -> _counted:
        self.kernels = {name: getattr(torch._VF, name) for name in ("lstm", "gru")}
        for name, kernel in self.kernels.items():

            def count(*args: Any, kernel: Any = kernel) -> Any:
                self.layers.append(args[4])
                return kernel(*args)

            setattr(torch._VF, name, count)
        return self

    def __exit__(self, *exception: object) -> None:
        for name, kernel in self.kernels.items():
            setattr(torch._VF, name, kernel)


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    kernels = [torch._VF.lstm, torch._VF.gru]
    yield
    assert [torch._VF.lstm, torch._VF.gru] == kernels
