"""The trainings that are timed: ordinary loops around one fused layer and a linear one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

CLASSES = 10
ANALYSED = 16
GATES = {"lstm": 4, "gru": 3, "rnn": 1}
LAYERS: dict[str, type[nn.RNNBase]] = {"lstm": nn.LSTM, "gru": nn.GRU, "rnn": nn.RNN}

# So small that a thousand steps change nothing: every variant, however many steps it has taken, does the same work.
LEARNING_RATE = 1e-7


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

    @property
    def title(self) -> str:
        kind = ("Bi" if self.bidirectional else "") + self.family.upper()
        extra = f", {self.layers} layers" if self.layers > 1 else ""
        extra += f", dropout {self.dropout:g}" if self.dropout else ""
        return f"{kind}, D {self.D}, H {self.H}, T {self.T}, B {self.B}{extra}"

    @property
    def recurrences(self) -> int:
        """Layers times directions."""
        return self.layers * (1 + self.bidirectional)

    def smaller(self) -> Workload:
        """The same in a size that proves nothing but that it runs."""
        return replace(self, H=self.H // 4, T=self.T // 16, B=min(self.B, 16))

    def one_timestep(self) -> Workload:
        """The same weights, hardly any work."""
        return replace(self, T=1, B=1)

    def layer(self) -> nn.RNNBase:
        options = {"num_layers": self.layers, "bidirectional": self.bidirectional, "dropout": self.dropout}
        return LAYERS[self.family](self.D, self.H, **options)


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

    def step(self) -> None:
        self._train(self.x, self.y)

    def short_steps(self, count: int) -> None:
        """Steps on one timestep of one sequence: what a scope does at every step settles, at hardly any cost."""
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
