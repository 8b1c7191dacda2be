"""PyTorch-Ignite: a handler on a trainer.

python examples/frameworks/with_ignite.py
"""

from __future__ import annotations

import torch
from gradscope_integrations.ignite import GradscopeHandler
from ignite.engine import create_supervised_trainer
from torch import Tensor, nn


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
    trainer = create_supervised_trainer(model, torch.optim.Adam(model.parameters(), lr=0.01), nn.CrossEntropyLoss())
    with GradscopeHandler(model, every=4) as watching:
        watching.attach(trainer)
        trainer.run([batch() for _ in range(8)])
    print(watching.run.frame("layers")[["step", "module", "horizon", "decay"]].to_string(index=False))
