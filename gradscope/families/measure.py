"""Everything that is measured of one layer in one direction, in one pass over pieces of time, the last first.

The reverse scan carries, as rows of one GEMM per timestep, the total loss gradient and the gradients of a few anchors
alone; all else is elementwise. Working in pieces keeps the factors of the step Jacobians in the cache, and the peak
memory at about one copy of the gates; a GPU, which has no use for a cache of that size and would wait for every kernel
to be asked for, gets larger ones. Within a piece the scan goes span by span, between which gradients are brought back
into range.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from gradscope.families.base import Family, Layer, Piece, State, Trace
from gradscope.families.reach import Anchors, pick_anchors, reach_by_lag
from gradscope.families.saturation import Saturation
from gradscope.types import Gate

PIECE_ELEMENTS, ON_A_DEVICE = 1 << 19, 1 << 24
SPAN_STEPS = 64
SKETCH_COLUMNS = 8
LEAST_EXPONENT, MOST_EXPONENT = 20, 100


@dataclass(frozen=True, slots=True)
class Entering:
    """Loss gradient that enters a layer's states from outside.

    Attributes:
        h: of every h_t, [T, B, P].
        c_last: of the last c_t of each sequence, [B, H]; None where none enters.
        c: of every c_t, [T, B, H], in place of `c_last`; None where none enters.
        totals: what autograd had of the total gradients of h_t and c_t, [T, B, .] each, where it is known.
    """

    h: Tensor
    c_last: Tensor | None = None
    c: Tensor | None = None
    totals: State | None = None


@dataclass(frozen=True, slots=True)
class Measured:
    """See `gradscope.types.Analysis`; here in the order of the recurrence, and [T, B] even where padded.

    Attributes:
        values: quantity -> [T, B].
        reach: [lags, B].
        reached: [lags, B].
        gates: gate -> saturation.
        residual: of the rebuilt states, 0-dim.
        grad_input: total dL/dx_t, [T, B, D]; None unless asked for.
        sketch: sum of the rebuilt contributions to dL/dU times a fixed matrix, [G * H, 8]; None unless asked for.
        total_residual: of the rebuilt total gradients to autograd's, 0-dim; None where these are not known.
        trace: for the quantities of the full set.
    """

    values: dict[str, Tensor]
    reach: Tensor
    reached: Tensor
    gates: dict[str, Gate]
    residual: Tensor
    grad_input: Tensor | None
    sketch: Tensor | None
    total_residual: Tensor | None
    trace: Trace


def measure(
    family: Family, layer: Layer, lengths: Tensor, entering: Entering, *, below: bool = True, sketch: bool = True
) -> Measured:
    """Measure the core set.

    Args:
        family: the layer's equations.
        layer: what the kernel was given and gave.
        lengths: valid timesteps of each sequence, [B].
        entering: the loss gradient from outside.
        below: give `grad_input`, for the layer below.
        sketch: give `sketch`, for the certificate.
    """
    steps = torch.arange(layer.output.shape[0], device=lengths.device).unsqueeze(1)
    direct = outside = norm(entering.h)
    if entering.c_last is not None:
        outside = torch.where(steps == lengths - 1, direct.hypot(norm(entering.c_last)), direct)
    elif entering.c is not None:
        outside = direct.hypot(norm(entering.c))
    run = _Pass(family, family.replay(layer), steps < lengths, lengths, entering, pick_anchors(outside), below, sketch)
    run.values["grad_h_direct"] = [direct]
    for start, stop in pieces(layer, len(family.gates)):
        run.piece(start, stop)
    return run.finish()


def norm(x: Tensor) -> Tensor:
    """2-norm over the last dimension, in float64; rows whose squares would leave the range of float32 are scaled."""
    if x.device.type != "cpu":
        return torch.linalg.vector_norm(x, dim=-1, dtype=torch.float64)  # one kernel, and nobody has to look at it
    size = torch.linalg.vector_norm(x, dim=-1).double()
    doubtful = ~((size > 1e-15) & (size < 1e15))
    if x.dtype == torch.float64 or not doubtful.any():
        return size
    rows = x[doubtful]  # most of them are 0: nothing enters there
    peak = rows.abs().amax(-1, keepdim=True).clamp(min=torch.finfo(x.dtype).tiny)
    size[doubtful] = torch.linalg.vector_norm(rows / peak, dim=-1).double() * peak.squeeze(-1)
    return size


def drop_nearly_subnormal(x: Tensor) -> Tensor:
    """0 in place of what is below 1e-34 in float32 on a processor: a step or two later it would be subnormal."""
    return x if x.device.type != "cpu" else torch.nn.functional.hardshrink(x, torch.finfo(x.dtype).tiny * 2**13)


def pieces(layer: Layer, gates: int) -> Iterator[tuple[int, int]]:
    """Pieces of time, the last first: on a processor their gates fit the cache."""
    steps, batch = layer.output.shape[:2]
    on_cpu = layer.output.device.type == "cpu"
    elements, most = (PIECE_ELEMENTS, SPAN_STEPS) if on_cpu else (ON_A_DEVICE, steps)
    yield from backwards(steps, min(most, elements // max(1, batch * layer.weights.hh.shape[0])))


def backwards(steps: int, size: int) -> Iterator[tuple[int, int]]:
    """Parts of so many steps, the last first; the first gets what is left."""
    size = max(1, size)
    for stop in range(steps, 0, -size):
        yield max(0, stop - size), stop


def sketch_matrix(width: int, like: Tensor) -> Tensor:
    """A fixed matrix of signs, [width, 8]: comparing products with it compares the factors (Freivalds 1977)."""
    generator = torch.Generator("cpu").manual_seed(width)
    signs = torch.randint(0, 2, (width, SKETCH_COLUMNS), generator=generator, device="cpu") * 2 - 1
    return signs.to(like.device, like.dtype)


class _Back(NamedTuple):
    """Cotangents at the timesteps of a piece, [t, R, B, .]: row 0 the total, then the anchors' alone.

    Attributes:
        state: of h_t, and of c_t.
        scale: what they are to be multiplied by, [t, R, B].
    """

    state: State
    scale: Tensor


@dataclass(slots=True)
class _Pass:
    """What a pass over time carries from piece to piece."""

    family: Family
    trace: Trace
    valid: Tensor
    lengths: Tensor
    entering: Entering
    anchors: Anchors
    below: bool
    sketch: bool
    carry: State = ()
    exponents: Tensor = field(init=False)
    values: dict[str, list[Tensor]] = field(default_factory=dict[str, list[Tensor]])
    carried: list[Tensor] = field(default_factory=list[Tensor])
    inputs: list[Tensor] = field(default_factory=list[Tensor])
    saturation: dict[tuple[str, ...], Saturation] = field(default_factory=dict[tuple[str, ...], Saturation])
    difference: list[Tensor] = field(default_factory=list[Tensor])
    sketches: list[Tensor] = field(default_factory=list[Tensor])
    totals: list[Tensor] = field(default_factory=list[Tensor])
    constants: tuple[Tensor, ...] = ()
    padded: bool = False
    total_alone: bool = False

    def __post_init__(self) -> None:
        self.constants = self.family.constants(self.trace.layer.weights)
        self.padded = not bool(self.valid.all())
        self.total_alone = self.anchors.single()
        rows = 1 + len(self.anchors.times)
        self.exponents = torch.zeros(rows, len(self.lengths), dtype=torch.float64, device=self.lengths.device)

    def piece(self, start: int, stop: int) -> None:
        """Measure timesteps `start` to `stop`."""
        piece = self.family.piece(self.trace, start, stop)
        self._pointwise(piece, start, stop)
        back = self._scan(piece, start, stop)
        total: State = tuple(s[:, 0] for s in back.state)
        weights, scale = self.trace.layer.weights, back.scale[:, 0]
        inside = self.family.cotangents(weights, piece.factors, total)
        sizes = [norm(part) * scale for part in (total if self.total_alone else total[:1])]
        self._put("grad_h", self._total_size(total, scale, sizes[0], start, stop))
        self._put("weight_grad", norm(inside.gates.flatten(-2)) * scale * self._size_before(piece))
        if inside.cell is not None:
            self._put("grad_c", norm(inside.cell) * scale)
        self._carried(sizes if self.total_alone else [norm(part[:, 1:]) * back.scale[:, 1:] for part in back.state])
        self._handed_down(piece, total, inside.gates, scale.to(weights.hh.dtype).unsqueeze(-1))

    def _handed_down(self, piece: Piece, total: State, gates: Tensor, scale: Tensor) -> None:
        """What the layer below and the certificate need; `scale`, [t, B, 1], is what `gates` are short of."""
        weights = self.trace.layer.weights
        if self.below:
            inputs = self.family.input_cotangents(piece, total, gates).flatten(-2) @ weights.ih
            self.inputs.append(drop_nearly_subnormal(inputs.mul_(scale)))
        if self.sketch:
            signs = sketch_matrix(weights.hh.shape[1], weights.hh)
            before = (piece.previous @ signs).mul_(scale)
            self.sketches.append(gates.flatten(-2).flatten(0, 1).mT @ before.flatten(0, 1))

    def _total_size(self, total: State, scale: Tensor, size: Tensor, start: int, stop: int) -> Tensor:
        """Norm of the total gradient of h_t: autograd's own where that is known, and what we make of it held to it.

        `scale`, [t, B], is what `total` is short of, `size` what it amounts to.
        """
        if self.entering.totals is None:
            return size
        valid = self.valid[start:stop] if self.padded else None
        known = [part[start:stop] for part in self.entering.totals]
        factor = scale.to(total[0].dtype).unsqueeze(-1)
        pairs = zip(total, known, strict=True)
        self.totals.append(torch.stack([relative_parts(mine * factor, theirs, valid) for mine, theirs in pairs]))
        return norm(known[0])

    def _size_before(self, piece: Piece) -> Tensor:
        """Norm of h_{t-1}."""
        if self.trace.layer.given is not None:
            return norm(piece.previous)
        sizes = self.values["state"][-1][:-1] * piece.output.shape[-1] ** 0.5
        return torch.cat([norm(piece.previous[:1]), sizes])

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
        gates, state = self.family.activations(self.trace, piece, start, stop)
        self._saturate(self.family.gates, gates, valid)
        if state is not None:
            self._saturate(("hidden",), state.unsqueeze(2), valid)
        self.difference.append(relative_parts(piece.output, output, valid if self.padded else None))

    def _saturate(self, gates: tuple[str, ...], x: Tensor, valid: Tensor) -> None:
        if gates not in self.saturation:
            self.saturation[gates] = Saturation([self.family.limits(gate) for gate in gates], x)
        self.saturation[gates].add(x, valid)

    def _scan(self, piece: Piece, start: int, stop: int) -> _Back:
        """Carry the cotangents back through the piece."""
        states = self._entering(piece, start, stop)
        for state, carried in zip(states, self.carry, strict=False):
            state[-1, : len(carried)] += carried
        scales: list[Tensor] = []
        for low, high in backwards(stop - start, SPAN_STEPS):
            span = tuple(state[low : high + 1] for state in states)
            self._scan_span(tuple(f[low:high] for f in piece.factors), span, start + low)
            scales.append(self.exponents[: states[0].shape[1]].exp2().expand(high - low, -1, -1))
            self.carry = tuple(state[0] for state in span)
            self._rescale()
        return _Back(tuple(state[1:] for state in states), torch.cat(scales[::-1]))

    def _scan_span(self, factors: tuple[Tensor, ...], states: State, start: int) -> None:
        """The same through a few steps, with no loss of range in between; the first is timestep `start`."""
        weights, links = self.trace.layer.weights, self.trace.layer.links
        if links is None:
            self.family.scan(weights, factors, states)
            return
        for t in range(len(states[0]) - 2, -1, -1):
            found = self.family.pull(weights, tuple(f[t] for f in factors), tuple(s[t + 1] for s in states))
            for state, back, link in zip(states, found, links, strict=True):
                state[t].addcmul_(back, link[start + t])

    def _rescale(self) -> None:
        """Bring what leaves a span back into range.

        In float32 a vanishing gradient is soon subnormal, which many processors compute with ten times slower, and
        then 0. What is alone in its row is multiplied by powers of two; of a total what is nearly subnormal is dropped.
        """
        first = 0 if self.total_alone else 1
        for part in self.carry[: len(self.carry) * first]:
            part[0] = drop_nearly_subnormal(part[0])
        alone = [part[first:] for part in self.carry]
        if not len(alone[0]):
            return
        exponents = self.exponents[first : first + len(alone[0])]
        peak = functools.reduce(torch.maximum, [part.abs().amax(-1) for part in alone])
        change = torch.frexp(peak).exponent.clamp(-MOST_EXPONENT, MOST_EXPONENT)
        change.masked_fill_((change.abs() < LEAST_EXPONENT) | ~peak.isfinite(), 0)
        if self.total_alone:  # what overflows in the kernel does so here
            change = torch.minimum(change, -exponents)
        for part in alone:
            part.mul_(torch.exp2(-change).to(part.dtype).unsqueeze(-1))
        exponents += change

    def _entering(self, piece: Piece, start: int, stop: int) -> State:
        """What enters each row from outside at each timestep of the piece, behind a slot for what leaves it."""
        entering, times = self.entering, self.anchors.times
        rows = 1 + (0 if self.total_alone else self.anchors.active(start))
        widths = (piece.output.shape[-1], piece.hidden.shape[-1])[: 1 + self.family.cell]
        steps, batch = piece.output.shape[:2]
        states = tuple(piece.output.new_zeros(steps + 1, rows, batch, width) for width in widths)
        states[0][1:, 0] = entering.h[start:stop]
        row, b = ((times[: rows - 1] >= start) & (times[: rows - 1] < stop)).nonzero(as_tuple=True)
        t = times[row, b]
        scale = (1 / self.anchors.sizes[row, b]).to(piece.output.dtype).unsqueeze(-1)
        states[0][t - start + 1, row + 1, b] = entering.h[t, b] * scale
        if entering.c is not None:
            states[1][1:, 0] = entering.c[start:stop]
            states[1][t - start + 1, row + 1, b] = entering.c[t, b] * scale
        if entering.c_last is not None:
            last = self.lengths - 1
            (ends,) = ((last >= start) & (last < stop)).nonzero(as_tuple=True)
            states[1][last[ends] - start + 1, 0, ends] = entering.c_last[ends]
            final = t == last[b]
            place = (t[final] - start + 1, row[final] + 1, b[final])
            states[1][place] = entering.c_last[b[final]] * scale[final]
        return states

    def _carried(self, sizes: Sequence[Tensor]) -> None:
        """Norms of the anchors' cotangents, relative to what they started with, [t, A, B].

        Args:
            sizes: of h and of c: [t, A, B] of the anchors active here, or [t, B] of the total where it is the anchor's.
        """
        joint = functools.reduce(torch.hypot, sizes)
        if self.total_alone:
            joint = (joint / self.anchors.sizes[0]).unsqueeze(1)
        padding = joint.new_zeros(joint.shape[0], len(self.anchors.times) - joint.shape[1], joint.shape[2])
        self.carried.append(torch.cat([joint, padding], 1))

    def _put(self, name: str, value: Tensor) -> None:
        self.values.setdefault(name, []).append(value)

    def _total_residual(self) -> Tensor | None:
        return torch.stack([relative(p) for p in torch.stack(self.totals).sum(0)]).amax() if self.totals else None

    def finish(self) -> Measured:
        """Everything together, the first timestep first."""
        reach, reached = reach_by_lag(self.anchors, torch.cat(self.carried[::-1]))
        return Measured(
            values={name: torch.cat(parts[::-1]) for name, parts in self.values.items()},
            reach=reach,
            reached=reached,
            gates={g: gate for gs, s in self.saturation.items() for g, gate in zip(gs, s.finish(), strict=True)},
            residual=relative(torch.stack(self.difference).sum(0)),
            grad_input=torch.cat(self.inputs[::-1]) if self.below else None,
            sketch=torch.stack(self.sketches).sum(0) if self.sketch else None,
            total_residual=self._total_residual(),
            trace=self.trace,
        )


def relative_parts(rebuilt: Tensor, kernel: Tensor, valid: Tensor | None = None) -> Tensor:
    """Squared norms of the difference and of the kernel's values, over the valid rows: [2], in float64.

    Where the kernel's values are not finite the difference counts as nothing if the rebuilt ones are not finite either,
    as infinite if they are.
    """
    difference = rebuilt - kernel
    if valid is not None:
        difference.masked_fill_(~valid.unsqueeze(-1), 0)
    parts = torch.stack([torch.linalg.vector_norm(x) for x in (difference, kernel)]).double().square()
    if parts.isfinite().all():
        return parts
    finite = kernel.isfinite()
    agree = finite == rebuilt.isfinite()
    if valid is not None:
        agree |= ~valid.unsqueeze(-1)
    difference.masked_fill_(~finite, 0).masked_fill_(~agree, torch.inf)
    known = kernel.masked_fill(~finite, 0)
    return torch.stack([torch.linalg.vector_norm(x, dtype=torch.float64).square() for x in (difference, known)])


def relative(parts: Tensor) -> Tensor:
    """||difference|| / ||reference||, 0-dim; 0 where both vanish."""
    difference, reference = parts.sqrt()
    return torch.where(difference == 0, difference, difference / reference)
