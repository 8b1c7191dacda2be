"""Under a GradScaler: gradients are given unscaled, and skipped attempts are steps of their own."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from loop.loops import Loop, Net, assert_same_rows, observe
from torch import nn
from torch.amp import GradScaler
from torch.nn.utils import clip_grad_norm_
from torch.optim import SGD, Adam

import gradscope

TABLES = ("timesteps", "reach", "gates", "weights")
TWO = [(0, "SGD", True, False), (1, "SGD", True, False)]
Between = Callable[[Loop, Any, Any], Any]


def nothing(*_: Any) -> None:
    """Straight from backward to step."""


def unscale(loop: Loop, scaler: Any, optimizer: Any) -> None:
    scaler.unscale_(optimizer)


def clip(loop: Loop, scaler: Any, optimizer: Any) -> None:
    loop.clip(clip_grad_norm_, loop.model.parameters(), 1e-3)


def unscale_and_clip(loop: Loop, scaler: Any, optimizer: Any) -> None:
    scaler.unscale_(optimizer)
    clip(loop, scaler, optimizer)


def scaled(between: Between = nothing, enabled: bool = True, **options: Any) -> Callable[[Loop], None]:
    """The documented loop, with something between backward and step; the factor doubles at every step."""

    def train(loop: Loop) -> None:
        optimizer = SGD(loop.model.parameters(), 0.1, **options)
        scaler = GradScaler("cpu", init_scale=1024.0, growth_interval=1, enabled=enabled)
        for _ in range(2):
            optimizer.zero_grad()
            scaler.scale(loop.loss()).backward()
            between(loop, scaler, optimizer)
            unscale_by_hand(loop, scaler, unscaled=between in (unscale, unscale_and_clip) or not enabled)
            scaler.step(optimizer)
            scaler.update()

    return train


def unscale_by_hand(loop: Loop, scaler: GradScaler, unscaled: bool) -> None:
    """The norm that the optimizer will get."""
    loop.measure()
    if not unscaled:
        loop.norms[-1] /= scaler.get_scale()


def plain(clipping: bool = False) -> Callable[[Loop], None]:
    """The same training without a scaler."""

    def train(loop: Loop) -> None:
        optimizer = SGD(loop.model.parameters(), 0.1)
        for _ in range(2):
            loop.backward()
            if clipping:
                clip(loop, None, None)
            loop.step(optimizer)

    return train


@pytest.mark.parametrize("options", [{}, {"foreach": False}, {"fused": True}], ids=str)
@pytest.mark.parametrize("between", [nothing, unscale])
def test_gradients_are_given_unscaled(between: Between, options: dict[str, bool]) -> None:
    outcome, bare = observe(scaled(between, **options)), observe(plain())
    assert outcome.steps == TWO and outcome.clips == []
    assert_same_rows(outcome.run, bare.run, *TABLES, rtol=1e-4)


@pytest.mark.parametrize("options", [{}, {"fused": True}], ids=str)
def test_unscaled_and_clipped(options: dict[str, bool]) -> None:
    outcome, bare = observe(scaled(unscale_and_clip, **options)), observe(plain(clipping=True))
    assert outcome.steps == TWO
    assert outcome.clips == [(k, "norm", "clip_grad_norm_", 1e-3, True) for k in range(2)]
    assert_same_rows(outcome.run, bare.run, "clips", *TABLES, rtol=1e-4)


def test_a_disabled_scaler_is_none() -> None:
    outcome, bare = observe(scaled(unscale_and_clip, enabled=False)), observe(plain(clipping=True))
    assert outcome.steps == TWO
    assert_same_rows(outcome.run, bare.run, "clips", *TABLES)


def test_clipped_before_unscaling() -> None:
    """A mistake: the row says what torch clipped, and a note says what went wrong."""
    with pytest.warns(gradscope.GradscopeWarning, match="unscale_"):
        outcome = observe(scaled(clip), noted=True)
    assert outcome.steps == TWO
    assert outcome.clips == [(k, "norm", "clip_grad_norm_", 1e-3, True) for k in range(2)]
    assert [step for step, _ in outcome.notes] == [0, 1]
    assert all("GradScaler" in reason and "scaler.unscale_(optimizer) before clipping" in reason
               for _, reason in outcome.notes)  # fmt: skip


def overflowing(fused: bool, everywhere: bool) -> Callable[[Loop], None]:
    """The second of three attempts has an infinite gradient."""

    def train(loop: Loop) -> None:
        optimizer = SGD(loop.model.parameters(), 0.1, fused=fused)
        scaler = GradScaler("cpu", init_scale=1024.0)
        for attempt in range(3):
            optimizer.zero_grad()
            loss = loop.loss()
            scaler.scale(loss * math.inf if everywhere and attempt == 1 else loss).backward()
            if attempt == 1:
                loop.model.head.bias.grad[0] = math.inf
            unscale_by_hand(loop, scaler, unscaled=False)
            scaler.step(optimizer)
            scaler.update()

    return train


@pytest.mark.parametrize("fused", [False, True])
def test_a_skipped_attempt_is_a_step(fused: bool) -> None:
    """The infinity is outside the recurrent layer, whose gradients are as ever."""
    outcome = observe(overflowing(fused, everywhere=False))
    assert outcome.steps == [(0, "SGD", True, False), (1, "SGD", True, True), (2, "SGD", True, False)]
    assert outcome.clips == []
    assert outcome.run.frame("steps")["nonfinite"].tolist() == [0, 0, 0]


@pytest.mark.parametrize("fused", [False, True])
def test_a_skipped_attempt_with_no_finite_gradient(fused: bool) -> None:
    outcome = observe(overflowing(fused, everywhere=True), noted=True)
    assert [row[-1] for row in outcome.steps] == [False, True, False]
    assert outcome.clips == []
    assert outcome.run.frame("steps")["nonfinite"].tolist() == [0, 4, 0]
    gradients = outcome.run.frame("timesteps", quantity="grad_h_direct")
    assert gradients.groupby("step")["nonfinite"].max().tolist() == [0, 2, 0]


def test_accumulation_under_a_scaler() -> None:
    def train(loop: Loop) -> None:
        optimizer, scaler = SGD(loop.model.parameters(), 0.1), GradScaler("cpu", init_scale=1024.0)
        for number in range(4):
            scaler.scale(loop.loss(length=3 + number) / 2).backward()
            if number % 2:
                unscale_by_hand(loop, scaler, unscaled=False)
                scaler.step(optimizer)
                scaler.update()
                optimizer.zero_grad()

    outcome = observe(train)
    assert outcome.steps == TWO and outcome.clips == []
    assert outcome.run.frame("layers")["timesteps"].tolist() == [3, 5]


class Two(nn.Module):
    """Two recurrent layers for two optimizers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = Net(), Net(nn.GRU)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.first(x) + self.second(x)


