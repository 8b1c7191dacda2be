"""An ordinary training loop, watched."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import gradscope
from gradscope.demo.digits import Task

HIDDEN = 64
BATCH = 32
LEARNING_RATE = 0.01
RECORD_EVERY = 64

CELLS: dict[str, Callable[..., nn.RNNBase]] = {"rnn": nn.RNN, "lstm": nn.LSTM, "gru": nn.GRU}

CLIPPINGS: dict[str, Callable[[list[nn.Parameter]], object]] = {
    "norm": lambda parameters: nn.utils.clip_grad_norm_(parameters, max_norm=1.0),
    "value": lambda parameters: nn.utils.clip_grad_value_(parameters, clip_value=0.1),
}


@dataclass(frozen=True, slots=True)
class Trial:
    """One training: which cell, and how its gradients are clipped."""

    cell: str
    clipping: str

    @property
    def name(self) -> str:
        """What its run folder is called."""
        return f"{self.cell}-{self.clipping}"

    @property
    def title(self) -> str:
        """The trial in words."""
        return f"{self.cell.upper()}, clipped by {self.clipping}"


class Classifier(nn.Module):
    """A recurrent layer, and a linear one that names the digit from the last step's output."""

    def __init__(self, cell: str, classes: int = 10) -> None:
        super().__init__()
        self.rnn = CELLS[cell](1, HIDDEN, batch_first=True)
        self.classify = nn.Linear(HIDDEN, classes)

    def forward(self, pixels: Tensor) -> Tensor:
        """Scores (images, classes) for pixels (images, steps, 1)."""
        output, _ = self.rnn(pixels)
        return self.classify(output[:, -1])


def train(trial: Trial, task: Task, epochs: int, logdir: Path, seed: int, report: Callable[[], object]) -> float:
    """Train one network, with its run in `logdir`; `report` is called after every epoch.

    Returns:
        The share of held-back images that it names rightly.
    """
    _forget_earlier(logdir)
    torch.manual_seed(seed)
    model = Classifier(trial.cell)
    parameters = list(model.parameters())
    optimizer = torch.optim.Adam(parameters, lr=LEARNING_RATE)
    clip = CLIPPINGS[trial.clipping]
    with gradscope.attach(model, logdir=logdir, every=RECORD_EVERY):
        for _ in range(epochs):
            for batch in torch.randperm(len(task.train_x)).split(BATCH):
                optimizer.zero_grad()
                F.cross_entropy(model(task.train_x[batch]), task.train_y[batch]).backward()
                clip(parameters)
                optimizer.step()
            report()
    with torch.no_grad():
        return (model(task.test_x).argmax(1) == task.test_y).float().mean().item()


def _forget_earlier(logdir: Path) -> None:
    """Remove the run of an earlier demo, and nothing else that may lie in the folder."""
    run = logdir / "gradscope"
    if (run / "run.json").exists():
        shutil.rmtree(run)
