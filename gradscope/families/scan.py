"""The reverse scan of one layer carries the total loss gradient, and those of single anchors, back through time.

All of them are rows of one matrix product for each timestep. The scan goes piece by piece, like `measure`, and within a
piece it rescales gradients after each span of timesteps.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from gradscope.families.base import Family, Layer, Piece, State, cut
from gradscope.families.norms import drop_nearly_subnormal
from gradscope.families.reach import Anchors

SPAN_STEPS = 64
LEAST_EXPONENT, MOST_EXPONENT = 19, 100


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
        of_total: the same of row 0, [t, B].
    """

    state: State
    scale: Tensor | None
    of_total: Tensor | None


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
        exponents, rows, steps = self.exponents, states[0].shape[1], stop - start
        scale = None if exponents is None else exponents[:rows].double().repeat(steps, 1, 1)
        for t in self._steps(piece.factors, states, start):
            if start + t and (not t or (steps - t) % SPAN_STEPS == 0):
                changed = self._rescale(tuple(state[t] for state in states))
                if changed is not None and t:
                    scale = changed.new_zeros(steps, *changed.shape, dtype=torch.float64) if scale is None else scale
                    scale[:t] = changed
        self.carry = tuple(state[0] for state in states)
        scale = None if scale is None else scale.exp2_()
        of_total = scale[:, 0] if self.alone and scale is not None else None
        return Back(tuple(state[1:] for state in states), scale, of_total)

    def _steps(self, factors: tuple[Tensor, ...], states: State, start: int) -> Iterator[int]:
        """Carry back step by step; yields t when the cotangents of s_{t-1} are complete. Timestep `start` is t = 0."""
        weights, links = self.layer.weights, self.layer.links
        if links is None:
            return self.family.scan(weights, factors, states)
        return self._linked_steps(links, factors, states, start)

    def _linked_steps(self, links: State, factors: tuple[Tensor, ...], states: State, start: int) -> Iterator[int]:
        weights = self.layer.weights
        for t in range(len(states[0]) - 2, -1, -1):
            pulled = self.family.pull(weights, tuple(f[t] for f in factors), tuple(s[t + 1] for s in states))
            for state, back, link in zip(states, pulled, links, strict=True):
                state[t].addcmul_(back, link[start + t])
            yield t

    def _rescale(self, state: State) -> Tensor | None:
        """Bring the gradients that leave a span back into range; returns the binary exponents of the missing factors.

        In float32 a vanishing gradient is soon subnormal, which slows many processors down tenfold, and then 0. A row
        with one anchor's gradient is multiplied by powers of two; nearly subnormal values of a total become 0.
        """
        if not self.alone:
            for part in state:
                drop_nearly_subnormal(part[0])
            if len(state[0]) == 1:
                return None
        rows, sequences = state[0].shape[:2]
        if self.exponents is None:
            self.exponents = state[0].new_zeros(1 + len(self.anchors.times), sequences)
        exponents = cut(self.exponents, 0, rows)
        shift = torch.cat(state, -1).abs_().amax(-1).log2_().neg_().round_().nan_to_num_(0, 0, 0)
        shift = torch.nn.functional.hardshrink(shift.clamp_(-MOST_EXPONENT, MOST_EXPONENT), LEAST_EXPONENT)
        if self.alone:  # an overflow in the kernel stays an overflow here
            shift = torch.maximum(shift, exponents)
        else:
            shift[0] = 0
        factor = shift.exp2().unsqueeze(-1)
        for part in state:
            part.mul_(factor)
        return exponents.sub_(shift)

    def _entering(self, piece: Piece, start: int, stop: int) -> State:
        """Gradients that enter each row from outside at each timestep, behind a slot for those that leave the piece."""
        entering, times = self.entering, self.anchors.times
        rows = 1 + (0 if self.alone else self.anchors.active(start))
        widths = (piece.output.shape[-1], piece.hidden.shape[-1])[: 1 + self.family.cell]
        steps, batch = piece.output.shape[:2]
        states = tuple(piece.output.new_zeros(steps + 1, rows, batch, width) for width in widths)
        states[0][1:, 0] = cut(entering.h, start, stop)
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
