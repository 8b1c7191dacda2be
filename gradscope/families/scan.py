"""The reverse scan of one layer carries the total loss gradient, and those of single anchors, back through time.

All of them are rows of one matrix product for each timestep. The scan goes piece by piece, like `measure`, and within a
piece span by span; between spans it rescales gradients.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from gradscope.families.base import Family, Layer, Piece, State
from gradscope.families.norms import drop_nearly_subnormal
from gradscope.families.reach import Anchors

SPAN_STEPS = 64
LEAST_EXPONENT, MOST_EXPONENT = 20, 100


@dataclass(frozen=True, slots=True)
class Entering:
    """Loss gradient that enters a layer's states from outside.

    Attributes:
        h: of every h_t, [T, B, P].
        c_last: of the last c_t of each sequence, [B, H]; None if none enters.
        c: of every c_t, [T, B, H], in place of `c_last`; None if none enters.
        totals: autograd's total gradients of h_t and c_t, [T, B, .] each; None if unknown.
    """

    h: Tensor
    c_last: Tensor | None = None
    c: Tensor | None = None
    totals: State | None = None


class Back(NamedTuple):
    """Cotangents at the timesteps of a piece, [t, R, B, .]: row 0 the total, then the anchors' alone.

    Attributes:
        state: cotangents of h_t, and of c_t.
        scale: missing factor of `state`, [t, R, B], in float64; None for 1.
    """

    state: State
    scale: Tensor | None


def backwards(steps: int, size: int) -> Iterator[tuple[int, int]]:
    """Ranges of `size` steps, the last first; the range at the beginning may be shorter."""
    size = max(1, size)
    for stop in range(steps, 0, -size):
        yield max(0, stop - size), stop


@dataclass(slots=True)
class ReverseScan:
    """Carries cotangents back, piece by piece.

    Args:
        family: the layer's equations.
        layer: the weights, and the loop's factors on the states.
        lengths: valid timesteps of each sequence, [B].
        entering: the loss gradient from outside.
        anchors: whose gradients are carried back alone.
    """

    family: Family
    layer: Layer
    lengths: Tensor
    entering: Entering
    anchors: Anchors
    alone: bool = field(init=False)
    carry: State = ()
    exponents: Tensor | None = None

    def __post_init__(self) -> None:
        self.alone = self.anchors.single()  # then the total and the only anchor share one row

    def through(self, piece: Piece, start: int, stop: int) -> Back:
        """Carry the cotangents back through timesteps `start` to `stop`."""
        states = self._entering(piece, start, stop)
        for state, carried in zip(states, self.carry, strict=False):
            state[-1, : len(carried)] += carried
        scales: list[Tensor] = []
        for low, high in backwards(stop - start, SPAN_STEPS):
            self._span(tuple(f[low:high] for f in piece.factors), tuple(s[low : high + 1] for s in states), start + low)
            if self.exponents is not None:
                scales.append(self.exponents[: states[0].shape[1]].exp2().expand(high - low, -1, -1))
            self.carry = tuple(state[low] for state in states)
            if start + low:
                self._rescale()
        return Back(tuple(state[1:] for state in states), self._scale(scales, stop - start))

    def _scale(self, scales: list[Tensor], steps: int) -> Tensor | None:
        """Scale of a piece from its spans; the last spans may precede the first rescaling and have scale 1."""
        if not scales:
            return None
        missing = steps - sum(map(len, scales))
        ones = [torch.ones_like(scales[0][:1]).expand(missing, -1, -1)] if missing else []
        return torch.cat([*scales[::-1], *ones]) if len(scales) + len(ones) > 1 else scales[0]

    def _span(self, factors: tuple[Tensor, ...], states: State, start: int) -> None:
        """Carry back through a span of steps, without rescaling; the first is timestep `start`."""
        weights, links = self.layer.weights, self.layer.links
        if links is None:
            self.family.scan(weights, factors, states)
            return
        for t in range(len(states[0]) - 2, -1, -1):
            pulled = self.family.pull(weights, tuple(f[t] for f in factors), tuple(s[t + 1] for s in states))
            for state, back, link in zip(states, pulled, links, strict=True):
                state[t].addcmul_(back, link[start + t])

    def _rescale(self) -> None:
        """Bring the gradients that leave a span back into range.

        In float32 a vanishing gradient is soon subnormal, which slows many processors down tenfold, and then 0. A row
        with one anchor's gradient is multiplied by powers of two; nearly subnormal values of a total become 0.
        """
        first = 0 if self.alone else 1
        for part in self.carry[: len(self.carry) * first]:
            part[0] = drop_nearly_subnormal(part[0])
        alone = [part[first:] for part in self.carry]
        if not len(alone[0]):
            return
        if self.exponents is None:
            rows = 1 + len(self.anchors.times)
            self.exponents = torch.zeros(rows, len(self.lengths), dtype=torch.float64, device=self.lengths.device)
        exponents = self.exponents[first : first + len(alone[0])]
        peak = functools.reduce(torch.maximum, [part.abs().amax(-1) for part in alone])
        change = torch.frexp(peak).exponent.clamp(-MOST_EXPONENT, MOST_EXPONENT)
        change.masked_fill_((change.abs() < LEAST_EXPONENT) | ~peak.isfinite(), 0)
        if self.alone:  # an overflow in the kernel stays an overflow here
            change = torch.minimum(change, -exponents)
        for part in alone:
            part.mul_(torch.exp2(-change).to(part.dtype).unsqueeze(-1))
        exponents += change

    def _entering(self, piece: Piece, start: int, stop: int) -> State:
        """Gradients that enter each row from outside at each timestep, behind a slot for those that leave the piece."""
        entering, times = self.entering, self.anchors.times
        rows = 1 + (0 if self.alone else self.anchors.active(start))
        widths = (piece.output.shape[-1], piece.hidden.shape[-1])[: 1 + self.family.cell]
        steps, batch = piece.output.shape[:2]
        states = tuple(piece.output.new_zeros(steps + 1, rows, batch, width) for width in widths)
        states[0][1:, 0] = entering.h[start:stop]
        if entering.c is not None:
            states[1][1:, 0] = entering.c[start:stop]
        if entering.c_last is not None:
            last = self.lengths - 1
            (ends,) = ((last >= start) & (last < stop)).nonzero(as_tuple=True)
            states[1][last[ends] - start + 1, 0, ends] = entering.c_last[ends]
        if rows > 1:
            row, b = ((times[: rows - 1] >= start) & (times[: rows - 1] < stop)).nonzero(as_tuple=True)
            self._start_anchors(states, row, b, start)
        return states

    def _start_anchors(self, states: State, row: Tensor, b: Tensor, start: int) -> None:
        """Add the gradients of anchors, [N] rows of [N] sequences, at their timesteps, each scaled to norm 1."""
        entering, t = self.entering, self.anchors.times[row, b]
        scale = (1 / self.anchors.sizes[row, b]).to(entering.h.dtype).unsqueeze(-1)
        states[0][t - start + 1, row + 1, b] = entering.h[t, b] * scale
        if entering.c is not None:
            states[1][t - start + 1, row + 1, b] = entering.c[t, b] * scale
        if entering.c_last is not None:
            final = t == self.lengths[b] - 1
            place = (t[final] - start + 1, row[final] + 1, b[final])
            states[1][place] = entering.c_last[b[final]] * scale[final]
