"""What the tests of a scope's life share."""

from __future__ import annotations

from collections.abc import Callable

from loop.loops import Loop
from torch.nn.utils import clip_grad_norm_
from torch.optim import SGD

TABLES = ("timesteps", "reach", "gates", "weights", "layers")


def steps(count: int) -> Callable[[Loop], None]:
    """A plain loop."""

    def train(loop: Loop) -> None:
        optimizer = SGD(loop.model.parameters(), 0.1)
        for _ in range(count):
            loop.backward()
            loop.clip(clip_grad_norm_, loop.model.parameters(), 1e-3)
            loop.step(optimizer)

    return train
