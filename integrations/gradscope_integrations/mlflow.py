"""Gradscope in MLflow: a sink.

from gradscope_integrations.mlflow import MlflowSink

with mlflow.start_run() as run:
with gradscope.attach(model, sinks=[MlflowSink(run.info.run_id)]):
...  # the training loop
"""

# pyright: reportMissingImports=false
from __future__ import annotations

import time
from collections import deque
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Metric

from gradscope_integrations.tracking import Tracking

__all__ = ["MlflowSink"]


class MlflowSink(Tracking):
    """Logs the scalars of recorded steps, a heatmap of every layer, and the report as an artifact.

    MLflow's own thread sends the scalars, so that training does not wait for a server.

    Args:
        run_id: id of an MLflow run, active or not.
        client: an `MlflowClient` for another tracking server than the current one.
    """

    def __init__(self, run_id: str, *, client: Any = None) -> None:
        super().__init__()
        self._run_id, self._client = run_id, client or MlflowClient()
        self._sent: deque[Any] = deque(maxlen=64)  # earlier ones have long arrived, or failed

    def send(self, step: int, scalars: dict[str, float]) -> None:
        """Log the scalars of a step."""
        now = int(time.time() * 1000)
        metrics = [Metric(name, number, now, step) for name, number in scalars.items()]
        self._sent.append(self._client.log_batch(self._run_id, metrics=metrics, synchronous=False))

    def send_picture(self, layer: str, path: Path) -> None:
        """Log the heatmap of a layer."""
        self._client.log_artifact(self._run_id, str(path), "gradscope/heatmap")

    def send_report(self, path: Path) -> None:
        """Log the report as an artifact."""
        self._client.log_artifact(self._run_id, str(path), "gradscope")

    def close(self) -> None:
        """Send the summary of the run, and wait for pending scalars."""
        super().close()
        while self._sent:
            self._guarded(self._sent.popleft().wait)
