"""Joins a chain of calls of a user's cell into canonical layout."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from gradscope.capture.cell import Cell
from gradscope.capture.cell_call import CellSnapshot
from gradscope.capture.cell_spec import measures_of
from gradscope.capture.cell_steps import CellSteps
from gradscope.capture.chain import Chain
from gradscope.capture.direct import Gradients, direct_gradients, link_scales, total_gradient
from gradscope.capture.places import Places, find_places
from gradscope.capture.snapshot import tolerance
from gradscope.types import Recurrence

Parts = list[list[Tensor]]
"""By part of the state, a tensor for each call."""


class ObservedCell(Gradients, Protocol):
    """A call of a user's cell, and the loss gradients that it received."""

    snapshot: CellSnapshot


def join_cells(cell: Cell, chain: Chain, calls: Sequence[ObservedCell], factor: Tensor | float = 1.0) -> Recurrence:
    """The canonical form of a chain of calls of a cell.

    Args:
        cell: the user's cell.
        chain: calls by their index in `calls`.
        calls: all calls of the cell.
        factor: scale of the loss.
    """
    cell.renew()
    mine = [_settled(calls[number]) for number in chain.calls]
    snapshots = [call.snapshot for call in mine]
    device = snapshots[0].returned[0].device
    places = find_places(chain, [call.lengths for call in mine], device)
    kind = torch.float64 if any(s.returned[0].dtype == torch.float64 for s in snapshots) else torch.float32
    steps = CellSteps(cell, snapshots, places)
    measures = measures_of(steps, kind)
    before, after = _states(snapshots)
    previous, returned = _by_time(steps, before, kind), _by_time(steps, after, kind)
    like = [[c.snapshot.previous[p].flatten(1).to(g.dtype) for c in mine] for p, g in enumerate(previous)]
    blank = [[torch.zeros_like(x, dtype=kind) for x in part] for part in after]
    direct, totals = (_by_time(steps, parts, kind) for parts in _loss_gradients(chain, mine, blank, factor))
    return Recurrence(
        step=steps,
        lengths=places.lengths,
        starts=torch.tensor([track.start for track in chain.tracks], device=device),
        previous=previous,
        returned=returned,
        direct=direct,
        totals=totals,
        links=link_scales(mine, places, like, previous, returned),
        gates=measures.gates,
        blocks=measures.blocks,
        transition=measures.transition,
        tolerance=max(tolerance(s.precision, device) for s in snapshots),
        widths=_widths(blank, steps.widths, places),
        reason=measures.reason,
    )


def _states(snapshots: Sequence[CellSnapshot]) -> tuple[Parts, Parts]:
    """The states before and after each call, by part, [1, n, F] each."""
    parts = range(len(snapshots[0].returned))
    previous = [[s.previous[p].flatten(1).unsqueeze(0) for s in snapshots] for p in parts]
    return previous, [[s.returned[p].flatten(1).unsqueeze(0) for s in snapshots] for p in parts]


def _by_time(steps: CellSteps, parts: Parts, kind: torch.dtype) -> tuple[Tensor, ...]:
    return tuple(steps.spread(rows, part, kind) for part, rows in enumerate(parts))


def _loss_gradients(
    chain: Chain, calls: Sequence[ObservedCell], blank: Parts, factor: Tensor | float
) -> tuple[Parts, Parts]:
    """Direct and total loss gradients of the states after each call, by part, [1, n, F] each as `blank`."""
    direct, totals = Parts(), Parts()
    for part, like in enumerate(blank):
        arrived = [(call.gradients[call.slot(part)],) for call in calls]
        direct.append(direct_gradients(chain, calls, part, arrived, like, factor))
        totals.append([total_gradient(c, c.slot(part), b, factor) for c, b in zip(calls, like, strict=True)])
    return direct, totals


def _settled(call: ObservedCell) -> ObservedCell:
    """Drop the gradients from within a call whose state is a single tensor: only parts of a state feed each other."""
    if len(call.snapshot.parts) == 1:
        call.inside = [None for _ in call.inside]
    return call


def _widths(blank: list[list[Tensor]], widths: Sequence[int], places: Places) -> tuple[Tensor, ...] | None:
    """Widths of the parts of the returned state by timestep; None if they are constant."""
    if all(row.shape[-1] == width for part, width in zip(blank, widths, strict=True) for row in part):
        return None
    sizes = [[row.new_full((*row.shape[:2], 1), row.shape[-1]) for row in part] for part in blank]
    return tuple(places.by_time(part).squeeze(-1).clamp(min=1) for part in sizes)
