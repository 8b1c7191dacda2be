"""Gradscope with Hugging Face Accelerate, in a loop of one's own.

    from gradscope_integrations.accelerate import Gradscope

    watching = Gradscope(accelerator, logdir="runs/exp1")
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    accelerator.load_state(...)  # where a training goes on
    with watching.attach(model):
        ...  # the loop as it is: accelerator.accumulate, .backward, .clip_grad_norm_, .save_state
    watching.run.report().save("report.html")

Clipping, accumulation and precision are Accelerate's own; all of them are seen where they reach torch.
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
"""What a checkpoint of `save_state` holds of ours."""


class Gradscope(Sessions):
    """A scope for what an `Accelerator` has prepared.

    `save_state` also saves the number of the next step, and `load_state`, before `attach`, restores it; folders that
    were saved without one are loaded as ever.

    Args:
        accelerator: the training's.
        logdir: run folder; None keeps everything in memory.
        **arguments: what else `gradscope.attach` takes.
    """

    def __init__(
        self, accelerator: Accelerator, logdir: str | os.PathLike[str] | None = None, **arguments: Any
    ) -> None:
        super().__init__(logdir, **arguments)
        self._accelerator = accelerator
        accelerator.register_save_state_pre_hook(self._save)
        accelerator.register_load_state_pre_hook(self._load)

    def attach(self, model: nn.Module) -> gradscope.Scope:
        """Attach to a model, prepared or not; layers have the names they have without what `prepare` wraps around."""
        return self.open(self._accelerator.unwrap_model(model))

    def _save(self, models: Any, weights: Any, output_dir: str) -> None:
        if self._accelerator.is_main_process:
            (Path(output_dir) / FILE).write_text(json.dumps({"next_step": self.next_step}), encoding="utf-8")

    def _load(self, models: Any, input_dir: str) -> None:
        path = Path(input_dir) / FILE
        if path.exists():
            self.resume(int(json.loads(path.read_text(encoding="utf-8"))["next_step"]))
