"""The trainings that are timed: ordinary loops around one fused layer and a linear one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

CLASSES = 10
ANALYSED = 16
GATES = {"lstm": 4, "gru": 3, "rnn": 1}

# So small that a thousand steps change nothing: every variant, however many steps it has taken, does the same work.
LEARNING_RATE = 1e-7


class OwnCell(nn.Module):
    """A cell as people write them: known by the signature of its `forward`."""

    def __init__(self, D: int, H: int) -> None:
        super().__init__()
        self.enter, self.recur = nn.Linear(D, 2 * H), nn.Linear(H, 2 * H)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        keep, new = (self.enter(x) + self.recur(h)).chunk(2, -1)
        keep = keep.sigmoid()
        return keep * h + (1 - keep) * new.tanh()


class OwnLayer(nn.Module):
    """Such a cell in a loop over time."""

    def __init__(self, D: int, H: int, **_: object) -> None:
        super().__init__()
        self.cell, self.H = OwnCell(D, H), H

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h, outputs = x.new_zeros(x.shape[1], self.H), list[Tensor]()
        for x_t in x:
            h = self.cell(x_t, h)
            outputs.append(h)
        return torch.stack(outputs), h


LAYERS: dict[str, Callable[..., nn.Module]] = {"lstm": nn.LSTM, "gru": nn.GRU, "rnn": nn.RNN, "own": OwnLayer}


@dataclass(frozen=True, slots=True)
class Workload:
    """One recurrent layer and its data: D input, H hidden, T timesteps, B sequences, on one device."""

    key: str
    family: str
    D: int
    H: int
    T: int
    B: int
    layers: int = 1
    bidirectional: bool = False
    dropout: float = 0.0
    device: str = "cpu"
    clip: float | None = None
    steps: int | None = None  # of a run with the default; None for as many as a given time allows

    @property
    def title(self) -> str:
        kind = "Bi" * self.bidirectional + self.family.upper() if self.family != "own" else "own cell in a loop"
        extra = f", {self.layers} layers" if self.layers > 1 else ""
        extra += f", dropout {self.dropout:g}" if self.dropout else ""
        extra += ", clipped" if self.clip else ""
        return f"{kind}, D {self.D}, H {self.H}, T {self.T}, B {self.B}{extra}"

    @property
    def recurrences(self) -> int:
        """Layers times directions."""
        return self.layers * (1 + self.bidirectional)

    def smaller(self) -> Workload:
        """The same in a size that proves nothing but that it runs."""
        steps = self.steps and min(self.steps, 60)
        return replace(self, H=self.H // 4, T=max(2, self.T // 16), B=min(self.B, 16), steps=steps)

    def one_timestep(self) -> Workload:
        """The same weights, hardly any work; but as many calls of a cell in a loop."""
        return replace(self, T=self.T if self.family == "own" else 1, B=1, steps=None)

    def layer(self) -> nn.Module:
        options = {"num_layers": self.layers, "bidirectional": self.bidirectional, "dropout": self.dropout}
        return LAYERS[self.family](self.D, self.H, **options)


USUAL = (
    Workload("", "lstm", 8, 32, 30, 32, clip=1.0, steps=3000),
    Workload("", "gru", 16, 64, 50, 32, steps=1000),
    Workload("", "lstm", 64, 128, 128, 32, steps=300),
    Workload("", "own", 8, 32, 60, 32, steps=500),
)
"""Trainings that are small, as many are."""

WORKLOADS = {
    workload.key: workload
    for workload in (
        Workload("lstm-256", "lstm", 64, 256, 256, 32),
        Workload("lstm-128", "lstm", 64, 128, 128, 32),
        Workload("bilstm", "lstm", 100, 128, 100, 32, layers=2, bidirectional=True, dropout=0.5),
        Workload("gru-256", "gru", 64, 256, 256, 32),
        Workload("rnn-784", "rnn", 28, 128, 784, 32),
    )
}


class Net(nn.Module):
    """A recurrent layer, and a linear one that classifies."""

    def __init__(self, workload: Workload) -> None:
        super().__init__()
        self.rnn = workload.layer()
        self.head = nn.Linear(workload.H * (1 + workload.bidirectional), CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """[T, B, D] -> [T, B, directions * H]."""
        return self.rnn(x)[0]


class Training:
    """A fresh model, its optimizer and its batch, all from one seed; `step` is one ordinary training step.

    Args:
        workload: sizes.
        loss: `"last"` classifies the last output, `"every"` all of them.
        make_net: another model with the same `forward` and `head`.
    """

    def __init__(self, workload: Workload, loss: str = "last", make_net: Callable[[Workload], Net] = Net) -> None:
        torch.manual_seed(0)
        self.model = make_net(workload).to(workload.device)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=LEARNING_RATE)
        torch.manual_seed(1)
        self.x = torch.randn(workload.T, workload.B, workload.D).to(workload.device)
        self.y = torch.randint(0, CLASSES, (workload.T, workload.B)).to(workload.device)
        self.first = -1 if loss == "last" else 0
        self.after_backward: Callable[[], object] | None = None
        if workload.clip is not None:
            clip = partial(nn.utils.clip_grad_norm_, max_norm=workload.clip)
            self.after_backward = lambda: clip(self.model.parameters())

    def step(self) -> None:
        self._train(self.x, self.y)

    def short_steps(self, count: int) -> None:
        """Steps on one timestep of one sequence, which load and warm up what a step needs at hardly any cost."""
        for _ in range(count):
            self._train(self.x[:1, :1], self.y[:1, :1])

    def _train(self, x: Tensor, y: Tensor) -> None:
        self.optimizer.zero_grad()
        scores = self.model.head(self.model(x)[self.first :])
        F.cross_entropy(scores.flatten(0, 1), y[self.first :].flatten()).backward()
        if self.after_backward is not None:
            self.after_backward()
        self.optimizer.step()

    def steps(self, count: int) -> None:
        for _ in range(count):
            self.step()
