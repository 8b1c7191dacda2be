"""A training run twice, unobserved and observed: what was heard, and that nothing else differs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad
from torch.optim import Optimizer
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks

from gradscope.attach.backward import BACKWARD
from gradscope.attach.clipping import CLIPPING, Clip, Outcome
from gradscope.attach.optimizers import OPTIMIZERS
from gradscope.attach.scaler import SCALER, Scaling, factor_of

SEAMS: tuple[Any, ...] = (OPTIMIZERS, CLIPPING, SCALER, BACKWARD)


@dataclass(frozen=True)
class Heard:
    """A clipping call, with its numbers read at once."""

    clip: Clip
    outcome: Outcome

    def __getattr__(self, name: str) -> Any:
        return getattr(self.outcome if name in Outcome._fields else self.clip, name)


class Ear:
    """Listens to every seam and writes down what it hears."""

    looking = True

    def __init__(self, wants: bool = True) -> None:
        self.heard: list[str] = []
        self.clips: list[Any] = []
        self.factors: list[Any] = []
        self.skipped: list[bool] = []
        self.passes: list[tuple[Any, ...]] = []
        self.scaling = Scaling()
        self.wants = wants

    def before_step(self, optimizer: Optimizer, has_closure: bool) -> None:
        self.heard.append(f"before {type(optimizer).__name__}" + " with closure" * has_closure)
        self.scaling.stepped(optimizer)

    def after_step(self, optimizer: Optimizer) -> None:
        self.heard.append(f"after {type(optimizer).__name__}")

    def before_backward(self, roots: Sequence[Any]) -> Any:
        self.passes.append(tuple(roots))

    def after_backward(self, token: Any) -> None:
        raise AssertionError("no token was given")

    broken_backward = after_backward

    def wants_clip(self, parameters: Sequence[Tensor]) -> bool:
        return self.wants

    def after_clip(self, clip: Clip) -> None:
        self.heard.append(clip.how)
        self.clips.append(Heard(clip, clip.outcome(float(clip.threshold), *map(float, clip.measured))))

    def scaled(self, scaler: Any, given: Any, result: Any) -> None:
        self.heard.append("scaled")
        self.factors.append(factor_of(scaler))

    def unscaled(self, scaler: Any, optimizer: Optimizer) -> None:
        self.heard.append("unscaled")

    def before_scaler_step(self, scaler: Any, optimizer: Optimizer) -> None:
        self.heard.append("scaler step")
        self.scaling.begin(scaler, optimizer)

    def after_scaler_step(self, scaler: Any, optimizer: Optimizer) -> None:
        self.heard.append("scaler stepped")
        self.skipped.append(bool(self.scaling.skipped))


def model() -> nn.Module:
    """A small network with a recurrent layer."""
    return nn.Sequential(nn.LSTM(3, 5), _Last(), nn.Linear(5, 2))


class _Last(nn.Module):
    def forward(self, result: tuple[Tensor, Any]) -> Tensor:
        return result[0][-1]


def loss(network: nn.Module) -> Tensor:
    """A loss on random data."""
    return network(torch.randn(4, 2, 3)).square().mean()


def backward(network: nn.Module) -> None:
    """Fresh gradients."""
    network.zero_grad()
    loss(network).backward()


def gradients(network: nn.Module) -> list[Tensor]:
    """Those that are there."""
    return [parameter.grad for parameter in network.parameters() if parameter.grad is not None]


def observed(train: Callable[[nn.Module], Any], wants: bool = True) -> Ear:
    """Train unobserved, and observed: the results must be the same to the bit, and torch be left as it was."""
    ear = Ear(wants)
    expected = _results(train)
    before = torch_state()
    with ExitStack() as listening:
        for seam in SEAMS:
            listening.callback(seam.listen(ear).remove)
        actual = _results(train)
    assert all(map(torch.equal, expected, actual)) and len(expected) == len(actual)
    assert torch_state() == before
    return ear


def _results(train: Callable[[nn.Module], Any]) -> list[Tensor]:
    torch.manual_seed(0)
    network = model()
    train(network)
    parameters = list(network.parameters())
    return [torch.get_rng_state(), *(t.detach().nan_to_num(nan=-7.0).clone() for t in parameters + gradients(network))]


def torch_state() -> list[Any]:
    """All of torch that the seams may touch, by identity."""
    functions = (clip_grad.clip_grad_norm_, clip_grad._clip_grads_with_norm_, clip_grad.clip_grad_value_)
    return [
        list(vars(torch.autograd).items()),
        list(vars(clip_grad).items()),
        list(vars(nn.utils).items()),
        [cell.cell_contents for function in functions for cell in function.__closure__ or ()],
        [list(vars(kind).items()) for kind in (torch.amp.GradScaler, torch.cuda.amp.GradScaler)],
        list(_global_optimizer_pre_hooks.items()),
        list(_global_optimizer_post_hooks.items()),
    ]
