"""Joins a chain of calls into the layout of a single call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from gradscope.capture.chain import Chain
from gradscope.capture.direct import Gradients, direct_gradients, link_scales, total_gradient
from gradscope.capture.places import Places, find_places
from gradscope.capture.snapshot import Snapshot
from gradscope.types import Joined, Stack


class Observed(Gradients, Protocol):
    """A call of one of torch's layers or cells, and the loss gradients that it received."""

    snapshot: Snapshot

    @property
    def cell(self) -> bool:
        """True for a cell."""
        ...


def join(chain: Chain, calls: Sequence[Observed], factor: Tensor | float = 1.0) -> Stack:
    """The canonical form of a chain, in float32 or better, with gradients divided by `factor`.

    Args:
        chain: calls by their index in `calls`.
        calls: all calls of the module.
        factor: scale of the loss.
    """
    mine = [calls[number] for number in chain.calls]
    places = find_places(chain, [call.lengths for call in mine], mine[0].snapshot.output.device)
    stacks = [call.snapshot.stack(None, [None, None], factor) for call in mine]
    like, states = stacks[0], _states(stacks, places)
    entering, totals = _arrived(mine, stacks)
    return Stack(
        family=like.family,
        weights=like.weights,
        directions=like.directions,
        lengths=places.lengths,
        input=places.by_time([s.input for s in stacks]),
        grad_output=places.by_time(entering).div_(factor) if entering else torch.zeros_like(states["output"]),
        grad_h_n=None,
        grad_c_n=None,
        dropout=tuple(places.by_time(list(masks)) for masks in zip(*(s.dropout for s in stacks), strict=True)),
        hidden_dropout=any(s.hidden_dropout for s in stacks),
        dropout_read=any(s.dropout_read for s in stacks),
        tolerance=max(s.tolerance for s in stacks),
        joined=_joined(chain, mine, stacks, places, totals, factor),
        **states,
    )


def _states(stacks: Sequence[Stack], places: Places) -> dict[str, Any]:
    """Outputs, initial and final states of a chain, by field of `Stack`."""
    cell = stacks[0].c_0 is not None
    return {
        "output": places.by_time([s.output for s in stacks]),
        "h_0": torch.cat([s.h_0 for s in stacks], 1)[:, places.first],
        "h_n": torch.cat([s.h_n for s in stacks], 1)[:, places.last],
        "c_0": torch.cat([s.c_0 for s in stacks if s.c_0 is not None], 1)[:, places.first] if cell else None,
        "c_n": torch.cat([s.c_n for s in stacks if s.c_n is not None], 1)[:, places.last] if cell else None,
    }


def _joined(
    chain: Chain,
    calls: Sequence[Observed],
    stacks: Sequence[Stack],
    places: Places,
    totals: list[list[tuple[Tensor | None, ...]]],
    factor: Tensor | float,
) -> Joined:
    """Where sequences start, and the gradients that enter a chain at the ends of its calls."""
    parts = [[s.h_n for s in stacks], [s.c_n for s in stacks if s.c_n is not None]]
    grad_h, *grad_c = (
        places.at_ends(direct_gradients(chain, calls, index, totals[index], part, factor))
        for index, part in enumerate(parts)
        if part
    )
    return Joined(
        starts=torch.tensor([track.start for track in chain.tracks], device=places.lengths.device),
        grad_h=grad_h,
        grad_c=grad_c[0] if grad_c else None,
        **(_of_cells(calls, stacks, places, factor) if calls[0].cell else {}),
    )


def _arrived(
    calls: Sequence[Observed], stacks: Sequence[Stack]
) -> tuple[list[Tensor], list[list[tuple[Tensor | None, ...]]]]:
    """Gradients of each call: by timestep, [T, n, .]; and by part of the state at its end, [S, n, .]."""
    if calls[0].cell:
        return [], [[(g,) for g in part] for part in zip(*(c.gradients for c in calls), strict=True)]
    outputs, ends = list[Tensor](), list[list[tuple[Tensor | None, ...]]]()
    for call, stack in zip(calls, stacks, strict=True):
        output, h_n, *c_n = call.gradients
        own = torch.zeros_like(stack.output) if output is None else output.to(stack.output.dtype, copy=True)
        last = None
        if output is not None and len(stack.weights) == 1:  # the loop may carry on the last output in place of h_n
            at = stack.lengths - 1, torch.arange(len(stack.lengths), device=stack.lengths.device)
            last = output[at].unsqueeze(0)
            own[at] = 0
        outputs.append(own)
        ends.append([(h_n, last), *((c,) for c in c_n)])
    return outputs, [list(part) for part in zip(*ends, strict=True)]


def _of_cells(
    calls: Sequence[Observed], stacks: Sequence[Stack], places: Places, factor: Tensor | float
) -> dict[str, Any]:
    """Further fields of `Joined` for cells: the states in between, and autograd's own totals."""
    cell = stacks[0].c_0 is not None
    results = [[s.h_n for s in stacks]] + [[s.c_n for s in stacks if s.c_n is not None]] * cell
    states = [[s.h_0 for s in stacks]] + [[s.c_0 for s in stacks if s.c_0 is not None]] * cell
    totals = [
        [total_gradient(c, p, x, factor) for c, x in zip(calls, part, strict=True)] for p, part in enumerate(results)
    ]
    returned = [places.by_time(part) for part in results]
    previous = tuple(places.by_time(part) for part in states)
    known = {"totals": tuple(places.by_time(part) for part in totals), "cells": returned[1] if cell else None}
    scales = link_scales(calls, places, [[x[0] for x in part] for part in states], previous, returned)
    return known if scales is None else {**known, "previous": previous, "factors": scales}
