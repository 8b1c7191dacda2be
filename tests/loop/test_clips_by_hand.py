"""What a loop does to gradients by hand, row by row."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from loop.clipped import NORM, TWO, clipped
from loop.loops import Loop, Net, observe, size
from torch.nn.utils import clip_grad_norm_  # long before any attach
from torch.optim import SGD

from gradscope.observe.schedule import Looks

# -- by hand


def halve(gradient: torch.Tensor) -> None:
    gradient.mul_(0.5)


def divide(gradient: torch.Tensor) -> None:
    gradient /= 8


def divide_data(gradient: torch.Tensor) -> None:
    gradient.data.div_(3)


@pytest.mark.parametrize(("change", "factor"), [(halve, 1 / 2), (divide, 1 / 8), (divide_data, 1 / 3)])
def test_scaled_by_hand(change: Callable[[torch.Tensor], None], factor: float) -> None:
    """As accumulation and all-reduce do: never counted as clipping."""
    outcome = observe(clipped(lambda loop: loop.by_hand(change)))
    assert outcome.steps == TWO
    assert outcome.rows("clips", "step", "kind", "how", "clipped") == [(k, "modified", "scaled", False) for k in (0, 1)]
    assert outcome.run.frame("clips")["coefficient"].tolist() == pytest.approx([factor] * 2, rel=1e-5)
    assert outcome.rows("clips", "index", "norm_type", "parameters", "nonfinite") == [(0, 2.0, 4, 0)] * 2


@pytest.mark.parametrize("data", [False, True])
def test_clamped_by_hand(data: bool) -> None:
    def clamp(gradient: torch.Tensor) -> None:
        (gradient.data if data else gradient).clamp_(-1e-4, 1e-4)

    outcome = observe(clipped(lambda loop: loop.by_hand(clamp)))
    assert outcome.steps == TWO
    expected = [(k, "modified", "clamped", True) for k in range(2)]
    assert outcome.rows("clips", "step", "kind", "how", "clipped") == expected
    assert outcome.run.frame("clips")["threshold"].tolist() == pytest.approx([1e-4] * 2)


def test_changed_by_hand() -> None:
    def add_noise(gradient: torch.Tensor) -> None:
        gradient += torch.randn_like(gradient)

    outcome = observe(clipped(lambda loop: loop.by_hand(add_noise)))
    expected = [(k, "modified", "changed", False) for k in range(2)]
    assert outcome.rows("clips", "step", "kind", "how", "clipped") == expected


def test_a_clamp_that_changes_nothing() -> None:
    def clamp(loop: Loop) -> None:
        for parameter in loop.model.parameters():
            parameter.grad.clamp_(-1e3, 1e3)

    outcome = observe(clipped(clamp))
    assert outcome.steps == TWO and outcome.clips == []


def test_changes_above_the_recurrent_layer_are_not_looked_at() -> None:
    def clamp(loop: Loop) -> None:
        for parameter in loop.model.head.parameters():
            parameter.grad.clamp_(-1e-6, 1e-6)

    assert observe(clipped(clamp)).clips == []


def test_a_call_and_then_by_hand() -> None:
    """Each has its row, and by hand starts from what the call left."""

    def both(loop: Loop) -> None:
        loop.clip(clip_grad_norm_, loop.model.parameters(), 1e-3)
        loop.by_hand(halve)

    outcome = observe(clipped(both))
    expected = [(*NORM, True), ("modified", "scaled", False)]
    assert outcome.rows("clips", "step", "kind", "how", "clipped") == [(k, *row) for k in range(2) for row in expected]


def test_by_hand_and_then_a_call() -> None:
    """Found at the optimizer, and so told behind the call, as if it had come later: the factor is the same."""

    def both(loop: Loop) -> None:
        for parameter in loop.model.parameters():
            parameter.grad /= 8
        loop.clip(clip_grad_norm_, loop.model.parameters(), 1e-3)
        loop.sizes.append((8 * size(loop.recurrent()), size(loop.recurrent())))

    outcome = observe(clipped(both))
    expected = [(*NORM, True), ("modified", "scaled", False)]
    assert outcome.rows("clips", "step", "kind", "how", "clipped") == [(k, *row) for k in range(2) for row in expected]


def test_accumulated_and_divided() -> None:
    def train(loop: Loop) -> None:
        optimizer = SGD(loop.model.parameters(), 0.1)
        for _ in range(2):
            for _ in range(4):
                loop.loss().backward()
            loop.by_hand(lambda gradient: gradient.div_(4))
            loop.step(optimizer)
            optimizer.zero_grad()

    outcome = observe(train)
    assert outcome.rows("clips", "step", "how", "clipped") == [(k, "scaled", False) for k in range(2)]
    assert outcome.run.frame("clips")["coefficient"].tolist() == pytest.approx([0.25] * 2, rel=1e-5)


def test_before_any_backward() -> None:
    """Clipping with no gradient at all."""

    def train(loop: Loop) -> None:
        clip_grad_norm_(loop.model.parameters(), 1.0)
        loop.sizes.append((0.0, 0.0))
        loop.backward()
        loop.step(SGD(loop.model.parameters(), 0.1))

    assert observe(train, Net).clips == [(0, *NORM, 1.0, False)]


# -- in long trainings, on steps that are looked at


@pytest.fixture
def looked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every step is looked at, as in trainings whose steps are dear."""
    monkeypatch.setattr(Looks, "due", lambda looks, step: True)
    monkeypatch.setattr(Looks, "following", lambda looks, step: step + 1)


