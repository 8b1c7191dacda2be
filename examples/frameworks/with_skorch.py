"""skorch: a scikit-learn classifier, and the callback.

python examples/frameworks/with_skorch.py
"""

from __future__ import annotations

import torch
from gradscope_integrations.skorch import GradscopeCallback
from skorch import NeuralNetClassifier
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
    x, y = (torch.cat(parts) for parts in zip(*(batch() for _ in range(8)), strict=True))
    watching = GradscopeCallback(every=4)
    options = {"criterion": nn.CrossEntropyLoss, "optimizer": torch.optim.Adam, "batch_size": 16, "max_epochs": 1}
    NeuralNetClassifier(First, **options, train_split=None, verbose=0, callbacks=[watching]).fit(x.numpy(), y.numpy())
    print(watching.run.frame("layers")[["step", "module", "horizon", "decay"]].to_string(index=False))
