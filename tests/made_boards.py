"""Runs for the Gradscope tab, recorded by attaching to small trainings."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from gradscope_tensorboard.sink import TensorBoardSink
from torch import nn

import gradscope
from gradscope import Finding, LayerKey, Run
from gradscope.types import Remedy

HOSTILE = '<img src=x onerror="hacked=1">'
KEY = LayerKey("rnn", 0, "forward", 0)
STEPS, EVERY, LENGTH, LAYERS = 130, 4, 12, 50
RECORDED = range(0, STEPS, EVERY)


class Made(NamedTuple):
    """A folder for TensorBoard, and what its runs recorded.

    Attributes:
        logdir: with the runs `first`, `second` and one with a hostile name.
        first: an LSTM of two layers in two directions, clipped by norm; `RECORDED` of its `STEPS` steps.
        second: a GRU; its last step is not finite, and its norm is measured by calls that clip nothing.
        hostile: 50 layers in a module with a hostile name, clipped by value.
    """

    logdir: Path
    first: Run
    second: Run
    hostile: Run


class Named(nn.Module):
    """A recurrent layer under any name."""

    def __init__(self, name: str, rnn: nn.RNNBase) -> None:
        super().__init__()
        self.name = name
        self.add_module(name, rnn)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The output of the layer."""
        return getattr(self, self.name)(x)[0]


def finding() -> list[Finding]:
    """One of each severity, with markup in every text."""
    remedy = Remedy("start again <b>", "model.rnn.reset_parameters()  # <script>")
    return [
        Finding(
            "vanishing_gradient", "critical", KEY, f"It vanishes {HOSTILE}", "Why <i>", {"horizon": 3.0}, (remedy,)
        ),
        Finding(
            "excessive_clipping", "warning", None, "Clipped", "Too often", {"rate": float("nan")}, (remedy, remedy)
        ),
    ]


def train(
    model: Named, logdir: Path | None, steps: int, *, every: int = 1, threshold: float | None = None,
    value: float | None = None, nan_at: int = -1, full: bool = True,
    findings: Callable[[], Sequence[Finding]] | None = None,
) -> Run:  # fmt: skip
    """Train a little; the loss of one step can be made NaN."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    random = torch.Generator().manual_seed(1)
    sinks = [TensorBoardSink(logdir, findings=findings)]
    size = getattr(model, model.name).input_size
    with gradscope.attach(model, every=every, quantities="full" if full else "core", sinks=sinks) as scope:
        for step in range(steps):
            x = torch.randn(4, LENGTH, size, generator=random)
            optimizer.zero_grad()
            loss = model(x)[:, -3:].pow(2).sum()
            (loss * float("nan") if step == nan_at else loss).backward()
            if threshold is not None:
                nn.utils.clip_grad_norm_(model.parameters(), threshold)
            if value is not None:
                nn.utils.clip_grad_value_(model.parameters(), value)
            optimizer.step()
    return scope.run


def make(logdir: Path) -> Made:
    """Record all of them."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    lstm = nn.LSTM(2, 6, num_layers=2, bidirectional=True, batch_first=True)
    gru = nn.GRU(2, 6, num_layers=2, bidirectional=True, batch_first=True)
    deep = nn.RNN(2, 3, num_layers=LAYERS, batch_first=True)
    first = train(Named("rnn", lstm), logdir / "first", STEPS, every=EVERY, threshold=0.5, findings=finding)
    second = train(Named("rnn", gru), logdir / "second", 20, nan_at=19, threshold=float("inf"))
    name = 'a<b>&"c'
    return Made(logdir, first, second, train(Named(HOSTILE, deep), logdir / name, 3, value=0.1, full=False))
