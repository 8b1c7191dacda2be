"""Measures a call from values that its kernel saved for the backward pass: each layer by itself, without a replay."""

from __future__ import annotations

import torch
from torch.nn.functional import linear

from gradscope.families.base import Family, Layer, Trace
from gradscope.families.lstm import apply_nonlinearity
from gradscope.families.measure import measure
from gradscope.families.norms import relative_parts
from gradscope.families.place import FAMILIES, Place, entering_at, places_of
from gradscope.families.scan import Entering
from gradscope.families.stack import analysis_at
from gradscope.families.work import CORE_WORK, Work
from gradscope.types import Analysis, Saved, Stack


def analyse_saved(stack: Stack, *, work: Work = CORE_WORK, sketch: bool = True) -> list[Analysis]:
    """Measure every layer and direction of one call, as `gradscope.families.stack.analyse` does.

    Returns:
        The analyses; none unless all layers are known and the saved gates satisfy the layers' equations.
    """
    family = FAMILIES[stack.family]
    return [
        analysis_at(
            family,
            place,
            measure(family, trace, stack.lengths, entering, below=False, sketch=sketch, work=work),
            work,
        )
        for place, trace, entering in _known_layers(family, stack)
    ]


def _known_layers(family: Family, stack: Stack) -> list[tuple[Place, Trace, Entering]]:
    """Every rebuilt layer with its entering gradient; none if one is not confirmed."""
    layers: list[tuple[Place, Trace, Entering]] = []
    for place, saved in zip(places_of(stack), stack.saved, strict=False):
        if saved.output is None:
            output, direct = place.own(stack.output), place.own(stack.grad_output)
        else:
            output = saved.output
            direct = torch.zeros_like(output) if saved.grad_output is None else saved.grad_output
        layer = Layer(place.weights, None, *place.start(), place.turn(output), gates=saved.gates)
        trace = family.replay(layer)
        if not _confirmed(trace, saved, stack.tolerance):
            return []
        layers.append((place, trace, entering_at(place, direct)))
    return layers


def _confirmed(trace: Trace, saved: Saved, tolerance: float) -> bool:
    """True if the saved gates equal those rebuilt from weights and inputs, at a sample of places."""
    (t, b), w = saved.places, trace.layer.weights
    rebuilt = linear(saved.input, w.ih, w.b_ih) + linear(trace.previous[t, b], w.hh, w.b_hh)
    gates = apply_nonlinearity(rebuilt.unflatten(1, (len(saved.gates), -1)).movedim(1, 0))
    difference, reference = relative_parts(gates, saved.gates[:, t, b]).tolist()
    return difference <= tolerance * reference
