"""Measures a call layer by layer, from the uppermost down, and passes the gradients to the layer below."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from gradscope.families.base import Family
from gradscope.families.blocks import measure_blocks
from gradscope.families.counting import column
from gradscope.families.measure import Measured, measure, sketch_matrix
from gradscope.families.norms import relative, relative_parts
from gradscope.families.place import FAMILIES, Place, entering_at, layer_at, run_layers
from gradscope.families.products import measure_products
from gradscope.families.work import CORE_WORK, Work
from gradscope.types import Analysis, Gate, Stack

HIDDEN_DROPOUT = "the dropout mask between the layers is hidden inside the kernel; pass split_layers=True to attach"


def analyse(stack: Stack, *, work: Work = CORE_WORK, sketch: bool = True) -> list[Analysis]:
    """Measure every layer and direction of one call.

    Args:
        stack: the call in canonical layout.
        work: what to compute; by default the core set.
        sketch: prepare the gradients for `certify`.

    Returns:
        The analyses in torch's order of parameters: layer by layer, forward before reverse.
    """
    family = FAMILIES[stack.family]
    layers = len(stack.weights) // stack.directions
    outputs = run_layers(family, stack)
    analyses: list[Analysis] = []
    gradient = stack.grad_output
    for index in range(layers - 1, -1, -1):
        below: list[Tensor] = []
        for reverse in range(stack.directions):
            place = Place(stack, index, bool(reverse))
            layer = layer_at(place, outputs)
            entering = entering_at(place, place.own(gradient))
            trace, below_it = family.replay(layer), index > 0
            measured = measure(family, trace, stack.lengths, entering, below=below_it, sketch=sketch, work=work)
            analyses.append(analysis_at(family, place, measured, work))
            if measured.grad_input is not None:
                below.append(place.dropout(place.turn(measured.grad_input)))
        if below:
            gradient = torch.stack(below).sum(0)
    if stack.dropout_read and not bool((torch.stack([a.residual for a in analyses]) <= stack.tolerance).all()):
        analyses = [replace(a, reason=HIDDEN_DROPOUT) for a in analyses]
    return sorted(analyses, key=lambda analysis: (analysis.layer, analysis.direction))


def certify(analyses: Sequence[Analysis], accumulated: Tensor) -> list[Analysis]:
    """Compare the rebuilt gradient of a `weight_hh` with the accumulated one.

    Args:
        analyses: all analyses of layers with this weight.
        accumulated: its gradient from the same backward passes, [G * H, P].
    """
    sketches = [a.sketch for a in analyses if a.sketch is not None]
    if len(sketches) < len(analyses):
        return list(analyses)
    expected = accumulated.to(sketches[0].dtype) @ sketch_matrix(accumulated.shape[1], sketches[0])
    residual = relative(relative_parts(functools.reduce(torch.add, sketches), expected))
    return [
        replace(a, gradient_residual=residual if (r := a.gradient_residual) is None else torch.maximum(r, residual))
        for a in analyses
    ]


def analysis_at(family: Family, place: Place, measured: Measured, work: Work) -> Analysis:
    """Turn measurements to input order, add the weights and the full set, and the reason for missing results."""
    stack, values = place.stack, dict(measured.values)
    measured_at: dict[str, Tensor] = {}
    errors: dict[str, Tensor] = {}
    lyapunov = None
    if "products" in work.parts:
        products = measure_products(family, measured.trace, stack.lengths)
        values["jacobian_max"], measured_at["jacobian_max"] = products.jacobian_max, products.measured
        values["gain"], errors["gain"] = products.gain, products.error
        lyapunov = products.lyapunov
    return Analysis(
        layer=place.layer,
        direction=place.direction,
        lengths=stack.lengths,
        values={name: place.turn(v) for name, v in values.items()},
        measured={name: place.turn(m) for name, m in measured_at.items()},
        errors={name: place.turn(e) for name, e in errors.items()},
        reach=measured.reach,
        reached=measured.reached,
        gates={name: _turn_gate(place, gate) for name, gate in measured.gates.items()},
        blocks=measure_blocks(family, place.weights, "eigenvalues" in work.parts) if "blocks" in work.parts else {},
        lyapunov=lyapunov,
        residual=_residual(place, measured),
        tolerance=stack.tolerance,
        sketch=measured.sketch,
        gradient_residual=measured.total_residual,
        reason=HIDDEN_DROPOUT if stack.hidden_dropout else "",
        starts=None if stack.joined is None else stack.joined.starts,
    )


def _residual(place: Place, measured: Measured) -> Tensor:
    """Relative difference of the rebuilt layer from the kernel, in the output and the final states."""
    stack, trace = place.stack, measured.trace
    differences = [measured.difference]
    if stack.joined is not None and stack.joined.cells is not None and trace.cells is not None:
        valid = column(len(stack.joined.cells), stack.lengths.device) < stack.lengths
        differences.append(relative_parts(trace.cells[1:], stack.joined.cells, valid))
    else:
        pairs = [(trace.layer.output, stack.h_n)]
        if stack.c_n is not None and trace.cells is not None:
            pairs.append((trace.cells[1:], stack.c_n))
        for states, final in pairs:
            differences.append(relative_parts(_last(states, stack.lengths, measured.padded), final[place.slot]))
    return relative(torch.stack(differences)).amax()


def _last(x: Tensor, lengths: Tensor, padded: bool) -> Tensor:
    """Last timestep of each sequence of [T, B, .]."""
    return x[lengths - 1, torch.arange(x.shape[1], device=x.device)] if padded else x[-1]


def _turn_gate(place: Place, gate: Gate) -> Gate:
    return replace(gate, low=place.turn(gate.low), high=place.turn(gate.high), mean=place.turn(gate.mean))
