"""A training paused, and one that breaks off."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from loop.lives import steps
from loop.loops import Loop, Net, Outcome, observe
from torch.nn.utils import clip_grad_norm_
from torch.optim import SGD

import gradscope


def test_paused_steps_are_counted_and_not_recorded() -> None:
    def train(loop: Loop) -> None:
        optimizer = SGD(loop.model.parameters(), 0.1)
        for k in range(4):
            if loop.scope and k == 1:
                loop.scope.pause()
            if loop.scope and k == 3:
                loop.scope.resume()
            loop.backward()
            loop.clip(clip_grad_norm_, loop.model.parameters(), 1e-3)
            loop.step(optimizer)

    outcome = observe(train)
    assert outcome.steps == [(k, "SGD", k in (0, 3), False) for k in range(4)]
    assert outcome.run.frame("clips")["step"].tolist() == [0, 1, 2, 3]


def test_paused_around_an_evaluation() -> None:
    """Whose backward passes are not the step's."""

    def train(loop: Loop) -> None:
        steps(1)(loop)
        if loop.scope:
            loop.scope.pause()
        loop.backward(length=7)
        if loop.scope:
            loop.scope.resume()
        steps(1)(loop)

    outcome = observe(train)
    assert outcome.steps == [(0, "SGD", True, False), (1, "SGD", True, False)]
    assert outcome.run.frame("layers")["timesteps"].tolist() == [4, 4]


class Broken(Exception):
    """Raised by the user's code."""


class Fails(SGD):
    """Raises at its second step."""

    calls = 0

    def step(self, closure: Any = None) -> Any:
        self.calls += 1
        if self.calls == 2:
            raise Broken
        return super().step()


def breaks(_: Any) -> None:
    raise Broken


@pytest.mark.parametrize("moment", ["forward", "backward", "clipping", "step"])
def test_a_failure_in_the_middle_of_a_step(moment: str) -> None:
    """The loop goes on with the next batch: the attempt is no step, and the step after it is whole."""

    def train(loop: Loop) -> None:
        optimizer = Fails(loop.model.parameters(), 0.1) if moment == "step" else SGD(loop.model.parameters(), 0.1)
        for attempt in range(3):
            optimizer.zero_grad()
            try:
                _attempt(loop, optimizer, moment if attempt == 1 else "")
            except Broken:
                continue

    outcome = observe(train)
    name = "Fails" if moment == "step" else "SGD"
    assert outcome.steps == [(0, name, True, False), (1, name, True, False)]
    assert outcome.rows("clips", "step", "clipped") == [(0, True)] + [(1, True)] * (2 if moment == "step" else 1)


def _attempt(loop: Loop, optimizer: Any, moment: str) -> None:
    output, _ = loop.model.rnn(loop.model.embed(torch.randn(4, 2, 3)))
    if moment == "forward":
        raise Broken
    if moment == "backward":
        loop.model.embed.weight.register_hook(breaks)
        loss = loop.model.top(output)
        loop.model.embed.weight._backward_hooks.clear()
        output.register_hook(breaks)
    else:
        loss = loop.model.top(output)
    loss.backward()
    if moment == "clipping":
        raise Broken
    loop.clip(clip_grad_norm_, loop.model.parameters(), 1e-3)
    if moment != "step":
        loop.measure()
    optimizer.step()
    if moment == "step":
        loop.measure()


def test_a_loop_that_raises_leaves_what_it_had(tmp_path: Path) -> None:
    model = Net()
    optimizer = SGD(model.parameters(), 0.1)
    with pytest.raises(Broken), gradscope.attach(model, tmp_path, every=1, strict=True):
        for k in range(3):
            model(torch.randn(4, 2, 3)).backward()
            if k == 2:
                raise Broken
            optimizer.step()
    outcome = Outcome(gradscope.load(tmp_path))
    assert outcome.steps == [(0, "SGD", True, False), (1, "SGD", True, False), (2, "", True, False)]
