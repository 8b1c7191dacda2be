"""Small tasks that need memory, each made from a generator: sequences, lengths, targets, and where they count.

A score of 0 is what a network reaches that remembers nothing, 1 is perfect.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

Generator = torch.Generator
SYMBOLS = 4
FILLERS = 5
TAGS = 4


@dataclass(frozen=True, slots=True)
class Data:
    """A batch, time first.

    Attributes:
        x: [T, B, D], zeros after a sequence's end.
        lengths: [B].
        y: [T, B] of classes or of numbers.
        counts: where the target counts, [T, B] booleans; never in the padding.
    """

    x: Tensor
    lengths: Tensor
    y: Tensor
    counts: Tensor


@dataclass(frozen=True, slots=True)
class Task:
    """How to draw data, and how to judge answers.

    Attributes:
        name: of the task.
        D: features of a timestep.
        outputs: classes, or 1 for a number.
        chance: accuracy without any memory; 0 for numbers.
        draw: (generator, sequences, held out) -> data.
        variable: sequences differ in length.
        best: accuracy of one who knows how the data are drawn.
    """

    name: str
    D: int
    outputs: int
    chance: float
    draw: Callable[[Generator, int, bool], Data]
    variable: bool = False
    best: float = 1.0

    def loss(self, scores: Tensor, data: Data, counts: Tensor | None = None) -> Tensor:
        """Mean loss of scores [T, B, outputs] over the steps that count."""
        where = data.counts if counts is None else counts
        answers, targets = scores[where], data.y[where]
        return F.mse_loss(answers.squeeze(-1), targets) if self.outputs == 1 else F.cross_entropy(answers, targets)

    def score(self, scores: Tensor, data: Data) -> float:
        """0 without memory, 1 when perfect; what is not finite has failed."""
        answers, targets = scores[data.counts], data.y[data.counts]
        if not answers.isfinite().all():
            return 0.0
        if self.outputs == 1:
            return 1 - ((answers.squeeze(-1) - targets).square().mean() / targets.var()).item()
        right = (answers.argmax(-1) == targets).double().mean().item()
        return (right - self.chance) / (self.best - self.chance)


def _last(T: int, B: int, y: Tensor) -> tuple[Tensor, Tensor]:
    """Targets and places for one answer at the end of each of B sequences of T steps."""
    counts = torch.zeros(T, B, dtype=torch.bool)
    counts[-1] = True
    return y.expand(T, B), counts


def adding(g: Generator, B: int, held_out: bool) -> Data:
    """The sum of the two numbers that are marked, one in the first five steps, one in the next five of 20."""
    T = 20
    x = torch.zeros(T, B, 2)
    x[:, :, 0] = torch.rand(T, B, generator=g) - 0.5
    columns = torch.arange(B)
    first, second = torch.randint(0, 5, (B,), generator=g), torch.randint(5, 10, (B,), generator=g)
    x[first, columns, 1] = x[second, columns, 1] = 1
    y, counts = _last(T, B, x[first, columns, 0] + x[second, columns, 0])
    return Data(x, torch.full((B,), T), y, counts)


def copy(g: Generator, B: int, held_out: bool) -> Data:
    """A symbol at the beginning, a pause of varied length, and a cue of two steps at which it must be said."""
    longest, said = 26, 2
    lengths = torch.randint(20, longest + 1, (B,), generator=g)
    symbols = torch.randint(0, SYMBOLS, (B,), generator=g)
    x = torch.zeros(longest, B, SYMBOLS + 1)
    x[0] = F.one_hot(symbols, SYMBOLS + 1)
    steps = torch.arange(longest).unsqueeze(1)
    counts = (steps >= lengths - said) & (steps < lengths)
    x[:, :, SYMBOLS] = counts.float()
    return Data(x, lengths, symbols.expand(longest, B), counts)


@functools.cache
def _digits() -> tuple[Tensor, Tensor]:
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    order = torch.randperm(len(images), generator=Generator().manual_seed(0))
    return torch.tensor(images, dtype=torch.float32)[order] / 16, torch.tensor(labels)[order]


def digits(g: Generator, B: int, held_out: bool) -> Data:
    """Handwritten digits, half a row of 8 x 8 pixels a step, a pause of eight steps, then the name of the digit."""
    images, labels = _digits()
    split = 1397
    chosen = torch.randint(split, len(images), (B,), generator=g) if held_out else None
    chosen = torch.randint(0, split, (B,), generator=g) if chosen is None else chosen
    x = torch.zeros(24, B, 4)
    x[:16] = images[chosen].view(B, 16, 4).transpose(0, 1)
    y, counts = _last(24, B, labels[chosen])
    return Data(x, torch.full((B,), 24), y, counts)


def agreement(g: Generator, B: int, held_out: bool) -> Data:
    """The number of a sentence's first noun, asked after a clause with other nouns in it."""
    longest, nouns = 26, 2
    lengths = torch.randint(16, longest + 1, (B,), generator=g)
    number = torch.randint(0, 2, (B,), generator=g)
    words = nouns + 2 + torch.randint(0, FILLERS, (longest, B), generator=g)
    attractors = torch.rand(longest, B, generator=g) < 0.15
    words = torch.where(attractors, nouns + torch.randint(0, 2, (longest, B), generator=g), words)
    words[torch.randint(0, 3, (B,), generator=g), torch.arange(B)] = number
    x = F.one_hot(words, nouns + 2 + FILLERS + 1).float()
    asked, columns = lengths - 1, torch.arange(B)
    x[asked, columns] = 0
    x[asked, columns, -1] = 1
    valid = torch.arange(longest).unsqueeze(1) < lengths
    counts = torch.zeros(longest, B, dtype=torch.bool)
    counts[asked, columns] = True
    return Data(x * valid.unsqueeze(-1), lengths, number.expand(longest, B), counts)