def long(change: Callable[[Loop, int], Any], count: int = 45) -> Callable[[Loop], None]:
    def train(loop: Loop) -> None:
        optimizer = SGD(loop.model.parameters(), 0.01)
        for step in range(count):
            loop.backward()
            change(loop, step)
            loop.step(optimizer)

    return train


@pytest.mark.parametrize("every", [1, 10**9])
def test_a_long_training_that_leaves_its_gradients_alone(every: int) -> None:
    outcome = observe(long(lambda loop, step: None), every=every)
    assert len(outcome.steps) == 45 and outcome.clips == []


@pytest.mark.parametrize("every", [8, 10**9])
def test_a_long_training_with_clipping(every: int) -> None:
    def clip(loop: Loop, step: int) -> None:
        loop.clip(clip_grad_norm_, loop.model.parameters(), 1e-2)

    outcome = observe(long(clip), every=every)
    assert outcome.clips == [(k, *NORM, 1e-2, True) for k in range(45)]


@pytest.mark.parametrize("every", [8, 10**9])
@pytest.mark.usefixtures("looked")
def test_a_long_training_clamped_by_hand(every: int) -> None:
    """In every step, whether or not any of them was recorded meanwhile."""

    def clamp(loop: Loop, step: int) -> None:
        loop.by_hand(lambda gradient: gradient.clamp_(-1e-4, 1e-4))

    outcome = observe(long(clamp), every=every)
    expected = [(k, "modified", "clamped", True) for k in range(45)]
    assert outcome.rows("clips", "step", "kind", "how", "clipped") == expected


@pytest.mark.usefixtures("looked")
def test_scaled_by_hand_late_in_a_training() -> None:
    def scale(loop: Loop, step: int) -> None:
        if step >= 40:
            loop.by_hand(halve)

    outcome = observe(long(scale), every=10**9)
    assert outcome.rows("clips", "step", "how", "clipped") == [(k, "scaled", False) for k in range(40, 45)]


def test_gradients_that_are_not_finite_late_in_a_training() -> None:
    """Are nobody's doing, and are counted where the loss is not finite, looked at or not."""

    def train(loop: Loop) -> None:
        optimizer = SGD(loop.model.parameters(), 0.01)
        for step in range(42):
            optimizer.zero_grad()
            (loop.loss() * (math.nan if step >= 40 else 1.0)).backward()
            loop.step(optimizer)

    outcome = observe(train, every=10**9, noted=True)
    assert outcome.clips == [] and outcome.run.frame("steps")["nonfinite"].gt(0).tolist() == [False] * 40 + [True] * 2
