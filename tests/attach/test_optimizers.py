"""One event per optimizer step, whatever the optimizer."""

from __future__ import annotations

import copy
import io
import pickle
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from attach.trainings import Ear, backward, loss, observed
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer

from gradscope.attach.optimizers import OPTIMIZERS

STEP = ["before SGD", "after SGD"]


def closure(network: nn.Module) -> Callable[[], Tensor]:
    """Loss with fresh gradients, as LBFGS and Lightning want it."""

    def evaluate() -> Tensor:
        network.zero_grad()
        value = loss(network)
        value.backward()
        return value

    return evaluate


@pytest.mark.parametrize("options", [{}, {"foreach": True}, {"fused": True}, {"foreach": False, "momentum": 0.9}])
def test_every_implementation(options: dict[str, Any]) -> None:
    def train(network: nn.Module) -> None:
        optimizer = SGD(network.parameters(), 0.1, **options)
        for _ in range(3):
            backward(network)
            optimizer.step()

    assert observed(train).heard == STEP * 3


def test_several_optimizers_and_parameter_groups() -> None:
    def train(network: Any) -> None:
        first = SGD([{"params": network[0].parameters()}, {"params": [network[2].bias], "lr": 0.01}], 0.1)
        second = Adam([network[2].weight])
        backward(network)
        first.step()
        second.step()

    assert observed(train).heard == [*STEP, "before Adam", "after Adam"]


@pytest.mark.parametrize("how", ["positional", "keyword", "none", "none by keyword"])
def test_closures(how: str) -> None:
    def train(network: nn.Module) -> None:
        optimizer, evaluate = SGD(network.parameters(), 0.1), closure(network)
        backward(network)
        args = {"positional": (evaluate,), "none": (None,)}.get(how, ())
        kwargs = {"keyword": {"closure": evaluate}, "none by keyword": {"closure": None}}.get(how, {})
        optimizer.step(*args, **kwargs)

    assert observed(train).heard == ["before SGD" + " with closure" * ("none" not in how), "after SGD"]


def test_lbfgs_is_one_step_around_many_backward_passes() -> None:
    def train(network: nn.Module) -> None:
        torch.optim.LBFGS(network.parameters(), max_iter=4).step(closure(network))

    assert observed(train).heard == ["before LBFGS with closure", "after LBFGS"]


class Decayed(SGD):
    """Calls `super().step()`."""

    def step(self, closure: Any = None) -> Any:
        with torch.no_grad():
            for group in self.param_groups:
                for parameter in group["params"]:
                    parameter.mul_(0.9)
        return super().step(closure)


class Sharpness(Optimizer):
    """SAM: steps another optimizer over the same parameters, with a backward pass in between."""

    def __init__(self, parameters: Any) -> None:
        super().__init__(parameters, {})
        self.base = SGD(self.param_groups, 0.1)

    def step(self, closure: Any = None) -> None:
        with torch.no_grad():
            for parameter in self.param_groups[0]["params"]:
                parameter.add_(parameter.grad, alpha=0.05)
        with torch.enable_grad():
            closure()
        self.base.step()


def test_a_subclass_that_calls_super_is_one_step() -> None:
    def train(network: nn.Module) -> None:
        optimizer = Decayed(network.parameters(), 0.1)
        for _ in range(2):
            backward(network)
            optimizer.step()

    assert observed(train).heard == ["before Decayed", "after Decayed"] * 2


def test_an_optimizer_over_the_same_parameters_inside_is_part_of_the_step() -> None:
    def train(network: nn.Module) -> None:
        optimizer = Sharpness(network.parameters())
        backward(network)
        optimizer.step(closure(network))

    assert observed(train).heard == ["before Sharpness with closure", "after Sharpness"]


def test_an_optimizer_over_other_parameters_inside_is_a_step_of_its_own() -> None:
    def train(network: Any) -> None:
        inner, outer = Adam(network[2].parameters()), SGD(network[0].parameters(), 0.1)
        backward(network)
        outer.step(lambda: inner.step() or 0.0)

    assert observed(train).heard == ["before SGD with closure", "before Adam", "after Adam", "after SGD"]


