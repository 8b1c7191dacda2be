"""What the sinks of experiment trackers share: scalars while training goes on, pictures and a report at the end."""

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
    """A sink for `attach(sinks=[...])` that hands on what a dashboard can show.

    Of recorded steps it sends scalars; at `close` a heatmap of every layer and the report, where the scope has said
    what its run is (`begin`). What is not finite is left out of the scalars, and is in the report. A failure is warned
    about once, and training goes on.
    """

    close_s = 120.0
    """How long the end of a training waits for the report to be made and sent."""

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
        """Called by `attach`: what is going to be recorded, as it grows."""
        self._run: Run | None = run

    def write(self, batch: Batch) -> None:
        """Take the rows of one optimizer step."""
        self._scalars.saw(batch.rows)
        if recorded(batch.rows):
            found = {"gradscope.loss": self._scalars.loss, **dict(self._scalars.scalars(batch.rows))}
            finite = {tag: number for tag, number in found.items() if math.isfinite(number)}
            self._guarded(self.send, batch.step, finite)

    def close(self) -> None:
        """Send what sums the run up."""
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
        except Exception as error:  # whatever it is, training must not hear of it
            if not self._failed:
                self._failed = True
                said = f"{type(self).__name__}: {type(error).__name__}: {error}; training and other records go on"
                warnings.warn(said, GradscopeWarning, stacklevel=3)


def draw_heatmap(run: Run, key: LayerKey, path: Path) -> Path:
    """A picture of the gradient of one layer over timesteps and training."""
    from matplotlib.figure import Figure

    figure: Any = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    plot.heatmap(run, layer=key, ax=axes)
    axes.set_title(f"{layer_name(key._asdict())}: gradient of h over training", loc="left")
    figure.savefig(path, dpi=120)
    return path
