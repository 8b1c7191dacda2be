"""Loss scaling is observed on any device, and scalers are as ever."""

from __future__ import annotations

import copy
import inspect
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from attach.trainings import loss, observed
from torch import nn
from torch.amp import GradScaler
from torch.nn.utils import clip_grad_norm_
from torch.optim import SGD, Adam

from gradscope.attach.scaler import SCALER

STEP = ["before SGD", "after SGD"]
UNSCALED_STEP = ["scaler step", "unscaled", *STEP, "scaler stepped"]


def scaled_training(
    between: Callable[[GradScaler, Any, Any], Any] = lambda *_: None,
    kind: Callable[..., Any] = GradScaler,
    **options: Any,
) -> Callable[[nn.Module], None]:
    """Two steps of the documented loop, with something between backward and step."""

    def train(network: nn.Module) -> None:
        optimizer, scaler = SGD(network.parameters(), 0.1, **options), kind("cpu", init_scale=8.0, growth_interval=1)
        for _ in range(2):
            optimizer.zero_grad()
            scaler.scale(loss(network)).backward()
            between(scaler, optimizer, network)
            scaler.step(optimizer)
            scaler.update()

    return train


def spoil(scaler: GradScaler, optimizer: Any, network: Any) -> None:
    """Overflow."""
    network[2].bias.grad[0] = torch.inf


def test_unscaled_by_the_step() -> None:
    ear = observed(scaled_training())
    assert ear.heard == ["scaled", *UNSCALED_STEP] * 2
    assert ear.skipped == [False, False]


def test_the_factor_is_the_one_at_the_time() -> None:
    factors = observed(scaled_training()).factors
    assert [float(factor) for factor in factors] == [8.0, 16.0] and all(factor.dim() == 0 for factor in factors)


def test_unscaled_early_to_clip() -> None:
    def clip(scaler: GradScaler, optimizer: Any, network: nn.Module) -> None:
        scaler.unscale_(optimizer)
        clip_grad_norm_(network.parameters(), 1e-3)

    heard = ["scaled", "unscaled", "clip_grad_norm_", "scaler step", *STEP, "scaler stepped"]
    assert observed(scaled_training(clip)).heard == heard * 2


def test_a_skipped_step_reaches_no_optimizer() -> None:
    ear = observed(scaled_training(spoil))
    assert ear.heard == ["scaled", "scaler step", "unscaled", "scaler stepped"] * 2
    assert ear.skipped == [True, True] and [float(factor) for factor in ear.factors] == [8.0, 4.0]


@pytest.mark.parametrize(("between", "skipped"), [(lambda *_: None, False), (spoil, True)])
def test_fused_optimizers_step_even_when_skipping(between: Callable[..., Any], skipped: bool) -> None:
    ear = observed(scaled_training(between, fused=True))
    assert ear.heard == ["scaled", "scaler step", *STEP, "scaler stepped"] * 2
    assert ear.skipped == [skipped] * 2


def test_two_optimizers_of_which_one_skips() -> None:
    def train(network: Any) -> None:
        optimizers = SGD(network[0].parameters(), 0.1), SGD(network[2].parameters(), 0.1)
        scaler = GradScaler("cpu", init_scale=8.0)
        scaler.scale(loss(network)).backward()
        spoil(scaler, optimizers[1], network)
        for optimizer in optimizers:
            scaler.step(optimizer=optimizer)
        scaler.update()

    assert observed(train).skipped == [False, True]


def test_accumulation_and_several_losses() -> None:
    def train(network: nn.Module) -> None:
        optimizer, scaler = SGD(network.parameters(), 0.1), GradScaler("cpu")
        for _ in range(2):
            for scaled in scaler.scale([loss(network), loss(network)]):
                scaled.backward()
        scaler.step(optimizer)
        scaler.update()

    assert observed(train).heard == ["scaled", "scaled", *UNSCALED_STEP]


def test_a_disabled_scaler_scales_by_one() -> None:
    def train(network: nn.Module) -> None:
        optimizer, scaler = SGD(network.parameters(), 0.1), GradScaler("cpu", enabled=False)
        scaler.scale(loss(network)).backward()
        scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()

    ear = observed(train)
    assert ear.heard == ["scaled", "scaler step", *STEP, "scaler stepped"]
    assert ear.factors == [1.0] and ear.skipped == [False]


class Super(GradScaler):
    """Adds to every method, and calls `super()`."""

    def scale(self, outputs: Any) -> Any:
        return super().scale(outputs)

    def unscale_(self, optimizer: Any) -> None:
        super().unscale_(optimizer)

    def step(self, optimizer: Any, *args: Any, **kwargs: Any) -> Any:
        return super().step(optimizer, *args, **kwargs)


class Own(GradScaler):
    """Scales without calling `super()`, as FSDP's does."""

    def scale(self, outputs: Any) -> Any:
        if self._scale is None:
            self._lazy_init_scale_growth_tracker(outputs.device)
        return outputs * self._scale


@pytest.mark.parametrize("kind", [Super, Own])
def test_subclasses(kind: type[GradScaler]) -> None:
    assert observed(scaled_training(kind=kind)).heard == ["scaled", *UNSCALED_STEP] * 2


def test_a_subclass_made_later() -> None:
    def train(network: nn.Module) -> None:
        class Late(Super):
            def step(self, optimizer: Any, *args: Any, **kwargs: Any) -> Any:
                return super().step(optimizer, *args, **kwargs)

        scaled_training(kind=Late)(network)

    assert observed(train).heard == ["scaled", *UNSCALED_STEP] * 2


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore:.*CUDA is not available.*:UserWarning")
def test_the_deprecated_scaler_of_cuda() -> None:
    def train(network: nn.Module) -> None:
        optimizer, scaler = SGD(network.parameters(), 0.1), torch.cuda.amp.GradScaler(enabled=False)
        scaler.scale(loss(network)).backward()
        scaler.step(optimizer)

    assert observed(train).heard == ["scaled", "scaler step", *STEP, "scaler stepped"]


def test_calls_that_raise() -> None:
    def train(network: nn.Module) -> None:
        optimizer, scaler = SGD(network.parameters(), 0.1), GradScaler("cpu")
        with pytest.raises(AssertionError):
            scaler.unscale_(optimizer)
        with pytest.raises(AssertionError):
            scaler.step(optimizer)
        scaler.scale(loss(network)).backward()
        scaler.unscale_(optimizer)
        with pytest.raises(RuntimeError, match="already been called"):
            scaler.unscale_(optimizer)
        scaler.step(optimizer)

    assert observed(train).heard == ["scaler step", "scaled", "unscaled", "scaler step", *STEP, "scaler stepped"]


@pytest.mark.parametrize("again", [copy.deepcopy, lambda thing: pickle.loads(pickle.dumps(thing))])
def test_scalers_are_copied_and_pickled_between_steps(again: Callable[[Any], Any]) -> None:
    def train(network: nn.Module) -> None:
        scaler, optimizer = GradScaler("cpu", init_scale=4.0), Adam(network.parameters())
        for _ in range(2):
            scaler.scale(loss(network)).backward()
            scaler.step(optimizer)
            scaler.update()
            scaler = again(scaler)

    assert observed(train).skipped == [False, False]


def test_signatures_stay() -> None:
    before = inspect.signature(GradScaler.step)
    handle = SCALER.listen(object())  # pyright: ignore[reportArgumentType]
    assert inspect.signature(GradScaler.step) == before
    handle.remove()