def test_a_step_that_raises_does_not_hide_the_next() -> None:
    def fail() -> float:
        raise ValueError("no loss")

    def train(network: nn.Module) -> None:
        optimizer = SGD(network.parameters(), 0.1)
        for _ in range(2):
            with pytest.raises(ValueError, match="no loss"):
                optimizer.step(fail)
            backward(network)
            optimizer.step()

    assert observed(train).heard == ["before SGD with closure", *STEP] * 2


def test_a_step_that_raised_and_is_repeated_within_another() -> None:
    def train(network: Any) -> None:
        optimizer, other = SGD(network[0].parameters(), 0.1), Adam(network[2].parameters())

        def retry() -> float:
            with pytest.raises(ZeroDivisionError):
                optimizer.step(lambda: 1 / 0)
            optimizer.step()
            return 0.0

        backward(network)
        other.step(retry)

    heard = ["before Adam with closure", "before SGD with closure", *STEP, "after Adam"]
    assert observed(train).heard == heard


def test_steps_in_other_threads_are_not_nested() -> None:
    def train(network: Any) -> None:
        outer, inner = SGD(network.parameters(), 0.1), Adam(network.parameters())

        def elsewhere() -> float:
            thread = threading.Thread(target=inner.step)
            thread.start()
            thread.join()
            return 0.0

        backward(network)
        outer.step(elsewhere)

    assert observed(train).heard == ["before SGD with closure", "before Adam", "after Adam", "after SGD"]


def test_one_optimizer_per_parameter_stepping_in_backward() -> None:
    def train(network: nn.Module) -> None:
        optimizers = {parameter: SGD([parameter], 0.1) for parameter in network.parameters()}
        for parameter in optimizers:
            parameter.register_post_accumulate_grad_hook(lambda parameter: optimizers[parameter].step())
        loss(network).backward()

    assert observed(train).heard == STEP * 6


def test_schedulers_and_hooks_of_the_users_own() -> None:
    def clip(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        torch.nn.utils.clip_grad_norm_(optimizer.param_groups[0]["params"], 0.1)

    def train(network: nn.Module) -> None:
        optimizer = SGD(network.parameters(), 0.1)
        schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1)
        optimizer.register_step_pre_hook(clip)
        backward(network)
        optimizer.step()
        schedule.step()

    assert observed(train).heard == ["before SGD", "clip_grad_norm_", "after SGD"]


def test_gradients_are_final_before_and_parameters_after() -> None:
    parameter = nn.Parameter(torch.ones(2))
    seen: list[Tensor] = []

    class Look(Ear):
        def before_step(self, optimizer: Optimizer, has_closure: bool) -> None:
            seen.append(parameter.grad.clone() if parameter.grad is not None else torch.zeros(2))

        def after_step(self, optimizer: Optimizer) -> None:
            seen.append(parameter.detach().clone())

    handle = OPTIMIZERS.listen(Look())
    parameter.grad = torch.full((2,), 0.5)
    SGD([parameter], 1.0).step()
    handle.remove()
    assert torch.equal(torch.stack(seen), torch.full((2, 2), 0.5))


@pytest.mark.parametrize("again", [copy.deepcopy, lambda thing: pickle.loads(pickle.dumps(thing))])
def test_optimizers_are_copied_and_pickled_as_ever(again: Callable[[Any], Any]) -> None:
    def train(network: nn.Module) -> None:
        optimizer = AdamW(network.parameters())
        backward(network)
        optimizer.step()
        again(optimizer).step()
        torch.save(optimizer.state_dict(), io.BytesIO())

    assert observed(train).heard == ["before AdamW", "after AdamW"] * 2


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_compiled_step() -> None:
    def train(network: nn.Module) -> None:
        torch._dynamo.reset()
        optimizer = SGD(network.parameters(), 0.1)
        step = torch.compile(optimizer.step, backend="eager")
        for _ in range(2):
            backward(network)
            step()

    assert observed(train).heard == STEP * 2
