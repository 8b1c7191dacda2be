"""Gradscope in PyTorch-Ignite: a handler for the trainer.

    from gradscope_integrations.ignite import GradscopeHandler

    with GradscopeHandler(model, logdir="runs/exp1") as watching:
        watching.attach(trainer)
        trainer.run(loader, max_epochs=10)
    watching.run.report().save("report.html")

A handler of exceptions would keep Ignite from raising them, so there is none; the `with` statement closes the scope.
"""

# pyright: reportMissingImports=false, reportUnknownParameterType=false
from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ignite.engine import Engine, Events

from gradscope_integrations.sessions import Sessions

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping

    from torch import nn

__all__ = ["GradscopeHandler"]


class GradscopeHandler(Sessions):
    """Attaches to the model when the trainer starts, and closes when the trainer completes or terminates.

    Put it into `to_save` of Ignite's `Checkpoint`, and a resumed training continues the same run folder.

    Args:
        model: see `gradscope.attach`.
        logdir: run folder; None keeps everything in memory.
        **arguments: further arguments of `gradscope.attach`.
    """

    def __init__(self, model: nn.Module, logdir: str | os.PathLike[str] | None = None, **arguments: Any) -> None:
        super().__init__(logdir, **arguments)
        self._model = model

    def attach(self, trainer: Engine) -> None:
        """Register with a trainer."""
        trainer.add_event_handler(Events.STARTED, lambda _: self.open(self._model) and None)
        for over in (Events.COMPLETED, Events.TERMINATE):
            trainer.add_event_handler(over, lambda _: self.close())

    def state_dict(self) -> dict[str, Any]:
        """The state for a checkpoint: the number of the next step."""
        return {"next_step": self.next_step}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Resume from the step of a checkpoint."""
        self.resume(int(state_dict["next_step"]))
