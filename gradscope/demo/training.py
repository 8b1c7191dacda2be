"""An ordinary training loop with a scope."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import gradscope
from gradscope.demo.tasks import ANY, Task

HIDDEN = 64
BATCH = 32
LEARNING_RATE = 0.01
RECORD_EVERY = 64
Progress = Callable[[int, int], object]
"""Receives the numbers of finished epochs and of all epochs."""

CELLS: dict[str, Callable[..., nn.RNNBase]] = {"rnn": nn.RNN, "lstm": nn.LSTM, "gru": nn.GRU}

CLIPPINGS: dict[str, Callable[[list[nn.Parameter]], object]] = {
    "norm": lambda parameters: nn.utils.clip_grad_norm_(parameters, max_norm=1.0),
    "value": lambda parameters: nn.utils.clip_grad_value_(parameters, clip_value=0.1),
}


@dataclass(frozen=True, slots=True)
class Trial:
    """One training: its cell, and the kind of clipping."""

    cell: str
    clipping: str

    @property
    def name(self) -> str:
        """The name of its run folder."""
        return f"{self.cell}-{self.clipping}"

    @property
    def title(self) -> str:
        """The trial in words."""
        return f"{self.cell.upper()}, clipped by {self.clipping}"


class Classifier(nn.Module):
    """A recurrent layer, and a linear classifier of its output, after the last step or at every step."""

    def __init__(self, cell: str, channels: int = 1, classes: int = 10, every_step: bool = False) -> None:
        super().__init__()
        self.rnn = CELLS[cell](channels, HIDDEN, batch_first=True)
        self.classify = nn.Linear(HIDDEN, classes)
        self.every_step = every_step

    def forward(self, x: Tensor) -> Tensor:
        """Compute scores (sequences, classes), or (sequences, classes, steps), for (sequences, steps, channels)."""
        output, _ = self.rnn(x)
        return self.classify(output).mT if self.every_step else self.classify(output[:, -1])


def train(trial: Trial, task: Task, epochs: int, logdir: Path, seed: int, progress: Progress) -> float:
    """Train one network, with its run in `logdir`, and call `progress` after every epoch.

    Returns:
        The share of right answers on test data.
    """
    _remove_earlier(logdir)
    torch.manual_seed(seed)
    model = Classifier(trial.cell, task.train_x.shape[2], task.classes, task.train_y.dim() > 1)
    parameters = list(model.parameters())
    optimizer = torch.optim.Adam(parameters, lr=LEARNING_RATE)
    clip = CLIPPINGS[trial.clipping]
    with gradscope.attach(model, logdir=logdir, every=RECORD_EVERY):
        for epoch in range(epochs):
            for batch in torch.randperm(len(task.train_x)).split(BATCH):
                optimizer.zero_grad()
                F.cross_entropy(model(task.train_x[batch]), task.train_y[batch]).backward()
                clip(parameters)
                optimizer.step()
            progress(epoch + 1, epochs)
    with torch.no_grad():
        counts = task.test_y != ANY
        return (model(task.test_x).argmax(1) == task.test_y)[counts].float().mean().item()


def _remove_earlier(logdir: Path) -> None:
    """Remove the run of an earlier demo, and nothing else in the folder."""
    run = logdir / "gradscope"
    if (run / "run.json").exists():
        shutil.rmtree(run)
