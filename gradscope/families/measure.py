"""Everything that is measured of one layer in one direction, in one pass over pieces of time, from the end to the start.

The reverse scan carries, as rows of one GEMM per timestep, the total loss gradient and the gradients of a few anchors
alone; all else is elementwise. Working in pieces keeps the factors of the step Jacobians in the cache, and the peak
memory at about one copy of the gates.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from gradscope.families.base import Family, Layer, Piece, State, Trace
from gradscope.families.reach import Anchors, pick_anchors, reach_by_lag
from gradscope.types import Gate

PIECE_ELEMENTS = 1 << 18
SKETCH_COLUMNS = 8


@dataclass(frozen=True, slots=True)
class Entering:
    """Loss gradient that enters a layer's states from outside: of every h_t, [T, B, P], and of the last c, [B, H]."""

    h: Tensor
    c_last: Tensor | None


@dataclass(frozen=True, slots=True)
class Measured:
    """See `gradscope.types.Analysis`; here in the order of the recurrence, and [T, B] even where padded.

    Attributes:
        values: quantity -> [T, B].
        reach: [lags, B].
        reached: [lags, B].
        gates: gate -> saturation.
        residual: of the rebuilt states, 0-dim.
        grad_input: total dL/dx_t, [T, B, D].
        sketch: sum of the rebuilt contributions to dL/dU times a fixed matrix, [G * H, 8].
        trace: for the quantities of the full set.
    """

    values: dict[str, Tensor]
    reach: Tensor
    reached: Tensor
    gates: dict[str, Gate]
    residual: Tensor
    grad_input: Tensor
    sketch: Tensor
    trace: Trace


def measure(family: Family, layer: Layer, lengths: Tensor, entering: Entering) -> Measured:
    """Measure the core set.

    Args:
        family: the layer's equations.
        layer: what the kernel was given and gave.
        lengths: valid timesteps of each sequence, [B].
        entering: the loss gradient from outside.
    """
    steps = layer.output.shape[0]
    valid = torch.arange(steps, device=lengths.device).unsqueeze(1) < lengths
    last = torch.arange(steps, device=lengths.device).unsqueeze(1) == lengths - 1
    direct = norm(entering.h)
    outside = direct if entering.c_last is None else torch.where(last, direct.hypot(norm(entering.c_last)), direct)
    run = _Pass(family, family.replay(layer), valid, last, entering, pick_anchors(outside))
    run.values["grad_h_direct"] = [direct]
    for start, stop in pieces(layer, len(family.gates)):
        run.piece(start, stop)
    return run.finish()


def norm(x: Tensor) -> Tensor:
    """2-norm over the last dimension in float64: squares of vanishing gradients underflow in float32."""
    return torch.linalg.vector_norm(x, dim=-1, dtype=torch.float64)


