"""Results: analyses, and rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gradscope.types.calls import Direction

if TYPE_CHECKING:
    from torch import Tensor

HORIZON_SHARE = 1e-3
"""The share of the loss gradient that is left at the horizon."""
LATE = 4
"""Recorded steps at the end of a training under one median, as a single batch shows little."""


@dataclass(frozen=True, slots=True)
class Gate:
    """Saturation of one gate of H units.

    Attributes:
        low: fraction of units below the lower limit, [T, B].
        high: fraction of units above the upper limit, [T, B].
        mean: mean activation over the units, [T, B].
        unit_low: fraction of the valid (t, sequence) with the unit below, [H].
        unit_high: the same above, [H].
    """

    low: Tensor
    high: Tensor
    mean: Tensor
    unit_low: Tensor
    unit_high: Tensor


@dataclass(frozen=True, slots=True)
class Block:
    """One gate's block of `weight_hh`: 0-dim tensors, and the complex eigenvalues on request.

    `update` is the norm of the change by the step's optimizer over the norm of the block; None if unknown.
    """

    spectral_radius: Tensor
    spectral_norm: Tensor
    orthogonality: Tensor
    eigenvalues: Tensor | None = None
    update: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Analysis:
    """Measurements of one layer in one direction and one call, on the device, in the order of the input.

    Attributes:
        layer: index in the stack.
        direction: direction of the recurrence.
        lengths: valid timesteps of each sequence, [B].
        values: quantity -> [T, B]; NaN if not measured; inf and NaN of the training stay.
        measured: quantity -> [T, B] booleans, for quantities measured at some (t, b) only.
        errors: quantity -> [T, B] standard errors, for quantities estimated with probes.
        reach: [lags, B], the median over anchors.
        reached: [lags, B] booleans: some anchor reaches back that far.
        gates: gate -> saturation.
        blocks: gate -> block of `weight_hh`.
        lyapunov: [B], NaN for a single timestep; None unless requested.
        residual: relative difference between the rebuilt states and the kernel's, 0-dim.
        tolerance: largest relative difference that the kernel's arithmetic explains.
        sketch: the rebuilt dL/dU times a fixed matrix, [G * H, 8]; None unless requested.
        gradient_residual: relative difference between the rebuilt and the accumulated dL/dU, 0-dim; None if they
            cannot be compared.
        reason: why the values are missing; empty if they are not.
        starts: timestep at which each sequence begins, [B]; None if all begin at 0. All values count from there.
        witnessed: names of observed `values`, not rebuilt; they stay valid if the others are not.
    """

    layer: int
    direction: Direction
    lengths: Tensor
    values: Mapping[str, Tensor]
    measured: Mapping[str, Tensor]
    errors: Mapping[str, Tensor]
    reach: Tensor
    reached: Tensor
    gates: Mapping[str, Gate]
    blocks: Mapping[str, Block]
    lyapunov: Tensor | None
    residual: Tensor
    tolerance: float
    sketch: Tensor | None = None
    gradient_residual: Tensor | None = None
    reason: str = ""
    starts: Tensor | None = None
    witnessed: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Rows:
    """A block of rows of one table, by column.

    A scalar holds for every row of the block; text is always a scalar. Arrays are one-dimensional
    and of equal length; a block of scalars alone is one row.
    """

    table: str
    columns: Mapping[str, Any]

    def __len__(self) -> int:
        return next((len(c) for c in self.columns.values() if hasattr(c, "__len__") and not isinstance(c, str)), 1)


@dataclass(frozen=True, slots=True)
class Batch:
    """All rows of one optimizer step, the input of a sink."""

    step: int
    rows: tuple[Rows, ...]
