"""What comes out: analyses, and rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gradscope.types.calls import Direction

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class Gate:
    """Saturation of one gate of H units.

    Attributes:
        low: fraction of units below the lower limit, [T, B].
        high: fraction of units above the upper limit, [T, B].
        mean: mean activation over the units, [T, B].
        unit_low: fraction of the valid (t, sequence) at which a unit is below, [H].
        unit_high: the same above, [H].
    """

    low: Tensor
    high: Tensor
    mean: Tensor
    unit_low: Tensor
    unit_high: Tensor


@dataclass(frozen=True, slots=True)
class Block:
    """One gate's block of `weight_hh`: 0-dim tensors, and the complex eigenvalues where asked for.

    `update` is the norm of the change by the step's optimizer over the norm of the block; None where that is not known.
    """

    spectral_radius: Tensor
    spectral_norm: Tensor
    orthogonality: Tensor
    eigenvalues: Tensor | None = None
    update: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Analysis:
    """What one layer in one direction did in one call, on the device, in the order of the input.

    Attributes:
        layer: index in the stack.
        direction: of the recurrence.
        lengths: valid timesteps of each sequence, [B].
        values: quantity -> [T, B]; NaN where it was not measured, inf and NaN also where the training had them.
        measured: quantity -> [T, B] booleans, for those that are measured at some (t, b) only.
        errors: quantity -> [T, B] standard errors, for those that rest on probes.
        reach: [lags, B], the median over anchors.
        reached: [lags, B] booleans: some anchor reaches back that far.
        gates: gate -> saturation.
        blocks: gate -> block of `weight_hh`.
        lyapunov: [B], NaN where there is but one timestep; None if not asked for.
        residual: relative difference between the rebuilt states and the kernel's, 0-dim.
        tolerance: largest relative difference that the kernel's arithmetic explains.
        sketch: the rebuilt dL/dU times a fixed matrix, [G * H, 8]; None unless it was asked for.
        gradient_residual: relative difference between the rebuilt dL/dU and the one that was accumulated, 0-dim;
            None where they cannot be compared.
        reason: why the values cannot be given; empty if they can.
        starts: timestep at which each sequence begins, [B]; None where all begin at 0. Everything above is from there.
        witnessed: those of `values` that were not rebuilt but seen, and hold whatever else cannot be given.
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
    """All rows of one optimizer step: what a sink is given."""

    step: int
    rows: tuple[Rows, ...]
