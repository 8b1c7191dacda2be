"""Weights & Biases, without a network: scalars, heatmaps and the report.

python examples/frameworks/with_wandb.py
"""

from __future__ import annotations

import torch
import wandb
from gradscope_integrations.wandb import WandbSink
from torch import Tensor, nn

import gradscope


class First(nn.Module):
    """Names the first of 30 symbols."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.head = nn.LSTM(4, 32, batch_first=True), nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x)[0][:, -1])


def batch() -> tuple[Tensor, Tensor]:
    symbols = torch.randint(0, 4, (16, 30))
    return nn.functional.one_hot(symbols, 4).float(), symbols[:, 0]


if __name__ == "__main__":
    torch.manual_seed(0)
    model = First()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    settings = wandb.Settings(silent=True)
    with (
        wandb.init(project="gradscope", mode="offline", settings=settings) as run,
        gradscope.attach(model, every=4, sinks=[WandbSink(run, commit=True)]) as watching,
    ):
        for _ in range(8):
            x, y = batch()
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
    print(watching.run.frame("layers")[["step", "module", "horizon", "decay"]].to_string(index=False))