@pytest.mark.parametrize("early", [False, True])
def test_one_scaler_for_two_optimizers(early: bool) -> None:
    def train(loop: Loop) -> None:
        optimizers = SGD(loop.model.first.parameters(), 0.1), Adam(loop.model.second.parameters())
        scaler = GradScaler("cpu", init_scale=1024.0)
        for _ in range(2):
            loop.model.zero_grad()
            scaler.scale(loop.loss()).backward()
            for optimizer in optimizers if early else ():
                scaler.unscale_(optimizer)
                loop.clip(clip_grad_norm_, optimizer.param_groups[0]["params"], 1e-3)
            for optimizer in optimizers:
                loop.measure(optimizer)
                loop.norms[-1] /= 1.0 if early else scaler.get_scale()
                scaler.step(optimizer)
            scaler.update()

    outcome = observe(train, Two)
    assert outcome.steps == [(k, ("SGD", "Adam")[k % 2], k % 2 == 0, False) for k in range(4)]
    assert outcome.clips == [(k, "norm", "clip_grad_norm_", 1e-3, True) for k in (0, 0, 2, 2)] * early


def test_somebody_else_s_scaler_is_none_of_ours() -> None:
    """Another model is trained in turn, with a scaler; this one is not."""

    def train(loop: Loop) -> None:
        other = nn.Linear(3, 1)
        optimizer, another = SGD(loop.model.parameters(), 0.1), SGD(other.parameters(), 0.1)
        scaler = GradScaler("cpu", init_scale=1024.0)
        for _ in range(2):
            loop.backward()
            another.zero_grad()
            scaler.scale(other(torch.ones(3)).sum()).backward()
            clip(loop, scaler, optimizer)
            loop.step(optimizer)
            scaler.step(another)
            scaler.update()

    outcome = observe(train)
    assert outcome.steps == TWO
    assert outcome.clips == [(k, "norm", "clip_grad_norm_", 1e-3, True) for k in range(2)]


def test_a_scaler_without_a_step() -> None:
    """Forward and backward alone, looked at in the middle."""
    medians: list[list[float]] = []

    def train(loop: Loop) -> None:
        GradScaler("cpu", init_scale=1024.0).scale(loop.loss()).backward()
        if loop.scope:
            medians.append(loop.scope.run.frame("timesteps", quantity="grad_h")["p50"].tolist())
        loop.measure()
        loop.norms[-1] /= 1024

    def bare(loop: Loop) -> None:
        loop.loss().backward()
        loop.measure()

    with_scaler = observe(train).run.frame("timesteps", quantity="grad_h")["p50"].tolist()
    without = observe(bare).run.frame("timesteps", quantity="grad_h")["p50"].tolist()
    assert with_scaler == pytest.approx(without, rel=1e-4) and medians == [with_scaler]
