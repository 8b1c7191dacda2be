"""Lightning: the Trainer clips, the callback records.

python examples/frameworks/with_lightning.py
"""

from __future__ import annotations

import lightning.pytorch as pl
import torch
from gradscope_integrations.lightning import GradscopeCallback
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset


class First(pl.LightningModule):
    """Names the first of 30 symbols."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.head = nn.LSTM(4, 32, batch_first=True), nn.Linear(32, 4)

    def training_step(self, batch: list[Tensor], index: int) -> Tensor:
        x, y = batch
        return nn.functional.cross_entropy(self.head(self.rnn(x)[0][:, -1]), y)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=0.01)


if __name__ == "__main__":
    pl.seed_everything(0, verbose=False)
    symbols = torch.randint(0, 4, (64, 30))
    data = TensorDataset(nn.functional.one_hot(symbols, 4).float(), symbols[:, 0])
    watching = GradscopeCallback(every=4)
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    trainer = pl.Trainer(max_epochs=2, accelerator="cpu", gradient_clip_val=1.0, callbacks=[watching], **quiet)
    trainer.fit(First(), DataLoader(data, batch_size=16))
    print(watching.run.frame("layers")[["step", "module", "horizon", "decay"]].to_string(index=False))
