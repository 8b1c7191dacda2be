"""Images by the pixel, signals and series."""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.field import corpora
from benchmarks.field.setup import Setup
from benchmarks.field.task import Batch, Generator, Task, accuracy, bits, classes, explained, full, notes, numbers

TRAINING = 1_400  # of the digits


def _digits(g: Generator, setup: Setup, test: bool) -> tuple[Tensor, Tensor]:
    images, labels = corpora.digits()
    low, high = (TRAINING, len(images)) if test else (0, TRAINING)
    chosen = torch.randint(low, high, (setup.batch,), generator=g)
    return images[chosen], labels[chosen]


def _enlarged(images: Tensor, side: int) -> Tensor:
    return F.interpolate(images[:, None], (side, side), mode="bilinear", align_corners=False)[:, 0]


def pixels(g: Generator, setup: Setup, step: int, test: bool, _: object) -> Batch:
    """A digit, one pixel a timestep, row by row; `length` is the number of pixels."""
    images, labels = _digits(g, setup, test)
    side = math.isqrt(setup.length)
    return Batch(_enlarged(images, side).view(setup.batch, -1, 1), labels, full(setup.batch, side * side))


def permuted(g: Generator, setup: Setup, step: int, test: bool, _: object) -> Batch:
    """The same, the pixels in an order that has been drawn once."""
    batch = pixels(g, setup, step, test, _)
    order = torch.randperm(batch.x.shape[1], generator=Generator().manual_seed(0))
    return Batch(batch.x[:, order], batch.y, batch.lengths)


AHEAD = 12


