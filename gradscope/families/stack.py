"""A whole call: the lower layers are run again from below, and gradients handed down from above."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from gradscope.families.base import Family, Layer
from gradscope.families.blocks import measure_blocks
from gradscope.families.gru import GRU
from gradscope.families.lstm import LSTM
from gradscope.families.measure import Entering, Measured, measure, relative, relative_parts, sketch_matrix
from gradscope.families.products import measure_products
from gradscope.families.rnn import ReluRNN, TanhRNN
from gradscope.types import Analysis, Gate, Stack, Weights

FAMILIES: dict[str, Family] = {family.name: family for family in (TanhRNN(), ReluRNN(), LSTM(), GRU())}

HIDDEN_DROPOUT = "the dropout mask between the layers is hidden inside the kernel; pass split_layers=True to attach"


@dataclass(frozen=True, slots=True)
class _Place:
    """One layer in one direction of a stack: its slot, and the way between input order and recurrence order."""

    stack: Stack
    layer: int
    reverse: bool

    @property
    def slot(self) -> int:
        return self.layer * self.stack.directions + self.reverse

    @property
    def weights(self) -> Weights:
        return self.stack.weights[self.slot]

    @property
    def columns(self) -> slice:
        """This direction's part of the layer's output."""
        width = self.stack.h_0.shape[-1]
        return slice(self.reverse * width, (self.reverse + 1) * width)

    def turn(self, x: Tensor) -> Tensor:
        """Input order <-> recurrence order, [T, B, ...]: each sequence's valid part reversed for `reverse`."""
        return flip(x, self.stack.lengths) if self.reverse else x

    def start(self) -> tuple[Tensor, Tensor | None]:
        c_0 = self.stack.c_0
        return self.stack.h_0[self.slot], None if c_0 is None else c_0[self.slot]


def flip(x: Tensor, lengths: Tensor) -> Tensor:
    """Reverse the first `lengths[b]` rows of every sequence of x, [T, B, ...]; the padding stays."""
    steps = torch.arange(x.shape[0], device=x.device).unsqueeze(1)
    source = torch.where(steps < lengths, lengths - 1 - steps, steps)
    return x.gather(0, source.view(*source.shape, *[1] * (x.dim() - 2)).expand_as(x))


def analyse(stack: Stack, *, full: bool = False, sketch: bool = True) -> list[Analysis]:
    """Measure every layer and direction of one call.

    Args:
        stack: the call in canonical layout.
        full: the full set of quantities, not only the core.
        sketch: prepare the comparison of gradients by `certify`.

    Returns:
        The analyses in torch's order of parameters: layer by layer, forward before reverse.
    """
    family = FAMILIES[stack.family]
    layers = len(stack.weights) // stack.directions
    inputs, outputs = _run_layers(family, stack, layers)
    found: list[Analysis] = []
    gradient = stack.grad_output
    for index in range(layers - 1, -1, -1):
        below: list[Tensor] = []
        for reverse in range(stack.directions):
            place = _Place(stack, index, bool(reverse))
            layer = _layer(place, inputs[index], outputs[index])
            entering = _entering(place, gradient)
            measured = measure(family, layer, stack.lengths, entering, below=index > 0, sketch=sketch)
            found.append(_analysis(family, place, measured, full))
            if measured.grad_input is not None:
                below.append(place.turn(measured.grad_input))
        if below:
            gradient = torch.stack(below).sum(0)
            gradient = gradient * stack.dropout[index - 1] if stack.dropout else gradient
    return sorted(found, key=lambda analysis: (analysis.layer, analysis.direction))


def certify(analyses: Sequence[Analysis], accumulated: Tensor) -> list[Analysis]:
    """Hold the rebuilt gradient of a `weight_hh` against the one that was accumulated into it.

    Args:
        analyses: all that the weight took part in.
        accumulated: its gradient from the same backward passes, [G * H, P].
    """
    sketches = [a.sketch for a in analyses if a.sketch is not None]
    if len(sketches) < len(analyses):
        return list(analyses)
    expected = accumulated.to(sketches[0].dtype) @ sketch_matrix(accumulated.shape[1], sketches[0])
    residual = relative(relative_parts(torch.stack(sketches).sum(0), expected))
    return [
        replace(a, gradient_residual=residual if (r := a.gradient_residual) is None else torch.maximum(r, residual))
        for a in analyses
    ]


