"""Gradscope with Hugging Face Accelerate, in your own loop.

    from gradscope_integrations.accelerate import Gradscope

    watching = Gradscope(accelerator, logdir="runs/exp1")
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    accelerator.load_state(...)  # to resume a training
    with watching.attach(model):
        ...  # the unchanged loop: accelerator.accumulate, .backward, .clip_grad_norm_, .save_state
    watching.run.report().save("report.html")

Clipping, accumulation and precision stay Accelerate's own; gradscope observes them where they reach torch.
"""

# pyright: reportMissingImports=false, reportUnknownParameterType=false
from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gradscope_integrations.sessions import Sessions

if TYPE_CHECKING:
    import os

    from accelerate import Accelerator
    from torch import nn

    import gradscope

__all__ = ["Gradscope"]

FILE = "gradscope.json"
"""Our file in a checkpoint of `save_state`."""


class Gradscope(Sessions):
    """A scope for a model that an `Accelerator` has prepared.

    `save_state` also saves the number of the next step, and `load_state`, before `attach`, restores it; checkpoints
    without this number load as usual.

    Args:
        accelerator: the accelerator of the training.
        logdir: run folder; None keeps everything in memory.
        **arguments: further arguments of `gradscope.attach`.
    """

    def __init__(
        self, accelerator: Accelerator, logdir: str | os.PathLike[str] | None = None, **arguments: Any
    ) -> None:
        super().__init__(logdir, **arguments)
        self._accelerator = accelerator
        accelerator.register_save_state_pre_hook(self._save)
        accelerator.register_load_state_pre_hook(self._load)

    def attach(self, model: nn.Module) -> gradscope.Scope:
        """Attach to a model, prepared or not; layers keep their names without the wrappers of `prepare`."""
        return self.open(self._accelerator.unwrap_model(model))

    def _save(self, models: Any, weights: Any, output_dir: str) -> None:
        if self._accelerator.is_main_process:
            (Path(output_dir) / FILE).write_text(json.dumps({"next_step": self.next_step}), encoding="utf-8")

    def _load(self, models: Any, input_dir: str) -> None:
        path = Path(input_dir) / FILE
        if path.exists():
            self.resume(int(json.loads(path.read_text(encoding="utf-8"))["next_step"]))
