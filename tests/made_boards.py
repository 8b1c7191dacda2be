"""Runs for the Gradscope tab: recorded by attaching to small trainings, and made by hand."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import made_runs
import numpy as np
import torch
from gradscope_integrations.tensorboard.sink import TensorBoardSink
from torch import nn

import gradscope
from gradscope import Batch, Finding, LayerKey, Rows, Run
from gradscope.types import Remedy

HOSTILE = '<img src=x onerror="hacked=1">'
KEY = LayerKey("rnn", 0, "forward", 0)
STACK = [LayerKey("core.gru", layer, "forward", 0) for layer in (0, 1)]
STEPS, EVERY, LENGTH, LAYERS = 130, 4, 12, 50
RECORDED = range(0, STEPS, EVERY)
LONG = 3000


class Made(NamedTuple):
    """A folder for TensorBoard, and what its runs recorded.

    Attributes:
        logdir: with the runs `first`, `second` and one with a hostile name; and, made `by_hand`, `long` of `LONG`
            steps, `once` of one, `lossless` of 40 whose loss is not known, and `stacked`, whose layers are `STACK`.
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
            "vanishing_gradient",
            "critical",
            KEY,
            f"It vanishes {HOSTILE}",
            "Why <i>",
            {"horizon": 3.0, "steps": (40, 128), "learning": "stalls", "loss": (2.0, 1.0)},
            (remedy,),
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
    by_hand(logdir / "long", LONG, spaced(LONG))
    by_hand(logdir / "once", 1, [0])
    by_hand(logdir / "lossless", 40, spaced(40), lost)
    by_hand(logdir / "stacked", 40, spaced(40), keys=STACK)
    name = 'a<b>&"c'
    return Made(logdir, first, second, train(Named(HOSTILE, deep), logdir / name, 3, value=0.1, full=False))


def spaced(steps: int) -> list[int]:
    """Steps that are recorded by default: 8 to each doubling."""
    return [step for step in range(steps) if step % 2 ** max(0, step.bit_length() - 4) == 0]


@functools.cache
def noise() -> np.ndarray:
    """Of every step, and, from the end, of every norm."""
    return np.random.default_rng(0).normal(size=20_000)


def falling(step: int) -> float:
    """The loss of a training that learns: from 2.3 down to 1.3, with noise."""
    return 1.3 + float(np.exp(-step / 600)) + 0.08 * noise()[step]


def lost(step: int) -> float:
    """A loss that is not there."""
    return float("nan")


def by_hand(
    logdir: Path, steps: int, recorded: Sequence[int], loss: Callable[[int], float] = falling,
    keys: Sequence[LayerKey] = (KEY,),
) -> None:  # fmt: skip
    """A run whose reach grows; gradients are looked at on every 7th step, and values are limited by another call."""
    sink = TensorBoardSink(logdir)
    for step in range(steps):
        layers = (rows for key in keys if step in recorded for rows in _layer(step, key))
        sink.write(Batch(step, (*_every_step(step, step in recorded, loss(step)), *layers)))
    sink.close()


def _every_step(step: int, recorded: bool, loss: float) -> Iterator[Rows]:
    seen, norm = recorded or step % 7 == 0, float(np.exp(0.5 * noise()[-1 - step]))
    about = {"index": 0, "norm_type": 2.0, "parameters": 4, "nonfinite": 0}
    norms = {"norm_before": norm, "norm_after": min(norm, 2.0), "coefficient": min(1.0, 2.0 / norm)}
    call = {"kind": "norm", "how": "clip_grad_norm_", "threshold": 2.0, "clipped": norm > 2}
    yield Rows("clips", {**about, **call, **norms})
    unknown = dict.fromkeys(norms, float("nan"))
    call = {"kind": "value", "how": "clip_grad_value_", "threshold": 0.1, "clipped": seen and step % 3 == 0}
    yield Rows("clips", {**about, **call, **(norms if seen else unknown), "index": 1})
    about = {"optimizer": "Adam", "loss": loss, "nonfinite": 0, "recorded": recorded, "skipped": False}
    times = {"overhead_s": 0.0, "step_s": 0.01 * (1 + 0.1 * abs(noise()[step]))}
    yield Rows("steps", {**about, **times, "grad_norm": norm if seen else float("nan")})


def _layer(step: int, key: LayerKey) -> Iterator[Rows]:
    for block in made_runs.layer(key, 24, -0.5 / (1 + step / 300)):
        more = {"spectral_radius": 0.9 + 0.2 * (1 - np.exp(-step / 900)), "update": 3e-3 / (1 + step / 400)}
        yield Rows(block.table, {**block.columns, **more}) if block.table == "weights" else block