def tagging(g: Generator, B: int, held_out: bool) -> Data:
    """A tag for every word: its class in the language that was announced last, at the beginning or in between."""
    longest, words = 28, 8
    lengths = torch.randint(18, longest + 1, (B,), generator=g)
    tokens = torch.randint(0, words, (longest, B), generator=g)
    announced = torch.rand(longest, B, generator=g) < 0.04
    announced[0] = True
    drawn = torch.randint(0, 2, (longest, B), generator=g)
    latest = torch.where(announced, torch.arange(longest).unsqueeze(1), 0).cummax(0).values
    language = drawn.gather(0, latest)
    x = F.one_hot(torch.where(announced, words + drawn, tokens), words + 2).float()
    valid = torch.arange(longest).unsqueeze(1) < lengths
    return Data(x * valid.unsqueeze(-1), lengths, (tokens % 2) * 2 + language, valid & ~announced)


WORDS, RULED = 3, 0.8


def language(g: Generator, B: int, held_out: bool, back: int = 1) -> Data:
    """The next of three words at every step: as a rule what the last word and the one `back` before it make, in sum.

    Neither says anything by itself, and a fifth of the words are drawn at random: most of the loss stays.
    """
    T = 24
    words = torch.randint(0, WORDS, (T + 1, B), generator=g)
    ruled = torch.rand(T + 1, B, generator=g) < RULED
    for t in range(back + 1, T + 1):
        words[t] = torch.where(ruled[t], (words[t - 1] + words[t - 1 - back]) % WORDS, words[t])
    counts = (torch.arange(T) >= back).unsqueeze(1).expand(T, B)
    return Data(F.one_hot(words[:-1], WORDS).float(), torch.full((B,), T), words[1:], counts)


def dialect(g: Generator, B: int, held_out: bool) -> Data:
    """The same with the word two before the last."""
    return language(g, B, held_out, back=2)


TASKS = {
    task.name: task
    for task in (
        Task("adding", 2, 1, 0.0, adding),
        Task("copy", SYMBOLS + 1, SYMBOLS, 1 / SYMBOLS, copy, variable=True),
        Task("digits", 4, 10, 0.1, digits),
        Task("agreement", 2 + 2 + FILLERS + 1, 2, 0.5, agreement, variable=True),
        Task("tagging", 10, TAGS, 0.5, tagging, variable=True),
        Task("language", WORDS, WORDS, 1 / WORDS, language, best=RULED + (1 - RULED) / WORDS),
        Task("dialect", WORDS, WORDS, 1 / WORDS, dialect, best=RULED + (1 - RULED) / WORDS),
    )
}
