"""Which of a step's calls has the first value that is not finite, and where in it that was born."""

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
from gradscope.types import Direction, Kept, LayerKey, Origin, Stack

Chained = tuple[int, list[ObservedCall], Chain]
"""Number within the module, calls of the module, and chain."""
Found = tuple[LayerKey, Origin]


def first_origin(
    chains: Sequence[Chained], sequences: Sequence[tuple[int, SequenceCall]], factor: Tensor | float
) -> Found | None:
    """The first in causal order: forward passes as they were called, then the way back, the last call first.

    Args:
        chains: in the order of their first calls.
        sequences: calls of modules that are observed by position, each with its number within the module.
        factor: what the loss was multiplied by.
    """
    called: list[tuple[int, list[Found]]] = []
    for number, calls, chain in chains:
        first = calls[chain.calls[0]]
        found = [(LayerKey(first.module, n, d, number), o) for n, d, o in _origins(calls, chain, factor)]
        called.append((first.index, found))
    for number, call in sequences:
        origin = find_position_origin(call.whole(factor))
        key = LayerKey(call.given.module.name, -1, "forward", number)
        called.append((call.index, [] if origin is None else [(key, origin)]))
    called.sort(key=lambda each: each[0])
    forward = [one for _, found in called for one in found if one[1].phase == "forward"]
    back = [one for _, found in reversed(called) for one in found if one[1].phase == "backward"]
    return next(iter([*forward, *back]), None)


def stack_of(calls: Sequence[ObservedCall], chain: Chain, factor: Tensor | float, kept: Sequence[Kept] = ()) -> Stack:
    """A chain of calls of torch's layers or cells in canonical layout; of a single one with what its kernel kept."""
    first = calls[chain.calls[0]]
    if len(chain.calls) == 1 and not first.cell and len(chain.tracks) == len(first.rows):
        output, *final = first.gradients
        return first.snapshot.stack(output, final, factor, kept)
    return join(chain, calls, factor)


def _origins(
    calls: Sequence[ObservedCall], chain: Chain, factor: Tensor | float
) -> list[tuple[int, Direction, Origin]]:
    """What is not finite in a chain, by layer and direction."""
    found: list[tuple[int, Direction, Origin]]
    if calls[chain.calls[0]].custom is None:
        found = find_origins(stack_of(calls, chain, factor))
    else:
        found = [(0, "forward", origin) for origin in _of_cell(calls, chain, factor)]
    return [(n, d, replace(o, sequence=_number(calls, chain, o))) for n, d, o in found]


def _of_cell(calls: Sequence[ObservedCall], chain: Chain, factor: Tensor | float) -> list[Origin]:
    """The same of a cell that is not torch's: what was given to it comes before what it made."""
    first = calls[chain.calls[0]]
    assert first.custom is not None
    found = find_origin(join_cells(first.custom, chain, calls, factor))
    if found is not None and found.phase == "forward" and found.what == "state":
        weight = next((n for n, w in first.snapshot.weights.items() if not bool(w.isfinite().all())), None)
        given = [calls[c] for c, t in zip(chain.calls, chain.begins, strict=True) if t == found.t]
        if weight is not None:
            found = replace(found, what=weight, gate="", t=None, sequence=None)
        elif any(not bool(row.isfinite().all()) for call in given for row in call.snapshot.arguments.rows):
            found = replace(found, what="input", gate="")
    return [] if found is None else [found]


def _number(calls: Sequence[ObservedCall], chain: Chain, origin: Origin) -> int | None:
    """Number in the batch of a sequence of a chain, in the call in which it was."""
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
