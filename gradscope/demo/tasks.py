"""The tasks of the demo: one real task, and three artificial ones that need memory in different ways."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

ANY = -100
"""A target that `cross_entropy` ignores."""
LEARNT, HELD_BACK = 1536, 384
STEPS = 64


class Task(NamedTuple):
    """Sequences to classify, split for training and testing.

    Attributes:
        train_x: sequences to learn from, (sequences, steps, channels).
        train_y: their answers: after the last step, (sequences,), or at every step, (sequences, steps), with `ANY` for
            steps without an answer.
        test_x: sequences for testing.
        test_y: their answers.
        classes: number of answers.
        what: noun for the sequences.
        step: noun for the steps.
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
    """Show a handwritten digit, pixel by pixel: which digit is it?

    The images are scikit-learn's 1,797 of 8 x 8 pixels, from 0 to 1; a fifth, evenly over the digits, is for testing.
    """
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    images, labels = load_digits(return_X_y=True)
    parts = train_test_split(images / 16, labels, test_size=0.2, stratify=labels, random_state=seed)
    train_x, test_x = (torch.tensor(part, dtype=torch.float32).unsqueeze(-1) for part in parts[:2])
    train_y, test_y = (torch.tensor(part, dtype=torch.int64) for part in parts[2:])
    return Task(train_x, train_y, test_x, test_y, classes=10, what="handwritten digits", step="pixels")


def adding(seed: int) -> Task:
    """Mark two of 64 numbers, one in each half: is their sum above 1? After Hochreiter and Schmidhuber (1997)."""
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
    """Show four of eight symbols, then 56 blanks: what were the four? After Hochreiter and Schmidhuber (1997)."""
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
    """Open and close brackets between other signs: what is the depth at every step?"""
    random = torch.Generator().manual_seed(seed)
    number, deepest = LEARNT + HELD_BACK, 5
    depth = torch.zeros(number, dtype=torch.long)
    signs, depths = [], []
    for _ in range(STEPS):
        sign = torch.randint(-1, 2, (number,), generator=random)
        after = (depth + sign).clamp(0, deepest)
        signs.append(after - depth + 1)  # a bracket beyond the limits is another sign
        depths.append(after)
        depth = after
    x = F.one_hot(torch.stack(signs, 1), 3).float()
    return _split(x, torch.stack(depths, 1), deepest + 1, "rows of brackets", "signs")


TASKS: dict[str, Callable[[int], Task]] = {"digits": digits, "adding": adding, "copy": copy, "tagging": tagging}
