"""A chain of calls of a cell that is not torch's, in canonical layout."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from gradscope.capture.cell import Cell, CellSnapshot
from gradscope.capture.chain import Chain
from gradscope.capture.join import Gradients, Places, direct_gradients, find_places, link_factor, total_gradient
from gradscope.capture.snapshot import TOLERANCE
from gradscope.types import GateKind, Recurrence

TANH = frozenset({"candidate", "hidden"})


class ObservedCell(Gradients, Protocol):
    """A call of a cell, and the gradients that have arrived at its results."""

    snapshot: CellSnapshot


@dataclass(frozen=True, slots=True)
class _Steps:
    """The calls of a chain, to be run again at any of their rows."""

    cell: Cell
    snapshots: list[CellSnapshot]
    places: Places

    def groups(self) -> list[list[int]]:
        """Calls whose arguments differ in their rows only."""
        found: list[list[int]] = []
        for number, snapshot in enumerate(self.snapshots):
            for group in found:
                first = self.snapshots[group[0]]
                if first.weights is snapshot.weights and first.arguments.alike(snapshot.arguments):
                    group.append(number)
                    break
            else:
                found.append([number])
        return found

    def rows(self, numbers: Sequence[int]) -> list[Tensor]:
        """Their arguments, one call's rows behind the other's."""
        parts = [self.snapshots[n].arguments.rows for n in numbers]
        return [torch.cat(part) for part in zip(*parts, strict=True)]


class _Step:
    """Runs the cell at chosen timesteps and sequences; see `Recurrence.step`."""

    def __init__(self, steps: _Steps) -> None:
        self.steps, self.sets = steps, steps.groups()
        self.arguments = [steps.rows(group) for group in self.sets]
        counts = [len(s.returned[0]) for s in steps.snapshots]
        self.group = torch.zeros(sum(counts), dtype=torch.long)
        self.local = torch.zeros(sum(counts), dtype=torch.long)
        starts = [sum(counts[:n]) for n in range(len(counts))]
        for number, group in enumerate(self.sets):
            offset = 0
            for call in group:
                here = slice(starts[call], starts[call] + counts[call])
                self.group[here], self.local[here] = number, torch.arange(offset, offset + counts[call])
                offset += counts[call]

    def __call__(self, times: Tensor, sequences: Tensor, state: Sequence[Tensor]) -> list[Tensor]:
        where = self.steps.places.index[times, sequences].cpu()
        kinds = self.group[where].unique().tolist()
        found: list[list[Tensor]] = []
        order: list[Tensor] = []
        for kind in kinds:
            chosen = (self.group[where] == kind).nonzero().flatten().to(times.device)
            order.append(chosen)
            found.append(self._run(kind, self.local[where.to(chosen.device)[chosen].cpu()], [s[chosen] for s in state]))
        if len(found) == 1:
            return found[0]
        back = torch.cat(order).argsort()
        return [torch.cat(part)[back] for part in zip(*found, strict=True)]

    def _run(self, kind: int, local: Tensor, state: Sequence[Tensor]) -> list[Tensor]:
        snapshot = self.steps.snapshots[self.sets[kind][0]]
        shapes = [r.shape[1:] for r in snapshot.returned]
        kinds = [s.dtype for s in snapshot.given]
        parts = [s.reshape(len(s), *shape).to(kind) for s, shape, kind in zip(state, shapes, kinds, strict=True)]
        rows = [row[local.to(row.device)] for row in self.arguments[kind]]
        return [r.flatten(1) for r in self.steps.cell.run(snapshot, rows, parts)]


def join_cells(cell: Cell, chain: Chain, calls: Sequence[ObservedCell], factor: Tensor | float = 1.0) -> Recurrence:
    """The canonical form of a chain of calls of a cell.

    Args:
        cell: whose.
        chain: its calls by number.
        calls: all of the cell.
        factor: what the loss was multiplied by.
    """
    mine = [calls[number] for number in chain.calls]
    taken = [call.snapshot for call in mine]
    device = taken[0].returned[0].device
    places = find_places(chain, [call.lengths for call in mine], device)
    parts = range(len(taken[0].returned))
    kind = torch.float64 if taken[0].returned[0].dtype == torch.float64 else torch.float32

    def spread(rows: Sequence[Tensor]) -> Tensor:
        return places.by_time([r.flatten(1).unsqueeze(0).to(kind) for r in rows])

    returned = tuple(spread([s.returned[p] for s in taken]) for p in parts)
    given = tuple(spread([s.given[p] for s in taken]) for p in parts)
    blank = [[torch.zeros_like(s.returned[p].flatten(1), dtype=kind).unsqueeze(0) for s in taken] for p in parts]
    arrived = [[(c.gradients[c.slot(p)],) for c in mine] for p in parts]
    direct = [direct_gradients(chain, mine, p, arrived[p], blank[p], factor) for p in parts]
    totals = [[total_gradient(c, c.slot(p), b, factor) for c, b in zip(mine, blank[p], strict=True)] for p in parts]
    steps = _Steps(cell, taken, places)
    return Recurrence(
        step=_Step(steps),
        lengths=places.lengths,
        starts=torch.tensor([track.start for track in chain.tracks], device=device),
        given=given,
        returned=returned,
        direct=tuple(map(places.by_time, direct)),
        totals=tuple(map(places.by_time, totals)),
        links=_links(mine, places, given, returned, blank),
        gates=_gates(steps, given),
        blocks=_blocks(cell, taken[0]),
        transition=_transition(steps),
        tolerance=max(TOLERANCE.get(s.precision, 0.0) for s in taken),
    )


def _links(
    calls: Sequence[ObservedCell],
    places: Places,
    given: tuple[Tensor, ...],
    returned: tuple[Tensor, ...],
    blank: list[list[Tensor]],
) -> tuple[Tensor, ...] | None:
    """What the loop multiplied each part of the state by; None where it handed on everything as it was."""
    factors = [[link_factor(c, p, b[0]) for c, b in zip(calls, part, strict=True)] for p, part in enumerate(blank)]
    valid = places.valid[1:].unsqueeze(-1)
    same = all(bool(((g[1:] == r[:-1]) | ~valid).all()) for g, r in zip(given, returned, strict=True))
    if same and all(f is None for part in factors for f in part):
        return None
    return tuple(
        places.at_begins([torch.ones_like(b[0]) if f is None else f for f, b in zip(part, shape, strict=True)], 1.0)
        for part, shape in zip(factors, blank, strict=True)
    )


def _each_group(steps: _Steps, function: str) -> list[tuple[list[int], object]]:
    """A function of the cell at all rows, by groups of alike calls: numbers of the calls, and what it gave."""
    found: list[tuple[list[int], object]] = []
    for group in steps.groups():
        state = [torch.cat([steps.snapshots[n].given[p] for n in group]) for p in range(len(steps.snapshots[0].parts))]
        value = getattr(steps.cell, function)(steps.snapshots[group[0]], steps.rows(group), state)
        found.append((group, value))
    return found


def _gates(steps: _Steps, given: tuple[Tensor, ...]) -> dict[str, tuple[Tensor, GateKind]]:
    if steps.cell.spec.gates is None:
        return {}
    rows: dict[str, list[Tensor]] = {}
    for group, values in _each_group(steps, "gates"):
        counts = [len(steps.snapshots[n].returned[0]) for n in group]
        for name, value in values.items():  # type: ignore[attr-defined]
            parts = rows.setdefault(name, [torch.empty(0)] * len(steps.snapshots))
            for number, part in zip(group, value.detach().flatten(1).split(counts), strict=True):
                parts[number] = part.unsqueeze(0).to(given[0].dtype)
    kinds = steps.cell.spec.kinds
    default: dict[str, GateKind] = {name: "tanh" if name in TANH else "sigmoid" for name in rows}
    return {name: (steps.places.by_time(parts), kinds.get(name, default[name])) for name, parts in rows.items()}


def _transition(steps: _Steps) -> Tensor | None:
    if steps.cell.spec.transition is None:
        return None
    parts: list[Tensor] = [torch.empty(0)] * len(steps.snapshots)
    for group, value in _each_group(steps, "transition"):
        counts = [len(steps.snapshots[n].returned[0]) for n in group]
        shape = steps.snapshots[0].returned[0].shape[1:]
        full = value.detach().expand(sum(counts), *(shape[:-1] if steps.snapshots[0].complex[0] else shape))  # type: ignore[attr-defined]
        for number, part in zip(group, full.flatten(1).split(counts), strict=True):
            parts[number] = part.unsqueeze(0)
    return steps.places.by_time(parts)


def _blocks(cell: Cell, snapshot: CellSnapshot) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for name, gates in cell.spec.blocks.items():
        for gate, block in zip(gates, snapshot.weights[name].unflatten(0, (len(gates), -1)), strict=True):
            found[gate] = block
    return found
