"""Finds the first value that is not finite among a step's calls."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor

from gradscope.capture.chain import Chain
from gradscope.capture.join import join
from gradscope.capture.join_cell import join_cells
from gradscope.capture.positions import SequenceCall
from gradscope.families import find_origin, find_origins, find_position_origin
from gradscope.observe.observed import ObservedCall
from gradscope.types import Direction, LayerKey, Origin, Saved, Stack

Chained = tuple[int, list[ObservedCall], Chain]
"""Number of a chain within its module, the calls of the module, and the chain."""
KeyedOrigin = tuple[LayerKey, Origin]


def first_origin(
    chains: Sequence[Chained], sequences: Sequence[tuple[int, SequenceCall]], factor: Tensor | float
) -> KeyedOrigin | None:
    """The first origin in causal order: forward passes in the order of calls, then backward passes in reverse order.

    Args:
        chains: in the order of their first calls.
        sequences: calls of modules that are observed by position, each with its number within the module.
        factor: the loss scale.
    """
    by_call: list[tuple[int, list[KeyedOrigin]]] = []
    for number, calls, chain in chains:
        first = calls[chain.calls[0]]
        origins = [(LayerKey(first.module, n, d, number), o) for n, d, o in _origins(calls, chain, factor)]
        by_call.append((first.index, origins))
    for number, call in sequences:
        origin = find_position_origin(call.whole(factor))
        key = LayerKey(call.inputs.module.name, -1, "forward", number)
        by_call.append((call.index, [] if origin is None else [(key, origin)]))
    by_call.sort(key=lambda each: each[0])
    forward = [one for _, origins in by_call for one in origins if one[1].phase == "forward"]
    back = [one for _, origins in reversed(by_call) for one in origins if one[1].phase == "backward"]
    return next(iter([*forward, *back]), None)


def stack_of(calls: Sequence[ObservedCall], chain: Chain, factor: Tensor | float, saved: Sequence[Saved] = ()) -> Stack:
    """A chain of calls of torch's layers or cells in canonical layout; a single call with its kernel's saved values."""
    first = calls[chain.calls[0]]
    if len(chain.calls) == 1 and not first.cell and len(chain.tracks) == len(first.rows):
        output, *final = first.gradients
        return first.snapshot.stack(output, final, factor, saved)
    return join(chain, calls, factor)


def _origins(
    calls: Sequence[ObservedCall], chain: Chain, factor: Tensor | float
) -> list[tuple[int, Direction, Origin]]:
    """The origins in a chain, by layer and direction."""
    origins: list[tuple[int, Direction, Origin]]
    if calls[chain.calls[0]].custom is None:
        origins = find_origins(stack_of(calls, chain, factor))
    else:
        origins = [(0, "forward", origin) for origin in _of_cell(calls, chain, factor)]
    return [(n, d, replace(o, sequence=_number(calls, chain, o))) for n, d, o in origins]


def _of_cell(calls: Sequence[ObservedCall], chain: Chain, factor: Tensor | float) -> list[Origin]:
    """The same for a custom cell: a weight or an input that is not finite precedes the state."""
    first = calls[chain.calls[0]]
    assert first.custom is not None
    origin = find_origin(join_cells(first.custom, chain, calls, factor))
    if origin is not None and origin.phase == "forward" and origin.what == "state":
        weight = next((n for n, w in first.snapshot.weights.items() if not bool(w.isfinite().all())), None)
        same_t = [calls[c] for c, t in zip(chain.calls, chain.begins, strict=True) if t == origin.t]
        if weight is not None:
            origin = replace(origin, what=weight, gate="", t=None, sequence=None)
        elif any(not bool(row.isfinite().all()) for call in same_t for row in call.snapshot.arguments.rows):
            origin = replace(origin, what="input", gate="")
    return [] if origin is None else [origin]


def _number(calls: Sequence[ObservedCall], chain: Chain, origin: Origin) -> int | None:
    """Number in the batch of the origin's sequence, in the call of the origin."""
    if origin.sequence is None or origin.t is None:
        return None
    track = chain.tracks[origin.sequence]
    left, number = origin.t - track.start, None
    for place, row in track.places:
        call = calls[chain.calls[place]]
        number, left = call.rows[row], left - call.lengths[row]
        if left < 0:
            break
    return number
