"""A modest set of scalars for those who stay on TensorBoard's own dashboards, and a layout for them."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from gradscope_tensorboard import summaries
from gradscope_tensorboard.curves import key_of
from gradscope_tensorboard.names import Key

if TYPE_CHECKING:
    from gradscope import Rows

MARGINS = {
    "grad_h": "log10 of the gradient of h, median over time",
    "jacobian": "size of the Jacobian, median over time",
}
RECENT = 100
"""Optimizer steps over which the clip rate is."""


class Stock:
    """Makes the scalars of recorded steps; chain 0 of every layer."""

    def __init__(self) -> None:
        self._clipped: deque[bool] = deque(maxlen=RECENT)

    def saw(self, rows: Sequence[Rows]) -> None:
        """Take note of whether a step's gradients were clipped."""
        self._clipped.append(any(bool(np.any(r.columns["clipped"])) for r in rows if r.table == "clips"))

    def scalars(self, rows: Sequence[Rows]) -> Iterator[tuple[str, float]]:
        """Tags and numbers of a recorded step."""
        yield "gradscope.clip_rate", sum(self._clipped) / len(self._clipped)
        norms = [float(r.columns["grad_norm"]) for r in rows if r.table == "steps"]
        if norms:
            yield "gradscope.grad_norm", math.hypot(*norms)
        for block in rows:
            if block.table in _OF_LAYERS and block.columns["chain"] == 0:
                yield from _OF_LAYERS[block.table](layer_name(key_of(block.columns)), block)


def layer_name(key: Key) -> str:
    """Of a layer, as torch ends the names of its weights: `encoder.lstm.l0_reverse`."""
    name = f"l{key.layer}_reverse" if key.direction == "reverse" else f"l{key.layer}"
    return f"{key.module}.{name}" if key.module else name


def layout(layers: Sequence[str]) -> summaries.Value:
    """One category of margin charts per quantity, and one of lines."""
    margins = [
        (f"gradscope: {title}", [summaries.margin_chart(layer, *_margin_tags(quantity, layer)) for layer in layers])
        for quantity, title in MARGINS.items()
    ]
    lines = [
        summaries.line_chart("horizon in steps", r"gradscope\.horizon/.*"),
        summaries.line_chart("decay in decades per step", r"gradscope\.decay/.*"),
        summaries.line_chart("saturated share of every gate", r"gradscope\.saturation/.*"),
        summaries.line_chart("share of recent steps clipped", r"gradscope\.clip_rate"),
        summaries.line_chart("gradient norm", r"gradscope\.grad_norm"),
    ]
    return summaries.layout_value([*margins, ("gradscope: over training", lines)])


def _margin_tags(quantity: str, layer: str) -> list[str]:
    return [f"gradscope.{quantity}/{layer}/{part}" for part in ("p10", "p50", "p90")]


def _of_layer(layer: str, block: Rows) -> Iterator[tuple[str, float]]:
    yield f"gradscope.horizon/{layer}", block.columns["horizon"]
    yield f"gradscope.decay/{layer}", block.columns["decay"]


def _of_units(layer: str, block: Rows) -> Iterator[tuple[str, float]]:
    saturated = block.columns["low"] + block.columns["high"]
    yield f"gradscope.saturation/{layer}/{block.columns['gate']}", float(np.mean(saturated))


def _of_timesteps(layer: str, block: Rows) -> Iterator[tuple[str, float]]:
    quantity = block.columns["quantity"]
    if quantity not in MARGINS:
        return
    for tag, part in zip(_margin_tags(quantity, layer), ("p10", "p50", "p90"), strict=True):
        number = _median(np.atleast_1d(block.columns[part]))
        with np.errstate(divide="ignore"):
            yield tag, float(np.log10(number)) if quantity == "grad_h" else number


def _median(values: np.ndarray[Any, Any]) -> float:
    """Of what is not NaN."""
    known = np.sort(values[~np.isnan(values)])
    return float(known[(len(known) - 1) // 2] + known[len(known) // 2]) / 2 if len(known) else math.nan


_OF_LAYERS = {"layers": _of_layer, "units": _of_units, "timesteps": _of_timesteps}