def _run_layers(family: Family, stack: Stack, layers: int) -> tuple[list[Tensor], list[Tensor]]:
    """Inputs and outputs of every layer, [T, B, .]: the lower ones run again, the top one as the kernel gave it."""
    valid = torch.arange(stack.input.shape[0], device=stack.lengths.device).unsqueeze(1) < stack.lengths
    inputs, outputs = [stack.input], list[Tensor]()
    for index in range(layers - 1):
        parts: list[Tensor] = []
        for reverse in range(stack.directions):
            place = _Place(stack, index, bool(reverse))
            parts.append(place.turn(family.run(place.weights, place.turn(inputs[index]), *place.start())))
        output = torch.cat(parts, -1).masked_fill(~valid.unsqueeze(-1), 0)
        outputs.append(output)
        inputs.append(output * stack.dropout[index] if stack.dropout else output)
    return inputs, [*outputs, stack.output]


def _layer(place: _Place, x: Tensor, output: Tensor) -> Layer:
    given, links = (None, None) if (joined := place.stack.joined) is None else (joined.given, joined.factors)
    return Layer(place.weights, place.turn(x), *place.start(), place.turn(output[..., place.columns]), given, links)


def _entering(place: _Place, gradient: Tensor) -> Entering:
    """Loss gradient that enters from the output above and from h_n and c_n, in the order of the recurrence."""
    stack, joined = place.stack, place.stack.joined
    direct = place.turn(gradient[..., place.columns]).clone()
    if joined is not None:
        c = None if joined.grad_c is None or not bool(joined.grad_c.any()) else place.turn(joined.grad_c[place.slot])
        return Entering(direct.add_(place.turn(joined.grad_h[place.slot])), c=c, totals=joined.totals)
    if direct.shape[1]:
        direct[stack.lengths - 1, torch.arange(direct.shape[1], device=direct.device)] += stack.grad_h_n[place.slot]
    return Entering(direct, None if stack.grad_c_n is None else stack.grad_c_n[place.slot])


def _analysis(family: Family, place: _Place, measured: Measured, full: bool) -> Analysis:
    """Turn back to input order, add the weights and the full set, and say what cannot be given."""
    stack, values = place.stack, dict(measured.values)
    measured_at: dict[str, Tensor] = {}
    errors: dict[str, Tensor] = {}
    lyapunov = None
    if full:
        products = measure_products(family, measured.trace, stack.lengths)
        values["jacobian_max"], measured_at["jacobian_max"] = products.jacobian_max, products.measured
        values["gain"], errors["gain"] = products.gain, products.error
        lyapunov = products.lyapunov
    return Analysis(
        layer=place.layer,
        direction="reverse" if place.reverse else "forward",
        lengths=stack.lengths,
        values={name: place.turn(v) for name, v in values.items()},
        measured={name: place.turn(m) for name, m in measured_at.items()},
        errors={name: place.turn(e) for name, e in errors.items()},
        reach=measured.reach,
        reached=measured.reached,
        gates={name: _turn_gate(place, gate) for name, gate in measured.gates.items()},
        blocks=measure_blocks(family, place.weights, full),
        lyapunov=lyapunov,
        residual=_residual(place, measured),
        tolerance=stack.tolerance,
        sketch=measured.sketch,
        gradient_residual=measured.total_residual,
        reason=HIDDEN_DROPOUT if stack.hidden_dropout else "",
        starts=None if stack.joined is None else stack.joined.starts,
    )


def _residual(place: _Place, measured: Measured) -> Tensor:
    """How far the rebuilt layer is from the kernel: in its output, and in the final states that it returned."""
    stack, trace = place.stack, measured.trace
    batch = torch.arange(stack.lengths.shape[0], device=stack.lengths.device)
    finals = [(trace.layer.output[stack.lengths - 1, batch], stack.h_n[place.slot])]
    if stack.c_n is not None and trace.cells is not None:
        finals.append((trace.cells[stack.lengths, batch], stack.c_n[place.slot]))
    if stack.joined is not None and stack.joined.cells is not None and trace.cells is not None:
        valid = torch.arange(len(stack.joined.cells), device=batch.device).unsqueeze(1) < stack.lengths
        cells = relative(relative_parts(trace.cells[1:], stack.joined.cells, valid))
        return torch.maximum(measured.residual, cells)
    differences = [relative(relative_parts(mine, theirs)) for mine, theirs in finals]
    return torch.stack([measured.residual, *differences]).amax()


def _turn_gate(place: _Place, gate: Gate) -> Gate:
    return replace(gate, low=place.turn(gate.low), high=place.turn(gate.high), mean=place.turn(gate.mean))
