"""Gradscope in Lightning: a callback.

    from gradscope_integrations.lightning import GradscopeCallback

    watching = GradscopeCallback(logdir="runs/exp1")
    Trainer(callbacks=[watching], gradient_clip_val=1.0).fit(module)
    watching.run.report().save("report.html")

Automatic and manual optimisation, accumulation, clipping and precision stay Lightning's own; gradscope observes them
where they reach torch.
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
    """Attaches to the module when training begins, and closes when it ends, also by an exception.

    Checkpoints hold the number of the next step, so that a resumed training continues the same run folder. With
    `fast_dev_run` it writes nothing, as Lightning's own loggers do: the record stays in memory.

    Args:
        logdir: run folder; None keeps everything in memory.
        **arguments: further arguments of `gradscope.attach`.
    """

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Attach, after the sanity check of the validation loop."""
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
        """The state for a checkpoint: the number of the next step."""
        return {"next_step": self.next_step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Resume from the step of a checkpoint."""
        self.resume(int(state_dict["next_step"]))
