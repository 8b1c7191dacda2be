"""Gradscope in Weights & Biases: a sink.

from gradscope_integrations.wandb import WandbSink

with wandb.init(project="rnn") as run:
with gradscope.attach(model, sinks=[WandbSink(run)]):
...  # the training loop
"""

# pyright: reportMissingImports=false
from __future__ import annotations

from pathlib import Path
from typing import Any

from gradscope_integrations.tracking import Tracking

__all__ = ["WandbSink"]

STEP = "gradscope.step"
"""The axis of our charts: optimizer steps, whatever the run's own step counts."""


class WandbSink(Tracking):
    """Logs the scalars of recorded steps, a heatmap of every layer, and the report as an artifact.

    Args:
        run: the run of `wandb.init`; finish it after closing the scope.
        commit: the argument of `run.log`. False adds our scalars to the next log of your loop, so that its own steps
            stay as they are; of several recorded steps in between, W&B then shows only the last. True gives each
            recorded step a row of its own, for loops that do not pass `step=`.
    """

    def __init__(self, run: Any, *, commit: bool = False) -> None:
        super().__init__()
        self._wandb, self._commit = run, commit
        run.define_metric(STEP, hidden=True)
        run.define_metric("gradscope.*", step_metric=STEP)

    def send(self, step: int, scalars: dict[str, float]) -> None:
        """Log the scalars of a step."""
        self._wandb.log({STEP: step, **scalars}, commit=self._commit)

    def send_picture(self, layer: str, path: Path) -> None:
        """Log the heatmap of a layer."""
        import wandb

        self._wandb.log({f"gradscope.heatmap/{layer}": wandb.Image(str(path))}, commit=False)

    def send_report(self, path: Path) -> None:
        """Log the report as an artifact."""
        import wandb

        artifact = wandb.Artifact(f"gradscope-{self._wandb.id}", type="gradscope-report")
        artifact.add_file(str(path))
        self._wandb.log_artifact(artifact)
