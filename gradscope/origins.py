"""Which of a step's chains has the first value that is not finite, and where in it that was born."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor

from gradscope.capture.chain import Chain
from gradscope.capture.join import join
from gradscope.capture.join_cell import join_cells
from gradscope.families import find_origin, find_origins
from gradscope.observed import ObservedCall
from gradscope.types import Direction, LayerKey, Origin, Stack


def first_origin(
    chains: Sequence[tuple[int, list[ObservedCall], Chain]], factor: Tensor | float
) -> tuple[LayerKey, Origin] | None:
    """The first in causal order: forward passes as they were called, then the way back, the last call first.

    Args:
        chains: number within the module, calls of the module, and chain, in the order of their first calls.
        factor: what the loss was multiplied by.
    """
    forward, back = list[tuple[LayerKey, Origin]](), list[tuple[LayerKey, Origin]]()
    for number, calls, chain in chains:
        module = calls[chain.calls[0]].module
        found = [(LayerKey(module, n, d, number), o) for n, d, o in _origins(calls, chain, factor)]
        forward += [each for each in found if each[1].phase == "forward"]
        back[:0] = [each for each in found if each[1].phase == "backward"]
    return next(iter([*forward, *back]), None)


def stack_of(calls: Sequence[ObservedCall], chain: Chain, factor: Tensor | float) -> Stack:
    """A chain of calls of torch's layers or cells in canonical layout."""
    first = calls[chain.calls[0]]
    if len(chain.calls) == 1 and not first.cell and len(chain.tracks) == len(first.rows):
        output, *final = first.gradients
        return first.snapshot.stack(output, final, factor)
    return join(chain, calls, factor)


def _origins(
    calls: Sequence[ObservedCall], chain: Chain, factor: Tensor | float
) -> list[tuple[int, Direction, Origin]]:
    """What is not finite in a chain, by layer and direction; what was given to a cell comes before what it made."""
    first = calls[chain.calls[0]]
    if first.custom is None:
        return find_origins(stack_of(calls, chain, factor))
    recurrence = join_cells(first.custom, chain, calls, factor)
    found = find_origin(recurrence)
    if found is not None and found.phase == "forward" and found.what == "state":
        weight = next((n for n, w in first.snapshot.weights.items() if not bool(w.isfinite().all())), None)
        given = [calls[c] for c, t in zip(chain.calls, chain.begins, strict=True) if t == found.t]
        if weight is not None:
            found = replace(found, what=weight, gate="", t=None)
        elif any(not bool(row.isfinite().all()) for call in given for row in call.snapshot.arguments.rows):
            found = replace(found, what="input", gate="")
    return [] if found is None else [(0, "forward", found)]
