"""The layers and directions of a stack: their inputs, replayed from below, and their gradients from above."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gradscope.families.base import Family, Layer
from gradscope.families.counting import column
from gradscope.families.gru import GRU
from gradscope.families.lstm import LSTM
from gradscope.families.rnn import ReluRNN, TanhRNN
from gradscope.families.scan import Entering
from gradscope.types import Direction, Stack, Weights

FAMILIES: dict[str, Family] = {family.name: family for family in (TanhRNN(), ReluRNN(), LSTM(), GRU())}


@dataclass(frozen=True, slots=True)
class Place:
    """One layer in one direction of a stack: converts between input order and recurrence order."""

    stack: Stack
    layer: int
    reverse: bool

    @property
    def slot(self) -> int:
        """Its number among the stack's parameter sets."""
        return self.layer * self.stack.directions + self.reverse

    @property
    def direction(self) -> Direction:
        """Its name."""
        return "reverse" if self.reverse else "forward"

    @property
    def weights(self) -> Weights:
        """Its parameters."""
        return self.stack.weights[self.slot]

    def own(self, x: Tensor) -> Tensor:
        """The columns of this direction in the layer's output, or in its gradient."""
        return x if self.stack.directions == 1 else x.chunk(2, -1)[self.reverse]

    def turn(self, x: Tensor) -> Tensor:
        """Input order <-> recurrence order, [T, B, ...]: each sequence's valid part reversed for `reverse`."""
        return flip(x, self.stack.lengths) if self.reverse else x

    def input(self, outputs: Sequence[Tensor]) -> Tensor:
        """Its input, [T, B, .], from the outputs of the layers below."""
        return self.dropout(outputs[self.layer - 1]) if self.layer else self.stack.input

    def dropout(self, x: Tensor) -> Tensor:
        """Apply the dropout between this layer and the one below, to its input or to the gradient of its input."""
        masks, below = self.stack.dropout, self.layer - 1
        if not masks or below < 0:
            return x
        each = len(masks) * self.stack.directions // (len(self.stack.weights) - self.stack.directions)
        return x * masks[below * each + (self.reverse if each > 1 else 0)]

    def start(self) -> tuple[Tensor, Tensor | None]:
        """h_0, [B, P], and c_0 of an LSTM, [B, H]."""
        c_0 = self.stack.c_0
        return self.stack.h_0[self.slot], None if c_0 is None else c_0[self.slot]


def places_of(stack: Stack) -> list[Place]:
    """Every layer and direction of a stack, by slot."""
    return [Place(stack, n // stack.directions, bool(n % stack.directions)) for n in range(len(stack.weights))]


def flip(x: Tensor, lengths: Tensor) -> Tensor:
    """Reverse the first `lengths[b]` rows of every sequence of x, [T, B, ...]; the padding stays."""
    if bool((lengths == len(x)).all()):
        return x.flip(0)
    steps = column(x.shape[0], x.device)
    source = torch.where(steps < lengths, lengths - 1 - steps, steps)
    return x.gather(0, source.view(*source.shape, *[1] * (x.dim() - 2)).expand_as(x))


def run_layers(family: Family, stack: Stack) -> list[Tensor]:
    """Outputs of every layer, [T, B, .]: replayed for the lower layers, the kernel's own for the top one."""
    outputs: list[Tensor] = []
    for index in range(len(stack.weights) // stack.directions - 1):
        parts: list[Tensor] = []
        for reverse in range(stack.directions):
            place = Place(stack, index, bool(reverse))
            parts.append(place.turn(family.run(place.weights, place.turn(place.input(outputs)), *place.start())))
        padding = column(stack.input.shape[0], stack.lengths.device) >= stack.lengths
        outputs.append(torch.cat(parts, -1).masked_fill(padding.unsqueeze(-1), 0))
    return [*outputs, stack.output]


def layer_at(place: Place, outputs: Sequence[Tensor]) -> Layer:
    """Inputs and outputs of one layer in one direction, in the order of the recurrence.

    Args:
        place: the layer and direction.
        outputs: of every layer, both directions, [T, B, directions * P] each.
    """
    x, output = place.input(outputs), outputs[place.layer]
    states, links = (None, None) if (joined := place.stack.joined) is None else (joined.previous, joined.factors)
    return Layer(place.weights, place.turn(x), *place.start(), place.turn(place.own(output)), states, links)


def entering_at(place: Place, gradient: Tensor) -> Entering:
    """Loss gradient that enters from above and from h_n and c_n, in the order of the recurrence.

    Args:
        place: the layer and direction.
        gradient: loss gradient of this direction's output, [T, B, P].
    """
    stack, joined = place.stack, place.stack.joined
    direct = place.turn(gradient)
    if joined is not None:
        c = None if joined.grad_c is None or not bool(joined.grad_c.any()) else place.turn(joined.grad_c[place.slot])
        return Entering(direct + place.turn(joined.grad_h[place.slot]), c=c, totals=joined.totals)
    if stack.grad_h_n is not None and direct.shape[1]:
        direct = direct.clone()
        direct[stack.lengths - 1, torch.arange(direct.shape[1], device=direct.device)] += stack.grad_h_n[place.slot]
    return Entering(direct, None if stack.grad_c_n is None else stack.grad_c_n[place.slot])
