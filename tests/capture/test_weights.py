"""What is seen of a fused layer whose weights are tied, made anew, frozen, or penalised."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import oracles
import pandas as pd
import pytest
import torch
from capture.idioms import CELLS, all_of, data, lstm, truth, watch
from cases import unpacked
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

import gradscope


def used_weights(module: nn.RNNBase) -> dict[str, Tensor]:
    """What the kernel of the last call was given."""
    return {name: w.detach().clone() for name, w in zip(module._flat_weights_names, module._flat_weights, strict=True)}


# -- weights


def test_weight_tying() -> None:
    """Two modules that share their recurrent weights: each has its own rows, and neither spoils the other's check."""
    model = nn.ModuleDict({"a": lstm(), "b": lstm()})
    model["b"].weight_hh_l0 = model["a"].weight_hh_l0
    x, y = data(), data(4, 2, 3)
    with watch(model) as scope:
        (all_of(*unpacked(model["a"](x))) + all_of(*unpacked(model["b"](y)))).backward()
    oracles.assert_agrees(scope.run, truth(model["a"], x, module="a"), truth(model["b"], y, module="b"))
    assert scope.run.frame("layers")["residual"].max() <= 1e-10


def test_one_module_under_two_names() -> None:
    """It is one layer, under the first of its names."""
    model, x = nn.ModuleDict({"a": lstm()}), data()
    model["again"] = model["a"]
    with watch(model) as scope:
        all_of(*unpacked(model["again"](x))).backward()
    oracles.assert_agrees(scope.run, truth(model["a"], x, module="a"))


def test_layers_of_one_module_tied() -> None:
    module, x = nn.GRU(4, 4, 2, dtype=torch.float64), data(5, 3, 4)
    module.weight_hh_l1 = module.weight_hh_l0
    with watch(module) as scope:
        all_of(*unpacked(module(x))).backward()
    oracles.assert_agrees(scope.run, truth(module, x))


@pytest.mark.parametrize("family", CELLS)
@pytest.mark.parametrize("parametrize", [spectral_norm, weight_norm])
def test_parametrized_weights(family: str, parametrize: Callable[..., nn.Module]) -> None:
    """The weights that the kernel used; the parametrization itself is never run by us."""
    torch.manual_seed(1)
    module, x = CELLS[family](3, 4, dtype=torch.float64), data()
    module = parametrize(module, "weight_hh_l0")
    module, twin = copy.deepcopy(module), copy.deepcopy(module)
    all_of(*unpacked(twin(x))).backward()
    with watch(module) as scope:
        all_of(*unpacked(module(x))).backward()
    assert all(map(torch.equal, module.state_dict().values(), twin.state_dict().values()))
    assert all(torch.equal(a.grad, b.grad) for a, b in zip(module.parameters(), twin.parameters(), strict=True))
    oracles.assert_agrees(scope.run, truth(module, x, weights=used_weights(module)))


class WeightDrop(nn.Module):
    """Dropout on the recurrent weights: a non-leaf is set before every call, which goes past the hooks."""

    def __init__(self, inner: nn.RNNBase) -> None:
        super().__init__()
        self.inner = inner
        self.raw = nn.Parameter(inner.weight_hh_l0.detach().clone())
        del inner._parameters["weight_hh_l0"]

    def forward(self, x: Tensor) -> tuple[Any, Tensor, Tensor | None]:
        self.inner.weight_hh_l0 = nn.functional.dropout(self.raw, 0.5)
        return unpacked(self.inner.forward(x))


@pytest.mark.filterwarnings("ignore:RNN module weights are not part of single contiguous chunk")
@pytest.mark.parametrize("family", CELLS)
def test_weight_drop(family: str) -> None:
    model, x = WeightDrop(CELLS[family](3, 4, dtype=torch.float64)), data()
    with watch(model) as scope:
        all_of(*model(x)).backward()
    used = used_weights(model.inner)
    assert (used["weight_hh_l0"] == 0).any()
    oracles.assert_agrees(scope.run, truth(model.inner, x, weights=used, module="inner"))


