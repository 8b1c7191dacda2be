"""What the demo's networks learn: one real task, and three made ones that ask for memory in different ways."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

ANY = -100
"""A target that does not count, as `cross_entropy` has it."""
LEARNT, HELD_BACK = 1536, 384
STEPS = 64


class Task(NamedTuple):
    """Sequences to name things in, split for training and testing.

    Attributes:
        train_x: sequences to learn from, (sequences, steps, channels).
        train_y: what to say of them: after the last step, (sequences,), or at every step, (sequences, steps), where
            `ANY` does not count.
        test_x: sequences held back.
        test_y: what to say of those.
        classes: how many answers there are.
        what: what a sequence is, in the plural.
        step: what a step is, in the plural.
    """

    train_x: Tensor
    train_y: Tensor
    test_x: Tensor
    test_y: Tensor
    classes: int
    what: str
    step: str


def _split(x: Tensor, y: Tensor, classes: int, what: str, step: str) -> Task:
    return Task(x[:LEARNT], y[:LEARNT], x[LEARNT:], y[LEARNT:], classes, what, step)


def digits(seed: int) -> Task:
    """Handwritten digits, read pixel by pixel: which digit is it?"""
    from gradscope.demo.digits import load

    return Task(*load(seed), classes=10, what="handwritten digits", step="pixels")


def adding(seed: int) -> Task:
    """Two of 64 numbers are marked, one in each half: is their sum above 1? After Hochreiter and Schmidhuber (1997)."""
    random = torch.Generator().manual_seed(seed)
    number = LEARNT + HELD_BACK
    values = torch.rand(number, STEPS, generator=random)
    marks = torch.zeros(number, STEPS)
    for half in (0, STEPS // 2):
        places = half + torch.randint(STEPS // 2, (number, 1), generator=random)
        marks.scatter_(1, places, 1.0)
    x = torch.stack([values, marks], 2)
    return _split(x, ((values * marks).sum(1) > 1).long(), 2, "rows of numbers", "numbers")


def copy(seed: int) -> Task:
    """Four of eight symbols, 56 blanks, then say the four again. After Hochreiter and Schmidhuber (1997)."""
    random = torch.Generator().manual_seed(seed)
    number, shown = LEARNT + HELD_BACK, 4
    symbols = torch.randint(8, (number, shown), generator=random)
    x = torch.full((number, STEPS), 8)
    x[:, :shown] = symbols
    x[:, -shown:] = 9  # now
    y = torch.full((number, STEPS), ANY)
    y[:, -shown:] = symbols
    return _split(F.one_hot(x, 10).float(), y, 8, "rows of symbols", "symbols")


def tagging(seed: int) -> Task:
    """Brackets that open and close between other signs: how deep is it, at every step?"""
    random = torch.Generator().manual_seed(seed)
    number, deepest = LEARNT + HELD_BACK, 5
    depth = torch.zeros(number, dtype=torch.long)
    signs, depths = [], []
    for _ in range(STEPS):
        sign = torch.randint(-1, 2, (number,), generator=random)
        after = (depth + sign).clamp(0, deepest)
        signs.append(after - depth + 1)  # a bracket that would go beyond is another sign
        depths.append(after)
        depth = after
    x = F.one_hot(torch.stack(signs, 1), 3).float()
    return _split(x, torch.stack(depths, 1), deepest + 1, "rows of brackets", "signs")


TASKS: dict[str, Callable[[int], Task]] = {"digits": digits, "adding": adding, "copy": copy, "tagging": tagging}
