"""An input sequence and an output sequence: encoder and decoder, CTC, and a sequence that is to be said again."""

from __future__ import annotations

import math
from datetime import date, timedelta

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from benchmarks.field import corpora
from benchmarks.field.setup import Setup
from benchmarks.field.task import Batch, Generator, Task, classes, explained, full, nats, numbers

LETTERS = {c: i + 1 for i, c in enumerate(" ,-./0123456789:abcdefghijklmnopqrstuvwxyz")}
DIGITS = {c: i for i, c in enumerate("0123456789-")}
START = len(DIGITS)  # with what a decoder begins


def _spelled(sources: list[str], targets: list[str]) -> Batch:
    lengths = torch.tensor([len(text) for text in sources])
    x = pad_sequence([torch.tensor([LETTERS[c] for c in text]) for text in sources], batch_first=True)
    y = torch.tensor([[DIGITS[c] for c in text] for text in targets])
    return Batch(x, y, lengths, torch.ones_like(y, dtype=torch.bool))


FORMATS = ("%A, %d %B %Y", "%d.%m.%Y", "%B %d, %Y", "%d/%b/%Y", "%Y %B %d %a", "%m-%d-%Y")


def dates(g: Generator, setup: Setup, step: int, test: bool, _: object) -> Batch:
    """A date as somebody writes it, and as a machine does."""
    days = torch.randint(0, 365 * 40, (setup.batch,), generator=g).tolist()
    forms = torch.randint(0, len(FORMATS), (setup.batch,), generator=g).tolist()
    found = [date(1985, 1, 1) + timedelta(day) for day in days]
    front = "on " * (setup.length // 30 - 1)
    said = [front + one.strftime(FORMATS[form]).lower() for one, form in zip(found, forms, strict=True)]
    return _spelled(said, [one.strftime("%y-%m-%d") for one in found])


ONES = "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen".split()  # noqa: E501
TENS = "zero ten twenty thirty forty fifty sixty seventy eighty ninety".split()


def _words(n: int) -> str:
    if n >= 1000:
        return f"{_words(n // 1000)} thousand {_words(n % 1000)}"
    if n >= 100:
        return f"{ONES[n // 100]} hundred {_words(n % 100)}"
    return ONES[n] if n < 20 else f"{TENS[n // 10]}-{ONES[n % 10]}"


def amounts(g: Generator, setup: Setup, step: int, test: bool, _: object) -> Batch:
    """A number in words, and in figures."""
    values = torch.randint(0, 100_000, (setup.batch,), generator=g).tolist()
    return _spelled([_words(value) for value in values], [f"{value:05d}" for value in values])


def beats(g: Generator, setup: Setup, step: int, test: bool, _: object) -> Batch:
    """Heartbeats that an autoencoder has to say again from one state: rate, height and two bumps differ."""
    B, T = setup.batch, setup.length
    rate, height, second = (torch.rand(B, 1, generator=g) for _ in range(3))
    phase = torch.arange(T) / (10 + 15 * rate) % 1
    shape = torch.exp(-(((phase - 0.3) / 0.08) ** 2)) * (0.5 + height) + second * torch.sin(2 * math.pi * phase) * 0.5
    x = (shape + 0.02 * torch.randn(B, T, generator=g) - 0.2)[..., None] * 2
    return Batch(x, x, full(B, T), torch.ones(B, T, dtype=torch.bool))


# --- CTC


def line(g: Generator, setup: Setup, step: int, test: bool, _: object) -> Batch:
    """A line of handwritten digits, a column of pixels a timestep, and what it says."""
    images, labels = corpora.digits()
    low, high = (1_400, len(images)) if test else (0, 1_400)
    many = setup.length // 10
    chosen = torch.randint(low, high, (setup.batch, many), generator=g)
    gaps = torch.randint(0, 4, (setup.batch, many), generator=g)
    x = torch.zeros(setup.batch, setup.length, 8)
    lengths = torch.zeros(setup.batch, dtype=torch.long)
    for row in range(setup.batch):
        at = 0
        for place in range(many):
            at += int(gaps[row, place])
            image = images[chosen[row, place]].T
            x[row, at : at + 8] = image[: max(0, setup.length - at)]
            at = min(at + 8, setup.length)
        lengths[row] = at
    return Batch(x, labels[chosen] + 1, lengths, extra={"lengths": torch.full((setup.batch,), many)})


SOUNDS = 12


def tones(g: Generator, setup: Setup, step: int, test: bool, _: object) -> Batch:
    """Speech-like frames of 20 features, a few sounds after each other, and which sounds they are."""
    fixed, B, T = Generator().manual_seed(8), setup.batch, setup.length
    shapes = torch.randn(SOUNDS, 20, generator=fixed)
    many = torch.randint(T // 16, T // 10, (B,), generator=g)
    x, y = 0.5 * torch.randn(B, T, 20, generator=g), torch.zeros(B, int(many.max()), dtype=torch.long)
    for row in range(B):
        sounds = torch.randint(0, SOUNDS, (int(many[row]),), generator=g)
        y[row, : len(sounds)] = sounds + 1
        span = T / len(sounds)
        for place, sound in enumerate(sounds.tolist()):
            x[row, int(place * span) + 2 : int((place + 1) * span)] += shapes[sound]
    return Batch(x, y, full(B, T), extra={"lengths": many})


def ctc(answers: Tensor, batch: Batch, setup: Setup) -> Tensor:
    """As a rule without `zero_infinity`, torch's default."""
    spoken = answers.float().log_softmax(-1).transpose(0, 1)
    safe = setup.birth == "ctc masked"
    return F.ctc_loss(spoken, batch.y, batch.lengths, batch.extra["lengths"], zero_infinity=safe)


def said(answers: Tensor, batch: Batch) -> float:
    """1 less the share of symbols that are wrong, by edit distance."""
    wrong = total = 0
    for row, length, y, many in zip(
        answers.argmax(-1), batch.lengths.tolist(), batch.y.tolist(), batch.extra["lengths"].tolist(), strict=True
    ):
        kept = torch.unique_consecutive(row[:length])
        wrong += _distance(kept[kept > 0].tolist(), y[:many])
        total += many
    return max(0.0, 1 - wrong / total)


def _distance(a: list[int], b: list[int]) -> int:
    row = list(range(len(b) + 1))
    for i, one in enumerate(a, 1):
        before, row[0] = row[0], i
        for j, other in enumerate(b, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (one != other))
    return row[-1]


def tasks() -> list[Task]:
    pair, usual = "seq2seq", Setup("gru", hidden=128, embed=48, steps=200, lr=0.006, batch=32)
    speech = Setup("lstm", hidden=64, bidirectional=True, steps=120, lr=0.007, batch=24)
    beating = Setup("lstm", hidden=96, steps=200, lr=0.01)
    return [
        Task(
            "dates", "tuning", pair, 43, 11, 30, dates, classes, nats, "pair", tokens=True, symbols=START + 1,
            usual=usual,
        ),
        Task(
            "amounts", "held-out", pair, 43, 11, 30, amounts, classes, nats, "pair", tokens=True, symbols=START + 1,
            usual=usual,
        ),
        Task("beats", "held-out", "autoencoder", 1, 1, 40, beats, numbers, explained, "pair", usual=beating),
        Task("line", "tuning", "CTC", 8, 11, 60, line, ctc, said, "all", usual=speech.but(lr=0.012, steps=240)),
        Task("tones", "held-out", "CTC", 20, SOUNDS + 1, 80, tones, ctc, said, "all", usual=speech),
    ]  # fmt: skip
