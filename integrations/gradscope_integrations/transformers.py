"""Gradscope in Hugging Face Transformers: a callback for its `Trainer`.

    from gradscope_integrations.transformers import GradscopeCallback

    with GradscopeCallback(logdir="runs/exp1") as watching:
        Trainer(model, args, train_dataset=data, callbacks=[watching]).train()
    watching.run.report().save("report.html")

The Trainer tells no callback of an exception; the `with` closes the scope then as well.
"""

# pyright: reportMissingImports=false, reportUntypedBaseClass=false, reportUnknownParameterType=false
from __future__ import annotations

from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback

from gradscope_integrations.sessions import Sessions

if TYPE_CHECKING:
    from torch import nn
    from transformers import TrainerControl, TrainerState, TrainingArguments

__all__ = ["GradscopeCallback"]


class GradscopeCallback(Sessions, TrainerCallback):
    """Attaches to the model when training begins, and closes when it ends.

    The numbers of steps are those of the Trainer, which a training that is resumed from a checkpoint goes on with.

    Args:
        logdir: run folder; None keeps everything in memory.
        **arguments: what else `gradscope.attach` takes.
    """

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, *, model: nn.Module, **others: Any
    ) -> None:
        """Attach."""
        self.open(model, first_step=state.global_step)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **others: Any
    ) -> None:
        """Close."""
        self.close()
