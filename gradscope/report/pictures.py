"""The pictures of a report: their drawing, their numbers and their text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import gradscope.plot as plot
from gradscope.plot import data
from gradscope.record import RunData
from gradscope.report import words
from gradscope.types import LATE, LayerKey

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Frame = Any


@dataclass(frozen=True, slots=True)
class Picture:
    """One picture of a layer, or of a whole run (with any key); of several runs, with a curve for each.

    Attributes:
        name: name in files.
        title: title above the picture.
        table: returns the numbers; a report leaves the picture out if there are none.
        words: describes the numbers.
        draw: draws the picture, or with options one of its curves.
        drawn: reduces the numbers to the drawn part, if they are too many for the eye.
        records: least number of recorded steps.
    """

    name: str
    title: str
    table: Callable[[RunData, LayerKey], Frame]
    words: Callable[[Frame], str]
    draw: Callable[..., object]
    drawn: Callable[[Frame], Frame] = lambda frame: frame
    records: int = 0


def _then_and_now(
    draw: Callable[..., object], table: Callable[..., Frame]
) -> Callable[[RunData, LayerKey, Axes], object]:
    """Draw a curve at the first recorded step, dashed, and at the last ones."""

    def both(run: RunData, key: LayerKey, ax: Axes) -> None:
        steps = data.recorded(run, key)
        if len(steps) > LATE and (table(run, key, steps[0])["p50"] > 0).any():
            draw(run, layer=key, step=steps[0], ax=ax, label=f"step {steps[0]}", color="C7", linestyle="--")
            draw(run, layer=key, ax=ax, label=f"steps {steps[-LATE]} to {steps[-1]}")
        else:
            draw(run, layer=key, ax=ax, label=_label(steps))

    return both


def _label(steps: Sequence[int]) -> str:
    """Name the few steps behind one curve."""
    return f"step {steps[0]}" if len(steps) == 1 else f"median of steps {', '.join(map(str, steps[-LATE:]))}"


def _gradient(run: RunData, key: LayerKey, step: Any = None) -> Frame:
    return data.spread(run, key, "grad_h", step)


def _jacobians(run: RunData, key: LayerKey) -> Frame:
    import pandas as pd

    names = ("jacobian", "jacobian_h", "jacobian_c", "jacobian_max")
    parts = [data.spread(run, key, name).assign(quantity=name) for name in names]
    return pd.concat([part for part in parts if len(part)] or parts[:1], ignore_index=True)


def _jacobian_words(frame: Frame) -> str:
    return words.ends(frame[frame["quantity"] == "jacobian"], "t", "size of the state Jacobian")


LAYER = (
    Picture(
        "timesteps",
        "Gradient by timestep",
        _gradient,
        lambda frame: words.ends(frame, "t", "gradient"),
        _then_and_now(plot.timesteps, _gradient),
    ),
    Picture(
        "heatmap",
        "Gradient over training",
        lambda run, key: data.over_training(run, key, "grad_h"),
        words.training,
        lambda run, key, ax: plot.heatmap(run, layer=key, ax=ax),
        records=2,
    ),
    Picture(
        "reach",
        "Reach of the loss gradient",
        data.reached,
        lambda frame: words.ends(frame, "lag", "share of the loss gradient left"),
        _then_and_now(plot.reach, data.reached),
    ),
    Picture(
        "horizon",
        "Horizon over training",
        data.horizons,
        words.horizon,
        lambda run, key, ax, **line: plot.horizon(run, layer=key, ax=ax, **line),
        records=2,
    ),
    Picture(
        "jacobians",
        "Jacobians by timestep",
        _jacobians,
        _jacobian_words,
        lambda run, key, ax: plot.jacobians(run, layer=key, ax=ax),
    ),
    Picture(
        "gain",
        "Gain to the last timestep",
        lambda run, key: data.spread(run, key, "gain"),
        lambda frame: words.ends(frame, "t", "gain"),
        lambda run, key, ax: plot.timesteps(run, "gain", layer=key, ax=ax),
    ),
    Picture(
        "gates",
        "Saturation by timestep",
        lambda run, key: data.saturated(run, key, "t"),
        lambda frame: words.gates(frame, "t"),
        lambda run, key, ax: plot.gates(run, layer=key, ax=ax),
    ),
    Picture(
        "gates-training",
        "Saturation over training",
        lambda run, key: data.saturated(run, key, "step"),
        lambda frame: words.gates(frame, "step"),
        lambda run, key, ax: plot.gates(run, "step", layer=key, ax=ax),
        records=2,
    ),
    Picture(
        "units",
        "Units at their limits",
        data.units,
        words.units,
        lambda run, key, ax: plot.saturation(run, layer=key, ax=ax),
    ),
    Picture(
        "updates",
        "Updates of the recurrent weights",
        data.updates,
        words.updates,
        lambda run, key, ax: plot.updates(run, layer=key, ax=ax),
    ),
    Picture(
        "spectra",
        "Eigenvalues of the recurrent weights",
        data.eigenvalues,
        words.spectra,
        lambda run, key, ax: plot.spectra(run, layer=key, ax=ax),
    ),
)

CLIPPING = (
    Picture(
        "clipping",
        "Gradient norm before and after clipping",
        lambda run, _: data.norms(run),
        words.norms,
        lambda run, _, ax: plot.clipping(run, ax=ax),
        data.binned_norms,
    ),
    Picture(
        "thresholds",
        "What other thresholds would have clipped",
        lambda run, _: data.would_clip(run),
        words.thresholds,
        lambda run, _, ax, **line: plot.thresholds(run, ax=ax, **line),
    ),
)
