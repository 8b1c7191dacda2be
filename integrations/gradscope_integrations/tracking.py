"""The common base of sinks for experiment trackers: scalars during training, pictures and a report at the end."""

from __future__ import annotations

import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ParamSpec

from gradscope import Batch, GradscopeWarning, LayerKey, Run, plot
from gradscope_integrations.scalars import Scalars, layer_name, recorded

P = ParamSpec("P")


class Tracking(ABC):
    """A sink for `attach(sinks=[...])` that sends data to a dashboard.

    It sends the scalars of recorded steps; at `close` a heatmap of every layer and the report, if `attach` has called
    `begin`. It leaves non-finite values out of the scalars; the report has them. It warns about the first failure, and
    training goes on.
    """

    close_s = 120.0
    """Limit, in seconds, for making and sending the report at the end of a training."""

    def __init__(self) -> None:
        self._scalars, self._run, self._failed = Scalars(), None, False

    @abstractmethod
    def send(self, step: int, scalars: dict[str, float]) -> None:
        """Send the scalars of a step."""

    @abstractmethod
    def send_picture(self, layer: str, path: Path) -> None:
        """Send the heatmap of a layer, a PNG file."""

    @abstractmethod
    def send_report(self, path: Path) -> None:
        """Send the report, an HTML file."""

    def begin(self, run: Run) -> None:
        """Receive the growing run; called by `attach`."""
        self._run: Run | None = run

    def write(self, batch: Batch) -> None:
        """Receive the rows of one optimizer step."""
        self._scalars.count(batch.rows)
        if recorded(batch.rows):
            scalars = {"gradscope.loss": self._scalars.loss, **dict(self._scalars.scalars(batch.rows))}
            finite = {tag: number for tag, number in scalars.items() if math.isfinite(number)}
            self._guarded(self.send, batch.step, finite)

    def close(self) -> None:
        """Send the summary of the run."""
        run, self._run = self._run, None
        if run is not None and run.layers:
            self._guarded(self._sum_up, run)

    def _sum_up(self, run: Run) -> None:
        with TemporaryDirectory() as folder:
            for key in run.layers:
                if key.chain == 0:
                    name = layer_name(key._asdict())
                    self.send_picture(name, draw_heatmap(run, key, Path(folder) / f"{name}.png"))
            self.send_report(run.report().save(Path(folder) / "gradscope.html"))

    def _guarded(self, action: Callable[P, None], *args: P.args, **kwargs: P.kwargs) -> None:
        try:
            action(*args, **kwargs)
        except Exception as error:  # no failure may reach the training
            if not self._failed:
                self._failed = True
                message = f"{type(self).__name__}: {type(error).__name__}: {error}; training and other records go on"
                warnings.warn(message, GradscopeWarning, stacklevel=3)


def draw_heatmap(run: Run, key: LayerKey, path: Path) -> Path:
    """Draw the gradient of one layer over timesteps and training."""
    from matplotlib.figure import Figure

    figure: Any = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    plot.heatmap(run, layer=key, ax=axes)
    axes.set_title(f"{layer_name(key._asdict())}: gradient of h over training", loc="left")
    figure.savefig(path, dpi=120)
    return path
