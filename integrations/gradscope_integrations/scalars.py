"""A few scalars of every recorded step, for dashboards that plot numbers over steps."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from gradscope import Rows

QUANTITIES = ("grad_h", "jacobian")
"""Quantities of `timesteps` whose median over time is a scalar."""
RECENT = 100
"""Number of optimizer steps in the clip rate."""


class Scalars:
    """Computes the scalars of recorded steps, from chain 0 of every layer.

    Attributes:
        loss: loss of the last step; NaN if unknown.
    """

    def __init__(self) -> None:
        self.loss = math.nan
        self._clipped: deque[bool] = deque(maxlen=RECENT)

    def count(self, rows: Sequence[Rows]) -> None:
        """Count a step, recorded or not: its loss, and whether clipping limited its gradients."""
        known, clipped = True, False
        for block in rows:
            if block.table == "steps":
                self.loss = block.columns["loss"]
            elif block.table == "clips":
                known &= _measured(block.columns)
                clipped |= bool(block.columns["clipped"])
        if known or clipped:
            self._clipped.append(clipped)

    def scalars(self, rows: Sequence[Rows]) -> Iterator[tuple[str, float]]:
        """Tags and numbers of a recorded step, without the loss."""
        if self._clipped:
            yield "gradscope.clip_rate", sum(self._clipped) / len(self._clipped)
        norms = [float(r.columns["grad_norm"]) for r in rows if r.table == "steps"]
        if norms:
            yield "gradscope.grad_norm", math.hypot(*norms)
        for block in rows:
            if block.table in _OF_LAYERS and block.columns["chain"] == 0:
                yield from _OF_LAYERS[block.table](layer_name(block.columns), block)


def recorded(rows: Sequence[Rows]) -> bool:
    """True for the rows of a recorded step."""
    for block in rows:
        if block.table == "layers":
            return True
    return False


def layer_name(columns: Mapping[str, Any]) -> str:
    """The name of a layer, with the suffix of torch's weights: `encoder.lstm.l0_reverse`."""
    name = f"l{int(columns['layer'])}_reverse" if columns["direction"] == "reverse" else f"l{int(columns['layer'])}"
    return f"{columns['module']}.{name}" if columns["module"] else name


def margin_tags(quantity: str, layer: str) -> list[str]:
    """The tags of a quantity's quantiles."""
    return [f"gradscope.{quantity}/{layer}/{part}" for part in ("p10", "p50", "p90")]


def _measured(clip: Mapping[str, Any]) -> bool:
    """True if the norms of a clipping call are known, finite or not."""
    return clip["norm_before"] == clip["norm_before"] or clip["nonfinite"] > 0


def _of_layer(layer: str, block: Rows) -> Iterator[tuple[str, float]]:
    yield f"gradscope.horizon/{layer}", float(block.columns["horizon"])
    yield f"gradscope.decay/{layer}", float(block.columns["decay"])


def _of_units(layer: str, block: Rows) -> Iterator[tuple[str, float]]:
    saturated = block.columns["low"] + block.columns["high"]
    yield f"gradscope.saturation/{layer}/{block.columns['gate']}", float(np.mean(saturated))


def _of_timesteps(layer: str, block: Rows) -> Iterator[tuple[str, float]]:
    quantity = block.columns["quantity"]
    if quantity not in QUANTITIES:
        return
    for tag, part in zip(margin_tags(quantity, layer), ("p10", "p50", "p90"), strict=True):
        number = _median(np.atleast_1d(block.columns[part]))
        with np.errstate(divide="ignore"):
            yield tag, float(np.log10(number)) if quantity == "grad_h" else number


def _median(values: np.ndarray[Any, Any]) -> float:
    """The median of the values that are not NaN."""
    known = np.sort(values[~np.isnan(values)])
    return float(known[(len(known) - 1) // 2] + known[len(known) // 2]) / 2 if len(known) else math.nan


_OF_LAYERS = {"layers": _of_layer, "units": _of_units, "timesteps": _of_timesteps}
