"""Hugging Face Transformers: its Trainer on a small LSTM, and the callback.

python examples/frameworks/with_transformers.py
"""

from __future__ import annotations

from tempfile import TemporaryDirectory

import torch
from gradscope_integrations.transformers import GradscopeCallback
from torch import Tensor, nn
from transformers import Trainer, TrainingArguments


class First(nn.Module):
    """Names the first of 30 symbols; computes its own loss, as the Trainer wants."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.head = nn.LSTM(4, 32, batch_first=True), nn.Linear(32, 4)

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        scores = self.head(self.rnn(x)[0][:, -1])
        return {"loss": nn.functional.cross_entropy(scores, labels), "logits": scores}


if __name__ == "__main__":
    torch.manual_seed(0)
    symbols = torch.randint(0, 4, (64, 30))
    one_hot = nn.functional.one_hot(symbols, 4).float()
    data = [{"x": x, "labels": y} for x, y in zip(one_hot, symbols[:, 0], strict=True)]
    quiet = {"report_to": "none", "disable_tqdm": True, "save_strategy": "no", "dataloader_pin_memory": False}
    with TemporaryDirectory() as folder, GradscopeCallback(every=4) as watching:
        arguments = TrainingArguments(folder, max_steps=8, per_device_train_batch_size=16, use_cpu=True, **quiet)
        Trainer(First(), arguments, train_dataset=data, callbacks=[watching]).train()
    print(watching.run.frame("layers")[["step", "module", "horizon", "decay"]].to_string(index=False))