def pieces(layer: Layer, gates: int) -> Iterator[tuple[int, int]]:
    """Spans of time, the last first, whose gates fit the cache."""
    steps, batch = layer.output.shape[:2]
    size = max(1, min(steps, PIECE_ELEMENTS // max(1, batch * layer.weights.hh.shape[0])))
    for stop in range(steps, 0, -size):
        yield max(0, stop - size), stop


def sketch_matrix(width: int, like: Tensor) -> Tensor:
    """A fixed matrix of signs, [width, 8]: comparing products with it compares the factors (Freivalds 1977)."""
    generator = torch.Generator().manual_seed(width)
    signs = torch.randint(0, 2, (width, SKETCH_COLUMNS), generator=generator) * 2 - 1
    return signs.to(like.device, like.dtype)


class _Step(NamedTuple):
    """Cotangents at the timesteps of a piece: rows 0 the total, then the anchors'; `gates` of the total alone."""

    state: State
    gates: Tensor


@dataclass(slots=True)
class _Pass:
    """What a pass over time carries from piece to piece."""

    family: Family
    trace: Trace
    valid: Tensor
    last: Tensor
    entering: Entering
    anchors: Anchors
    carry: State = ()
    values: dict[str, list[Tensor]] = field(default_factory=dict[str, list[Tensor]])
    carried: list[Tensor] = field(default_factory=list[Tensor])
    inputs: list[Tensor] = field(default_factory=list[Tensor])
    saturation: dict[str, _Saturation] = field(default_factory=dict[str, "_Saturation"])
    difference: list[Tensor] = field(default_factory=list[Tensor])
    sketch: Tensor | None = None
    constants: tuple[Tensor, ...] = ()
    signs: Tensor | None = None

    def __post_init__(self) -> None:
        weights = self.trace.layer.weights
        self.constants = self.family.constants(weights)
        self.signs = sketch_matrix(weights.hh.shape[1], weights.hh)

    def piece(self, start: int, stop: int) -> None:
        """Measure timesteps `start` to `stop`."""
        piece = self.family.piece(self.trace, start, stop)
        self._pointwise(piece, start, stop)
        step = self._scan(piece, start, stop)
        total: State = tuple(s[:, 0] for s in step.state)
        gates = norm(step.gates.flatten(-2))
        self._put("grad_h", norm(total[0]))
        self._put("weight_grad", gates * norm(piece.previous))
        cell = self.family.cell_cotangent(self.trace.layer.weights, piece, total)
        if cell is not None:
            self._put("grad_c", norm(cell))
        self._carried(step.state)
        self._parameters(piece, total, step.gates)

    def _pointwise(self, piece: Piece, start: int, stop: int) -> None:
        """Sizes of the step Jacobians and states, saturation, and the difference to the kernel's output."""
        hidden, width = piece.hidden.shape[-1], piece.output.shape[-1]
        parts = {"jacobian": width + hidden * self.family.cell, "jacobian_h": width, "jacobian_c": hidden}
        for name, square in self.family.sizes(self.constants, piece).items():
            self._put(name, (square.double().clamp(min=0) / parts[name]).sqrt())
        output = self.trace.layer.output[start:stop]
        self._put("state", norm(output) / width**0.5)
        if self.trace.cells is not None:
            self._put("cell", norm(self.trace.cells[start + 1 : stop + 1]) / hidden**0.5)
        valid = self.valid[start:stop]
        for gate, x in self.family.activations(self.trace, piece, start, stop).items():
            limits = self.family.limits(gate)
            self.saturation.setdefault(gate, _Saturation(*limits)).add(x, valid)
        self.difference.append(relative_parts(piece.output, output, valid))

    def _scan(self, piece: Piece, start: int, stop: int) -> _Step:
        """Carry the cotangents back through the piece."""
        weights, family = self.trace.layer.weights, self.family
        inject = self._injections(start, stop)
        rows = inject[0].shape[1]
        state = self._widen(rows, piece)
        steps: list[State] = []
        gates: list[Tensor] = []
        factors = list(zip(*(f.unbind(0) for f in piece.factors), strict=True))
        parts = list(zip(*(i.unbind(0) for i in inject), strict=True))
        for factor, part in zip(reversed(factors), reversed(parts), strict=True):
            state = (*(s + p for s, p in zip(state, part, strict=False)), *state[len(part) :])
            steps.append(state)
            gate, state = family.pull(weights, factor, state)
            gates.append(gate[0])
        self.carry = state
        stacked = tuple(torch.stack(s[::-1]) for s in zip(*steps, strict=True))
        return _Step(stacked, torch.stack(gates[::-1]))

    def _injections(self, start: int, stop: int) -> State:
        """What enters each row at each timestep of the piece: [t, R, B, P], and [t, R, B, H] if c receives any."""
        entering, anchors = self.entering, self.anchors
        active = anchors.active(start)
        direct = entering.h[start:stop].unsqueeze(1)
        here = torch.arange(start, stop, device=direct.device).view(-1, 1, 1) == anchors.times[:active]
        scale = (1 / anchors.sizes[:active]).to(direct.dtype).unsqueeze(-1)

        def rows(x: Tensor, where: Tensor) -> Tensor:
            if not active:
                return x
            return torch.cat([x, torch.where(where.unsqueeze(-1), x * scale, 0)], 1)

        if entering.c_last is None:
            return (rows(direct, here),)
        last = self.last[start:stop].unsqueeze(1)
        cell = torch.where(last.unsqueeze(-1), entering.c_last, 0)
        return rows(direct, here), rows(cell, here & last)

    def _widen(self, rows: int, piece: Piece) -> State:
        """The carried state with as many rows as are active now; new ones start at zero."""
        if not self.carry:
            batch = piece.output.shape[1]
            widths = (piece.output.shape[-1], piece.hidden.shape[-1])[: 1 + self.family.cell]
            return tuple(piece.output.new_zeros(rows, batch, width) for width in widths)
        missing = rows - self.carry[0].shape[0]
        return tuple(torch.cat([s, s.new_zeros(missing, *s.shape[1:])]) for s in self.carry) if missing else self.carry

    def _carried(self, state: State) -> None:
        sizes = norm(state[0][:, 1:])
        for part in state[1:]:
            sizes = sizes.hypot(norm(part[:, 1:]))
        padding = sizes.new_zeros(sizes.shape[0], self.anchors.times.shape[0] - sizes.shape[1], sizes.shape[2])
        self.carried.append(torch.cat([sizes, padding], 1))

    def _parameters(self, piece: Piece, total: State, gates: Tensor) -> None:
        """dL/dx for the layer below, and the sketch of dL/dU for the certificate."""
        weights = self.trace.layer.weights
        self.inputs.append(self.family.input_cotangents(piece, total, gates).flatten(-2) @ weights.ih)
        assert self.signs is not None
        part = gates.flatten(-2).flatten(0, 1).mT @ (piece.previous.flatten(0, 1) @ self.signs)
        self.sketch = part if self.sketch is None else self.sketch + part

    def _put(self, name: str, value: Tensor) -> None:
        self.values.setdefault(name, []).append(value)

    def finish(self) -> Measured:
        reach, reached = reach_by_lag(self.anchors, torch.cat(self.carried[::-1]))
        assert self.sketch is not None
        return Measured(
            values={name: torch.cat(parts[::-1]) for name, parts in self.values.items()},
            reach=reach,
            reached=reached,
            gates={name: s.finish() for name, s in self.saturation.items()},
            residual=relative(torch.stack(self.difference).sum(0)),
            grad_input=torch.cat(self.inputs[::-1]),
            sketch=self.sketch,
            trace=self.trace,
        )


class _Saturation:
    """Counts of one gate's units beyond its limits, over timesteps and over units."""

    def __init__(self, low: float, high: float) -> None:
        self.limits = low, high
        self.by_time: list[Tensor] = []
        self.by_unit: Tensor | None = None
        self.count: Tensor | None = None

    def add(self, x: Tensor, valid: Tensor) -> None:
        """Count a piece, [t, B, H], where `valid`, [t, B]."""
        low, high = (x < self.limits[0]).to(x.dtype), (x > self.limits[1]).to(x.dtype)
        self.by_time.append(torch.stack([low.mean(-1), high.mean(-1), x.mean(-1)]))
        rows = valid.to(x.dtype).flatten()
        units = torch.stack([rows @ low.flatten(0, 1), rows @ high.flatten(0, 1)])
        self.by_unit = units if self.by_unit is None else self.by_unit + units
        count = rows.sum()
        self.count = count if self.count is None else self.count + count

    def finish(self) -> Gate:
        assert self.by_unit is not None and self.count is not None
        low, high, mean = torch.cat(self.by_time[::-1], 1)
        unit_low, unit_high = self.by_unit / self.count
        return Gate(low, high, mean, unit_low, unit_high)


def relative_parts(rebuilt: Tensor, kernel: Tensor, valid: Tensor) -> Tensor:
    """Squared norms of the difference and of the kernel's values, where both are finite; [2], in float64.

    A value that is finite on one side only counts as an infinite difference.
    """
    difference = (rebuilt - kernel).masked_fill_(~valid.unsqueeze(-1), 0)
    agree = rebuilt.isfinite() == kernel.isfinite()
    difference = torch.where(kernel.isfinite(), difference, 0).masked_fill_(~agree & valid.unsqueeze(-1), torch.inf)
    reference = torch.where(kernel.isfinite() & valid.unsqueeze(-1), kernel, 0)
    squares = [torch.linalg.vector_norm(x, dtype=torch.float64).square() for x in (difference, reference)]
    return torch.stack(squares)


def relative(parts: Tensor) -> Tensor:
    """||difference|| / ||reference||, 0-dim; 0 where both vanish."""
    difference, reference = parts.sqrt()
    return torch.where(difference == 0, difference, difference / reference)
