"""Hugging Face Accelerate: your own loop, accumulating over two batches.

python examples/frameworks/with_accelerate.py
"""

from __future__ import annotations

import torch
from accelerate import Accelerator
from gradscope_integrations.accelerate import Gradscope
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
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    watching = Gradscope(accelerator, every=4)
    model = First()
    model, optimizer = accelerator.prepare(model, torch.optim.Adam(model.parameters(), lr=0.01))
    with watching.attach(model):
        for _ in range(16):
            x, y = batch()
            with accelerator.accumulate(model):
                accelerator.backward(nn.functional.cross_entropy(model(x), y))
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                optimizer.zero_grad()
    print(watching.run.frame("layers")[["step", "module", "horizon", "decay"]].to_string(index=False))
