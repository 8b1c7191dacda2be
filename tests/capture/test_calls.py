"""What is seen of a fused layer: the ways in which people call it, and calls that are none of training's."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import cases
import oracles
import pytest
import torch
from capture.idioms import CELLS, all_of, data, lstm, truth, watch
from cases import Case, unpacked
from torch import Tensor, nn

# -- ways to call


@pytest.mark.parametrize("family", CELLS)
@pytest.mark.parametrize(
    "style",
    [
        lambda m, x, h: m(x, h),
        lambda m, x, h: m(input=x, hx=h),
        lambda m, x, h: m(x, hx=h),
        lambda m, x, h: m(hx=h, input=x),
        lambda m, x, h: m.forward(x, h),
        lambda m, x, h: m.forward(input=x, hx=h),
        lambda m, x, h: type(m).forward(m, x, h),
        lambda m, x, h: nn.Module.__call__(m, x, h),
    ],
    ids=["positional", "keywords", "mixed", "swapped", "forward", "forward_keywords", "unbound", "module_call"],
)
def test_ways_to_call(family: str, style: Callable[..., Any]) -> None:
    module, x = CELLS[family](3, 4, 2, dtype=torch.float64), data()
    h = data(2, 3, 4)
    h = (h, data(2, 3, 4)) if family == "lstm" else h
    with watch(module) as scope:
        all_of(*unpacked(style(module, x, h))).backward()
    oracles.assert_agrees(scope.run, truth(module, x, hx=h))


def test_an_instance_s_own_forward() -> None:
    """`module.forward` replaced by a closure, before and after attaching."""
    for late in (False, True):
        module, x = lstm(), data()
        inner = module.forward

        def outer(x: Tensor, inner: Callable = inner) -> Any:
            return inner(2 * x)

        if not late:
            module.forward = outer
        with watch(module) as scope:
            module.forward = outer
            all_of(*unpacked(module(x))).backward()
        oracles.assert_agrees(scope.run, truth(module, 2 * x))


def test_several_calls_of_one_module_in_a_step() -> None:
    """Each is a chain of its own, in order, though their lengths differ."""
    module, inputs = lstm(), [data(5, 3, 3), data(2, 3, 3), data(7, 1, 3)]
    with watch(module) as scope:
        sum(cases.uneven(module(x)[0], seed) for seed, x in enumerate(inputs)).backward()
    expected = [
        truth(module, x, lambda out, h, c, seed=k: cases.uneven(out, seed), chain=k) for k, x in enumerate(inputs)
    ]
    oracles.assert_agrees(scope.run, *expected)


def test_calls_without_a_gradient_are_no_chains() -> None:
    """Chains count the calls that a gradient came to."""
    module, x, y = lstm(), data(), data(4, 2, 3)
    with watch(module) as scope:
        module(data())
        first, _ = module(x)
        unused, _ = module(data())
        second, _ = module(y)
        (cases.uneven(first) + cases.uneven(second)).backward()
        del unused
    oracles.assert_agrees(scope.run, truth(module, x, chain=0), truth(module, y, chain=1))


def test_one_call_feeding_another() -> None:
    """Twice through the same weights: the first call's loss is all that follows it."""
    module, x = nn.GRU(4, 4, dtype=torch.float64), data(5, 3, 4)
    with watch(module) as scope:
        middle, _ = module(x)
        all_of(*unpacked(module(middle))).backward()
    below = truth(module, x, lambda out, h, c: cases.uneven(module(out)[0]), chain=0)
    oracles.assert_agrees(scope.run, below, truth(module, middle.detach(), chain=1))


@pytest.mark.parametrize("batch_first", [False, True])
def test_one_step_calls(batch_first: bool) -> None:
    """Stepping a module by hand, its state detached: every call is a chain of one step."""
    module, x = lstm(batch_first=batch_first), data(3, 2, 3)
    state, expected = None, []
    total = torch.zeros((), dtype=torch.float64)
    with watch(module) as scope:
        for t in range(3):
            rows = x[t : t + 1].transpose(0, 1) if batch_first else x[t : t + 1]
            expected.append(truth(module, rows, hx=state, chain=t))
            output, state = module(rows, state)
            state = tuple(part.detach() for part in state)
            total = total + all_of(output, *state)
        total.backward()
    oracles.assert_agrees(scope.run, *expected)


# -- calls that are none of training's


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("where", ["before", "between", "after"])
def test_calls_without_grad_record_nothing(context: Callable[[], Any], where: str) -> None:
    module, x = lstm(num_layers=2, dropout=0.5), data()
    built = cases.Built(Case("lstm", 2, dropout=0.5), module, x, None, all_of)

    def evaluate() -> None:
        module.eval()
        with context():
            module(data(9, 2, 3))
        module.train()

    with watch(module) as scope:
        if where == "before":
            evaluate()
        loss = all_of(*built.forward())
        if where == "between":
            evaluate()
        loss.backward()
        if where == "after":
            evaluate()
    oracles.assert_agrees(scope.run, oracles.frames(oracles.examine(built.call())))


def test_evaluation_alone_records_nothing() -> None:
    module = lstm()
    with watch(module) as scope:
        module.eval()
        module(data())
        with torch.no_grad():
            module(data())
    assert scope.run.frame("timesteps").empty
    assert scope.run.frame("notes").empty


def test_paused() -> None:
    module, x = lstm(), data()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    with watch(module) as scope:
        for step in range(3):
            (scope.pause if step == 1 else scope.resume)()
            all_of(*unpacked(module(x))).backward()
            optimizer.step()
    assert 1 not in set(scope.run.frame("timesteps")["step"])
    assert 0 in set(scope.run.frame("timesteps")["step"])


def test_a_deep_copy_s_calls_are_not_the_model_s() -> None:
    """A target network, copied while attached, and trained beside the original."""
    module, x = lstm(), data()
    with watch(module) as scope:
        twin = copy.deepcopy(module)
        loss = all_of(*unpacked(module(x)))
        all_of(*unpacked(twin(data(7, 2, 3)))).backward()
        loss.backward()
    oracles.assert_agrees(scope.run, truth(module, x))


def test_modules_outside_the_model() -> None:
    """Another LSTM of the same shape, and the same model's functional call with other weights."""
    module, other, x = lstm(), lstm(), data()
    with watch(module) as scope:
        loss = all_of(*unpacked(module(x)))
        all_of(*unpacked(other(x))).backward()
        loss.backward()
    oracles.assert_agrees(scope.run, truth(module, x))


def test_functional_call() -> None:
    """`torch.func.functional_call`: the weights that were given, and the certificate knows them."""
    module, x = lstm(), data()
    given = {name: (2 * p.detach()).requires_grad_() for name, p in module.named_parameters()}
    with watch(module) as scope:
        all_of(*unpacked(torch.func.functional_call(module, given, (x,)))).backward()
    oracles.assert_agrees(scope.run, truth(module, x, weights=given))
