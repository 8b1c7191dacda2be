"""What every framework is held against: a small task, and the same training as a plain loop with a scope attached."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import gradscope

TABLES = ("timesteps", "reach", "gates", "units", "weights", "layers", "clips", "steps", "notes")
TIMES = ["overhead_s", "step_s"]
BATCH, LENGTH, FEATURES, CLASSES = 4, 12, 3, 2
RESULTS = "GRADSCOPE_INTEGRATIONS"
"""Names a folder where tests write what they found, for the table of docs/integrations.md."""


class Net(nn.Module):
    """An LSTM with dropout and a layer of batch normalisation: random numbers and buffers take part."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.LSTM(FEATURES, 8, num_layers=2, batch_first=True)
        self.norm = nn.BatchNorm1d(8)
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.dropout(self.norm(self.rnn(x)[0][:, -1]), 0.2, self.training))


def net(seed: int = 0) -> Net:
    """The same network for the same seed."""
    torch.manual_seed(seed)
    return Net()


def batches(count: int, seed: int = 1) -> list[tuple[Tensor, Tensor]]:
    """Sequences [BATCH, LENGTH, FEATURES], and the class of each."""
    generator = torch.Generator().manual_seed(seed)
    return [
        (
            torch.randn(BATCH, LENGTH, FEATURES, generator=generator),
            torch.randint(CLASSES, (BATCH,), generator=generator),
        )
        for _ in range(count)
    ]


def plain(
    model: nn.Module,
    data: Sequence[tuple[Tensor, Tensor]],
    *,
    clip: Callable[[nn.Module], object] = lambda model: None,
    accumulate: int = 1,
    seed: int = 2,
    **arguments: object,
) -> gradscope.Run:
    """Train with SGD in a loop of our own under a scope that records every step."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    torch.manual_seed(seed)
    with gradscope.attach(model, every=1, strict=True, **arguments) as scope:
        for number, (x, y) in enumerate(data, 1):
            (F.cross_entropy(model(x), y) / accumulate).backward()
            if number % accumulate == 0:
                clip(model)
                optimizer.step()
                optimizer.zero_grad()
    return scope.run


def same_bits(one: nn.Module, other: nn.Module) -> bool:
    """Whether two models have the same parameters and buffers, bit for bit."""
    return all(map(torch.equal, one.state_dict().values(), other.state_dict().values()))


def assert_same_records(run: gradscope.Run, expected: gradscope.Run, tables: Sequence[str] = TABLES) -> None:
    """Every table is the other's, to the last bit; only times may differ."""
    assert not expected.frame("layers").empty
    for table in tables:
        one, other = (r.frame(table).drop(columns=TIMES, errors="ignore") for r in (run, expected))
        pd.testing.assert_frame_equal(one, other, check_exact=True, obj=table)


def found(framework: str, package: str, module: str, recorded: str, *, identical: bool) -> None:
    """Enter a row of the table in docs/integrations.md, where somebody asks for it."""
    folder = os.environ.get(RESULTS)
    if folder:
        row = {"framework": framework, "package": package, "version": version(package), "module": module}
        row |= {"recorded": recorded, "identical": identical}
        Path(folder).mkdir(parents=True, exist_ok=True)
        (Path(folder) / f"{framework}.json").write_text(json.dumps(row), encoding="utf-8")