def test_weight_drop_differs_from_call_to_call() -> None:
    """Each call of a step is held to the weights that it used itself."""
    model, x, expected = WeightDrop(lstm()), data(), []
    with watch(model) as scope:
        total = 0.0
        for chain in range(2):
            total = total + all_of(*model(x))
            expected.append(truth(model.inner, x, weights=used_weights(model.inner), module="inner", chain=chain))
        total.backward()
    oracles.assert_agrees(scope.run, *expected)


def test_weights_overwritten_before_the_step_ends() -> None:
    """`.data` written after the backward, as by a constraint, does not change what is recorded."""
    module, x = lstm(), data()
    expected = truth(module, x)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    with watch(module) as scope:
        all_of(*unpacked(module(x))).backward()
        with torch.no_grad():
            module.weight_hh_l0.data.mul_(0.5)
            module.weight_ih_l0.clamp_(-0.1, 0.1)
        optimizer.step()
    oracles.assert_agrees(scope.run, expected)


@pytest.mark.parametrize("frozen", ["weight_hh_l0", "weight_ih_l0", "all below", "everything"])
def test_frozen_layers(frozen: str) -> None:
    """What does not learn still carries gradients, where anything below it or its input asks for them."""
    module, x = lstm(num_layers=2), data().requires_grad_()
    chosen = {"all below": lambda n: "_l0" in n, "everything": lambda n: True}.get(frozen, lambda n: n == frozen)
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(not chosen(name))
    with watch(module) as scope:
        all_of(*unpacked(module(x))).backward()
    oracles.assert_agrees(scope.run, truth(module, x))


def test_unfrozen_later() -> None:
    model, x = nn.Sequential(lstm()), data()
    model.requires_grad_(False)
    with watch(model) as scope:
        model.requires_grad_(True)
        all_of(*unpacked(model(x))).backward()
    oracles.assert_agrees(scope.run, truth(model[0], x, module="0"))


def right_or_noted(run: gradscope.Run, expected: dict[str, pd.DataFrame]) -> None:
    """Either the truth, or for gradients no number and a reason; jacobians and states are right in any case."""
    if run.frame("notes").empty:
        oracles.assert_agrees(run, expected)
        return
    got, want = (
        f.set_index(["layer", "quantity", "t"])["p50"] for f in (run.frame("timesteps"), expected["timesteps"])
    )
    assert set(got.index) == set(want.index)
    known = got.dropna()
    assert known.to_numpy() == pytest.approx(want[known.index].to_numpy(), rel=1e-9)
    assert {"jacobian", "state"} <= set(known.index.get_level_values("quantity"))


@pytest.mark.parametrize("family", CELLS)
def test_penalty_on_the_weights(family: str) -> None:
    """An L2 term in the loss adds to `weight_hh.grad` what no timestep contributed."""
    module, x = CELLS[family](3, 4, 2, dtype=torch.float64), data()
    with watch(module) as scope:
        (all_of(*unpacked(module(x))) + sum(p.square().sum() for p in module.parameters())).backward()
    right_or_noted(scope.run, truth(module, x))


@pytest.mark.parametrize("early", [True, False])
def test_hooks_on_the_weights(early: bool) -> None:
    """The clipping hook of many a tutorial, set before or after attaching."""
    module, x = lstm(), data()

    def clip(gradient: Tensor) -> Tensor:
        return gradient.clamp(-0.01, 0.01)

    if early:
        module.weight_hh_l0.register_hook(clip)
    with watch(module) as scope:
        if not early:
            module.weight_hh_l0.register_hook(clip)
        all_of(*unpacked(module(x))).backward()
    assert module.weight_hh_l0.grad.abs().max() <= 0.01
    right_or_noted(scope.run, truth(module, x))


def test_gradients_emptied_as_they_arrive() -> None:
    """`register_post_accumulate_grad_hook`, as optimizers in the backward use it."""
    module, x = lstm(num_layers=2), data()

    def take(parameter: Tensor) -> None:
        parameter.grad = None

    for parameter in module.parameters():
        parameter.register_post_accumulate_grad_hook(take)
    with watch(module) as scope:
        all_of(*unpacked(module(x))).backward()
    oracles.assert_agrees(scope.run, truth(module, x))
