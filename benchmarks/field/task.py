"""What a task is: how its batches are drawn, how answers are marked, and what a network without any skill gets."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.field.setup import Setup

Generator = torch.Generator


@dataclass(frozen=True, slots=True)
class Batch:
    """What goes into a step, batch first.

    Attributes:
        x: [B, T] of symbols or [B, T, D] of numbers, zeros after a sequence's end.
        y: the right answers; what shape they have is the task's business.
        lengths: [B].
        counts: [B, T], where an answer counts; None where a sequence has one answer.
        extra: what else the loss needs: target lengths, returns.
    """

    x: Tensor
    y: Tensor
    lengths: Tensor
    counts: Tensor | None = None
    extra: dict[str, Tensor] = field(default_factory=dict)


Draw = Callable[[Generator, Setup, int, bool, nn.Module | None], Batch]


@dataclass(frozen=True, slots=True)
class Task:
    """A kind of work.

    Attributes:
        name: of the task.
        half: `"tuning"` or `"held-out"`.
        kind: what practitioners call it.
        inputs: features, or symbols where `tokens`.
        outputs: of the head.
        length: timesteps of a sequence, unless the setup says another number.
        draw: (generator, setup, step, from the held-out data, network) -> batch; the network matters where it acts.
        loss: of answers and a batch.
        score: 0 for no skill at all, 1 for perfect.
        answers: `"last"` or `"all"`: one answer a sequence, or one a timestep; `"pair"`: an encoder and a decoder.
        symbols: of the decoder, where there is one; 0 where it says numbers.
        stateful: a batch goes on where the last one ended.
        usual: how it is done soundly.
    """

    name: str
    half: str
    kind: str
    inputs: int
    outputs: int
    length: int
    draw: Draw
    loss: Callable[[Tensor, Batch, Setup], Tensor]
    score: Callable[[Tensor, Batch], float]
    answers: str = "last"
    tokens: bool = False
    symbols: int = 0
    stateful: bool = False
    usual: Setup = Setup()


def counted(answers: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
    """Answers and targets where they count, one a row."""
    if batch.counts is None:
        return answers, batch.y
    return answers[batch.counts], batch.y[batch.counts]


# --- losses


def classes(answers: Tensor, batch: Batch, setup: Setup) -> Tensor:
    """Cross-entropy."""
    return F.cross_entropy(*counted(answers, batch), label_smoothing=setup.smoothing)


def numbers(answers: Tensor, batch: Batch, setup: Setup) -> Tensor:
    """Mean squared error, with the targets in the wrong shape where the setup says so."""
    answers, y = counted(answers, batch)
    if setup.labels == "broadcast":
        return F.mse_loss(answers[..., :1], y[..., 0].expand(len(y), len(y)).contiguous())
    return F.mse_loss(answers, y)


def notes(answers: Tensor, batch: Batch, setup: Setup) -> Tensor:
    """Binary cross-entropy of many labels."""
    return F.binary_cross_entropy_with_logits(*counted(answers, batch))


# --- scores


def accuracy(answers: Tensor, batch: Batch) -> float:
    """Right answers beyond those of always saying the commonest class."""
    answers, y = counted(answers, batch)
    common = y.bincount().max().item() / len(y)
    right = (answers.argmax(-1) == y).double().mean().item()
    return (right - common) / (1 - common)


def nats(answers: Tensor, batch: Batch) -> float:
    """Share of the entropy of the symbols' frequencies that is explained."""
    answers, y = counted(answers, batch)
    usual = batch.extra.get("usual")
    if usual is None:
        usual = (y.bincount() / len(y)).log()
    entropy = -usual[y].mean().item()
    return 1 - F.cross_entropy(answers.double(), y).item() / entropy


def explained(answers: Tensor, batch: Batch) -> float:
    """Share of the variance that is explained."""
    answers, y = counted(answers, batch)
    return 1 - ((answers - y).square().mean() / (y - y.mean(0)).square().mean()).item()


def bits(answers: Tensor, batch: Batch) -> float:
    """Share of the binary entropy of every label's frequency that is explained."""
    answers, y = counted(answers, batch)
    base = y.mean(0).clamp(1e-4, 1 - 1e-4)
    usual = F.binary_cross_entropy(base.expand_as(y), y)
    return 1 - (F.binary_cross_entropy_with_logits(answers, y) / usual).item()


def full(size: int, T: int) -> Tensor:
    """The lengths of sequences that are all as long as the batch."""
    return torch.full((size,), T)
