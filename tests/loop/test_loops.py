"""The helper finds what it is there to find."""

from __future__ import annotations

import pytest
import torch
from loop.loops import Loop, observe
from torch.optim import SGD


@pytest.mark.parametrize("where", ["random numbers", "parameters", "gradients", "buffers", "losses"])
def test_any_difference_is_found(where: str) -> None:
    def train(loop: Loop) -> None:
        optimizer = SGD(loop.model.parameters(), 0.1)
        loop.backward()
        loop.step(optimizer)
        if loop.scope:
            with torch.no_grad():
                _disturb(loop, where)

    with pytest.raises(AssertionError, match="differ"):
        observe(train)


def _disturb(loop: Loop, where: str) -> None:
    if where == "random numbers":
        torch.rand(1)
    elif where == "losses":
        loop.seen[-1] += b"."
    else:
        tensors = {
            "parameters": loop.model.head.bias,
            "gradients": loop.model.head.bias.grad,
            "buffers": loop.model.norm.running_mean,
        }
        tensors[where][0].nextafter_(torch.tensor(9.0))


@pytest.mark.parametrize("what", ["steps", "clips", "another step"])
def test_a_wrong_row_is_found(what: str) -> None:
    def train(loop: Loop) -> None:
        optimizer = SGD(loop.model.parameters(), 0.1)
        loop.backward()
        if what == "clips":
            loop.by_hand(lambda gradient: gradient.mul_(0.5))
            loop.sizes[-1] = (loop.sizes[-1][0] * 1.01, loop.sizes[-1][1])
        loop.step(optimizer)
        if what == "steps":
            loop.norms[-1] *= 1.0001
        if what == "another step":
            loop.norms.append(1.0)

    with pytest.raises(AssertionError):
        observe(train)
