"""What the tests of clipping share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from loop.loops import Loop
from torch.optim import SGD

NORM, VALUE = ("norm", "clip_grad_norm_"), ("value", "clip_grad_value_")


TWO = [(0, "SGD", True, False), (1, "SGD", True, False)]


def clipped(between: Callable[[Loop], Any]) -> Callable[[Loop], None]:
    """Two steps with something between backward and step."""

    def train(loop: Loop) -> None:
        optimizer = SGD(loop.model.parameters(), 0.1)
        for _ in range(2):
            loop.backward()
            between(loop)
            loop.step(optimizer)

    return train