@functools.cache
def _load() -> Tensor:
    """A year of hourly demand: days, weeks, weather and noise; standardised."""
    g, hours = Generator().manual_seed(3), torch.arange(24 * 366)
    weather, noise = torch.randn(len(hours), generator=g), torch.randn(len(hours), generator=g)
    slow = torch.zeros(len(hours))
    for t in range(1, len(hours)):
        slow[t] = 0.98 * slow[t - 1] + 0.2 * weather[t]
    day = torch.sin(hours * 2 * math.pi / 24) + 0.4 * torch.sin(hours * 4 * math.pi / 24 + 1)
    weekend = ((hours // 24) % 7 >= 5).float()
    found = day * (1 - 0.5 * weekend) - 0.8 * weekend + 0.8 * slow + 0.1 * noise
    return (found - found.mean()) / found.std()


def load(g: Generator, setup: Setup, step: int, test: bool, _: object) -> Batch:
    """What the next twelve hours need, after `length` hours."""
    series, T = _load(), setup.length
    cut = int(0.8 * len(series))
    part = series[cut:] if test else series[:cut]
    at = torch.randint(0, len(part) - T - AHEAD, (setup.batch, 1), generator=g)
    window = part[at + torch.arange(T + AHEAD)]
    return Batch(window[:, :T, None], window[:, T:], full(setup.batch, T))


def membrane(g: Generator, setup: Setup, step: int, test: bool, _: object) -> Batch:
    """A neuron's voltage five samples ahead, said at every sample."""
    series, T, ahead = corpora.membrane(), setup.length, 5
    cut = int(0.7 * len(series))
    part = series[cut:] if test else series[:cut]
    at = torch.randint(0, len(part) - T - ahead, (setup.batch, 1), generator=g)
    window = part[at + torch.arange(T + ahead)]
    counts = torch.ones(setup.batch, T, dtype=torch.bool)
    return Batch(window[:, :T, None], window[:, ahead:, None], full(setup.batch, T), counts)


def keywords(g: Generator, setup: Setup, step: int, test: bool, _: object) -> Batch:
    """Speech-like: 13 features a frame, ten words of four sounds each, spoken somewhere in the sequence."""
    fixed, B, T = Generator().manual_seed(5), setup.batch, setup.length
    sounds, spelled = torch.randn(6, 13, generator=fixed), torch.randint(0, 6, (10, 4), generator=fixed)
    labels = torch.randint(0, 10, (B,), generator=g)
    x = 0.4 * torch.randn(B, T, 13, generator=g)
    longest = T // 6
    at = torch.randint(0, T - 4 * longest, (B,), generator=g)
    for row in range(B):
        place = int(at[row])
        for sound in spelled[labels[row]].tolist():
            length = int(torch.randint(longest // 2, longest + 1, (1,), generator=g))
            x[row, place : place + length] += sounds[sound]
            place += length
    return Batch(x, labels, full(B, T))


def activity(g: Generator, setup: Setup, step: int, test: bool, _: object) -> Batch:
    """What somebody does, by three axes of acceleration: rest, walk, run, stairs, or first one and then another."""
    B, T = setup.batch, setup.length
    labels = torch.randint(0, 6, (B,), generator=g)
    rate = torch.tensor([[0.0, 0.0], [2, 2], [3.5, 3.5], [1.2, 1.2], [2, 3.5], [3.5, 1.2]])[labels]
    size = torch.tensor([[0.02, 0.02], [0.5, 0.5], [1.2, 1.2], [0.8, 0.8], [0.5, 1.2], [1.2, 0.8]])[labels]
    second = (torch.arange(T) > T // 2).long()
    turns = rate[:, second] * (1 + 0.1 * torch.randn(B, 1, generator=g)) / 20
    phase = 2 * math.pi * (turns.cumsum(1) + torch.rand(B, 1, generator=g))
    axes = torch.stack([phase.sin(), (phase + 1).cos(), (2 * phase).sin()], -1) * size[:, second, None]
    return Batch(axes + 0.1 * torch.randn(B, T, 3, generator=g), labels, full(B, T))


KEYS, CHORDS = 36, torch.tensor([[0, 4, 7], [5, 9, 12], [7, 11, 14], [9, 12, 16], [2, 5, 9]])
AFTER = torch.tensor([[0, 3, 3, 2, 2], [3, 0, 5, 1, 1], [6, 1, 0, 3, 0], [1, 4, 2, 0, 3], [1, 0, 8, 1, 0]]).float()


def chorale(g: Generator, setup: Setup, step: int, test: bool, _: object) -> Batch:
    """The notes of the next beat: chords that follow each other in some key, two beats each, and a walking voice."""
    B, T = setup.batch, setup.length
    key, chord = torch.randint(0, 12, (B,), generator=g), torch.randint(0, 5, (B,), generator=g)
    rolls = torch.zeros(B, T + 1, KEYS)
    for t in range(T + 1):
        if t % 2 == 0 and t:
            chord = torch.multinomial(AFTER[chord], 1, generator=g)[:, 0]
        keys = (CHORDS[chord] + key[:, None]) % KEYS
        rolls[:, t].scatter_(1, keys, 1.0)
        walking = 24 + (keys[:, t % 3] + key) % 12
        rolls[:, t].scatter_(1, walking[:, None], 1.0)
    counts = torch.ones(B, T, dtype=torch.bool)
    return Batch(rolls[:, :-1], rolls[:, 1:], full(B, T), counts)


def _classifier(name: str, half: str, kind: str, inputs: int, outputs: int, length: int, draw: object, usual: Setup) -> Task:  # fmt: skip # noqa: E501
    return Task(name, half, kind, inputs, outputs, length, draw, classes, accuracy, usual=usual)  # type: ignore[arg-type]


def tasks() -> list[Task]:
    image, signal = "images by the pixel", "classification of signals"
    small = Setup("gru", hidden=64, steps=160, lr=0.005, batch=24)
    return [
        _classifier("pixels", "tuning", image, 1, 10, 196, pixels, Setup(hidden=64, steps=200, lr=0.007, batch=24)),
        _classifier("permuted", "held-out", image, 1, 10, 100, permuted, Setup("gru", hidden=64, steps=160, lr=0.005)),
        Task(
            "load", "tuning", "forecasting", 1, AHEAD, 120, load, numbers, explained,
            usual=Setup("gru", hidden=64, steps=140, lr=0.007, batch=24),
        ),
        Task(
            "membrane", "held-out", "forecasting", 1, 1, 150, membrane, numbers, explained, "all",
            usual=Setup("lstm", hidden=64, steps=150, lr=0.005),
        ),
        _classifier("keywords", "tuning", signal, 13, 10, 80, keywords, small.but(lr=0.008)),
        _classifier("activity", "held-out", signal, 3, 6, 150, activity, small.but(family="lstm")),
        Task(
            "chorale", "tuning", "music", KEYS, KEYS, 48, chorale, notes, bits, "all",
            usual=Setup("rnn_tanh", hidden=128, steps=150, lr=0.003),
        ),
    ]  # fmt: skip
