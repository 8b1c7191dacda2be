"""Gradscope in Hugging Face Transformers: a callback for its `Trainer`.

    from gradscope_integrations.transformers import GradscopeCallback

    with GradscopeCallback(logdir="runs/exp1") as watching:
        Trainer(model, args, train_dataset=data, callbacks=[watching]).train()
    watching.run.report().save("report.html")

The Trainer reports exceptions to no callback; the `with` statement closes the scope after one.
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

    Steps have the Trainer's numbers, which a training that resumes from a checkpoint continues.

    Args:
        logdir: run folder; None keeps everything in memory.
        **arguments: further arguments of `gradscope.attach`.
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
