"""Gradscope in Lightning: a callback.

    from gradscope_integrations.lightning import GradscopeCallback

    watching = GradscopeCallback(logdir="runs/exp1")
    Trainer(callbacks=[watching], gradient_clip_val=1.0).fit(module)
    watching.run.report().save("report.html")

Automatic and manual optimization, accumulation, clipping and precision are Lightning's own; all of them are seen where
they reach torch.
"""

# pyright: reportMissingImports=false, reportUntypedBaseClass=false, reportUnknownParameterType=false
# pyright: reportAttributeAccessIssue=false
from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from gradscope_integrations.sessions import Sessions

if TYPE_CHECKING or "lightning.pytorch" in sys.modules or "pytorch_lightning" not in sys.modules:
    from lightning.pytorch import Callback
else:  # the same library by its other name
    from pytorch_lightning import Callback

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer

__all__ = ["GradscopeCallback"]


class GradscopeCallback(Sessions, Callback):
    """Attaches to the module when training begins, and closes when it ends, however it ends.

    Checkpoints hold the number of the next step, so that a resumed training goes on in the same run folder. With
    `fast_dev_run`, as with Lightning's own loggers, nothing is written: the record stays in memory.

    Args:
        logdir: run folder; None keeps everything in memory.
        **arguments: what else `gradscope.attach` takes.
    """

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Attach; the sanity check of the validation loop is over."""
        if trainer.fast_dev_run:
            self.open(pl_module, logdir=None)
        else:
            self.open(pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Close."""
        self.close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Close."""
        self.close()

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint holds: the number of the next step."""
        return {"next_step": self.next_step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with that number."""
        self.resume(int(state_dict["next_step"]))
