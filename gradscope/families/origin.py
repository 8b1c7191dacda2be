"""Finds the first value that is not finite in a layer; runs only if there is one.

`Origin.sequence` is here the number among the analysed sequences.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gradscope.families.base import Family, Layer, Piece, State, Trace
from gradscope.families.counting import column
from gradscope.families.place import FAMILIES, Place, entering_at, layer_at, places_of, run_layers
from gradscope.families.scan import Entering
from gradscope.types import Direction, Origin, Recurrence, Stack, Weights

LayerOrigin = tuple[int, Direction, Origin]
"""Layer, direction, and the origin in it."""


def find_origins(stack: Stack) -> list[LayerOrigin]:
    """Find the origins in the layers of one call, in causal order.

    The backward pass is examined only if the whole forward pass is finite.
    """
    family = FAMILIES[stack.family]
    outputs = run_layers(family, stack)
    places = places_of(stack)
    traces = [family.replay(layer_at(place, outputs)) for place in places]
    forward: list[LayerOrigin] = [
        (place.layer, place.direction, origin)
        for place, trace in zip(places, traces, strict=True)
        if (origin := _forward_origin(family, place, trace)) is not None
    ]
    return forward or list(_backward_origins(family, stack, places, traces))


def _forward_origin(family: Family, place: Place, trace: Trace) -> Origin | None:
    layer, lengths = trace.layer, place.stack.lengths
    assert layer.input is not None
    for name, gates in _bad_weights(family, layer.weights):
        return Origin("forward", name, gates, sequences=len(lengths), analysed=len(lengths))
    times = column(len(layer.output), lengths.device)
    valid = times < lengths
    first = place.stack.h_0.new_zeros(valid.shape, dtype=torch.bool)
    states = [layer.previous, *([] if (cells := _previous_cells(trace)) is None else [cells])]
    first[:1] = torch.stack([_bad(s[:1]) for s in states]).any(0)
    between = first.clone()
    if layer.state_inputs is not None:
        returned = torch.cat([torch.zeros_like(between[:1]), _bad(layer.output[:-1])])
        between = torch.stack([_bad(x) for x in layer.state_inputs]).any(0) & ~returned
    gates = _bad(trace.gates) & _bad(layer.output).unsqueeze(2)  # a finite output of the kernel: no NaN in its gates
    after = _bad(layer.output) if trace.cells is None else _bad(layer.output) | _bad(trace.cells[1:])
    named = [("initial state", first), ("state between calls", between), ("input", _bad(layer.input))]
    where = torch.stack([*(bad for _, bad in named), gates.any(2), after]) & valid
    spot = _first(where.any(0))
    if spot is None:
        return None
    t, b = spot
    what = next((name for name, bad in named if bad[t, b]), "state")
    shown = _names(family, gates[t, b]) if what == "state" else ""
    return Origin("forward", what, shown, _time(place, t, b), b, int(where.any(0).any(0).sum()), len(lengths))


def _previous_cells(trace: Trace) -> Tensor | None:
    """c_{t-1}, [T, B, H]."""
    return trace.cell_inputs if trace.cell_inputs is not None or trace.cells is None else trace.cells[:-1]


def _backward_origins(
    family: Family, stack: Stack, places: Sequence[Place], traces: Sequence[Trace]
) -> Sequence[LayerOrigin]:
    """Origins in the backward pass, the uppermost layer first: lower layers get their gradients from it."""
    gradient = stack.grad_output
    origins: list[LayerOrigin] = []
    for index in range(len(places) // stack.directions - 1, -1, -1):
        below: list[Tensor] = []
        for place, trace in zip(places, traces, strict=True):
            if place.layer != index:
                continue
            entering = entering_at(place, place.own(gradient))
            piece = family.piece(trace, 0, len(trace.layer.output))
            states = _scan(family, trace.layer, piece, entering, stack.lengths)
            total = tuple(s[1:, 0] for s in states)
            gates = family.cotangents(trace.layer.weights, piece.factors, total).gates
            origin = _backward_origin(family, place, trace.layer, entering, states, gates)
            if origin is not None:
                origins.append((index, place.direction, origin))
            inner = family.input_cotangents(piece, total, gates)
            below.append(place.dropout(place.turn(inner.flatten(-2) @ trace.layer.weights.ih)))
        gradient = torch.stack(below).sum(0)
    return origins


def _scan(family: Family, layer: Layer, piece: Piece, entering: Entering, lengths: Tensor) -> State:
    """Total cotangents of s_{-1}, s_0, ..., [T + 1, 1, B, .]."""
    entered = [entering.h, *([] if not family.cell else [_cell_gradient(entering, piece.hidden, lengths)])]
    states = tuple(torch.cat([torch.zeros_like(part[:1]), part]).unsqueeze(1) for part in entered)
    for t in range(len(piece.hidden) - 1, -1, -1):
        pulled = family.pull(layer.weights, tuple(f[t] for f in piece.factors), tuple(s[t + 1] for s in states))
        for part, (state, back) in enumerate(zip(states, pulled, strict=True)):
            state[t] += back if layer.links is None else back * layer.links[part][t]
    return states


def _cell_gradient(entering: Entering, hidden: Tensor, lengths: Tensor) -> Tensor:
    """Gradient that enters every c_t from outside, [T, B, H]."""
    if entering.c is not None:
        return entering.c
    cells = torch.zeros_like(hidden)
    if entering.c_last is not None and cells.shape[1]:
        cells[lengths - 1, torch.arange(len(lengths), device=lengths.device)] = entering.c_last
    return cells


def _backward_origin(
    family: Family, place: Place, layer: Layer, entering: Entering, states: State, gates: Tensor
) -> Origin | None:
    lengths = place.stack.lengths
    entered = _bad(entering.h) | (False if entering.c is None else _bad(entering.c))
    valid = column(len(entered), lengths.device) < lengths
    if entering.c_last is not None:
        last = column(len(entered), lengths.device) == lengths - 1
        entered = entered | (last & _bad(entering.c_last))
    total = torch.stack([_bad(s[1:, 0]) for s in states]).any(0)
    inside = _bad(gates)
    where = (entered | total | inside.any(2)) & valid
    spot = _first(where.flip(0))
    if spot is None:
        return None
    t, b = len(where) - 1 - spot[0], spot[1]
    what = "gradient from above" if entered[t, b] else "recurrence"
    gate = (
        "" if entered[t, b] else _names(family, inside[t, b] if not total[t, b] else _spreading(gates[t + 1, b], layer))
    )
    return Origin("backward", what, gate, _time(place, t, b), b, int(where.any(0).sum()), len(lengths))


def _spreading(gates: Tensor, layer: Layer) -> Tensor:
    """Which gates turn finite cotangents, [G, H], into values of h_{t-1} that are not finite, [G]."""
    blocks = layer.weights.hh.unflatten(0, (len(gates), -1))
    return _bad((gates.unsqueeze(1) @ blocks).squeeze(1))


def _bad_weights(family: Family, weights: Weights) -> list[tuple[str, str]]:
    """Names of weights with values that are not finite, and the gates of the blocks with these values."""
    named = {"weight_ih": weights.ih, "weight_hh": weights.hh, "bias_ih": weights.b_ih, "bias_hh": weights.b_hh}
    bad = [
        (name, _names(family, rows.flatten(1).any(1)))
        for name, weight in named.items()
        if weight is not None and (rows := ~weight.isfinite().unflatten(0, (len(family.gates), -1))).any()
    ]
    return bad + ([("weight_hr", "")] if weights.hr is not None and not bool(weights.hr.isfinite().all()) else [])


def _names(family: Family, bad: Tensor) -> str:
    """Names of the bad gates, joined by `+`; empty if all of several gates are bad."""
    names = [gate for gate, flag in zip(family.gates, bad.tolist(), strict=True) if flag]
    return "" if len(names) == len(family.gates) > 1 else "+".join(names)


def _time(place: Place, t: int, b: int) -> int:
    """Convert t from the order of the recurrence to that of the input, and from the sequence's start to the chain's."""
    stack = place.stack
    local = int(stack.lengths[b]) - 1 - t if place.reverse else t
    return local + (0 if stack.joined is None else int(stack.joined.starts[b]))


def _bad(x: Tensor) -> Tensor:
    """True for each row with a value that is not finite."""
    return ~x.isfinite().all(-1)


def _first(where: Tensor) -> tuple[int, int] | None:
    """The first true (t, b) of [T, B]."""
    places = where.nonzero()
    return None if not len(places) else (int(places[0, 0]), int(places[0, 1]))


def find_origin(recurrence: Recurrence) -> Origin | None:
    """Find the origin in a chain of calls of any cell, from its states and their gradients alone."""
    r = recurrence
    valid = column(len(r.returned[0]), r.lengths.device) < r.lengths
    inputs, returned, direct, total = (
        torch.stack([_bad(part) for part in parts]).any(0) & valid
        for parts in (r.previous, r.returned, r.direct, r.totals)
    )
    back = total | direct
    forward, spot = True, _first(inputs | returned)
    if spot is None:
        forward, spot = False, _first(back.flip(0))
        if spot is None:
            return None
        spot = len(back) - 1 - spot[0], spot[1]
    t, b = spot
    names = "" if not forward or inputs[t, b] else "+".join(n for n, (x, _) in r.gates.items() if _bad(x)[t, b])
    begins = "initial state" if t == 0 else "state between calls"
    what = (begins if inputs[t, b] else "state") if forward else _from_above(direct, t, b)
    bad = (inputs | returned) if forward else back
    counted = int(bad.any(0).sum())
    phase = "forward" if forward else "backward"
    return Origin(phase, what, names, t + int(r.starts[b]), b, counted, len(r.lengths))


def _from_above(direct: Tensor, t: int, b: int) -> str:
    return "gradient from above" if direct[t, b] else "recurrence"
